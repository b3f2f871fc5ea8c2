"""``python -m tidemark.load`` against real servers: everything is counted, stalls show, and it ends in every case."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from hdrh.histogram import HdrHistogram

import tidemark.load
from tests.conftest import Outcome, Run
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

BUSY = ("--max-lag-ms", "60000", "--deadline-ms", "60000")
"""Tests share their machine with others: what is counted is looked at, not how fast it is."""
KNOWN = ["20", "70", "127", "143", "507", "820", "887", "900", "1001", "1099", "1147", "1159", "1162"]
KINDS = ("answered", "refused", "expired", "failed")

Load = Callable[..., tuple[Outcome, dict[str, Any]]]
Later = tuple[float, Callable[[subprocess.Popen[str]], object]]


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(KNOWN))
    return path


@pytest.fixture
def load(tmp_path: Path, ids: Path) -> Load:
    """Run a load test; how it ended, and its report. ``meanwhile``: carried out, each so long after the one before."""

    def run(target: str, *options: object, meanwhile: Sequence[Later] = ()) -> tuple[Outcome, dict[str, Any]]:
        report = tmp_path / "load.json"
        provided = [target, "--ids", ids, "--warm-up", 0.2, "--json", report, *BUSY, *options]
        command = [sys.executable, "-m", "tidemark.load", *map(str, provided)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            first = process.stderr.readline()
            for pause_s, what in meanwhile:
                assert first.startswith("loading "), first
                time.sleep(pause_s)
                what(process)
            out, err = process.communicate(timeout=PATIENCE_S)
        done = Outcome(process.returncode, out, first + err)
        return done, json.loads(report.read_text()) if report.exists() else {}

    return run


def outcomes(step: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(item["code"], item["reason"]): item["number"] for item in step["outcomes"]}


@pytest.fixture(scope="module")
def own_server(
    front: str,  # noqa: ARG001  # set before the server starts
    loaded_redis: str,
    small_registry: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., ServerProcess]:
    """Starts servers that a test may stall, kill, or start with TLS."""
    options = ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0"]
    return lambda *more: ServerProcess(tmp_path_factory.mktemp("server"), *options, *more)


# --- what is counted ------------------------------------------------------------------------------------------------


def test_every_call_is_counted_once_in_every_part_of_the_report(
    server: ServerProcess, load: Load, tmp_path: Path
) -> None:
    options = (
        "--rate",
        150,
        "--duration",
        2,
        "--arrivals",
        "constant",
        "--processes",
        2,
        "--html",
        tmp_path / "a.html",
    )
    done, result = load(server.target, *options, "--html", tmp_path / "a.html")
    assert done.code == 0, done.err
    (step,) = result["steps"]
    assert (step["offered"], step["answered"], step["generator"]["unsent"]) == (300, 300, 0)
    assert outcomes(step) == {("OK", ""): 300}
    assert [item["answered"] for item in step["slices"]] == [150, 150]
    assert HdrHistogram.decode(step["histogram"]).get_total_count() == 300
    assert sum(step["customers_by_model"].values()) == 300
    assert 0 < step["latency_ms"]["p50"] <= step["latency_ms"]["p99"] <= step["latency_ms"]["max"]
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    assert "The load generator kept up" in page
    assert server.target in done.out


def test_batches_of_customers_in_redis_tell_who_has_no_score(
    server: ServerProcess, load: Load, loaded_redis: str, small_registry: Path, run_module: Run, ids: Path
) -> None:
    command = ("--rate", 20, "--duration", 1, "--batch", 50, "--arrivals", "constant")
    ids.write_text("1\nnobody")
    done, result = load(server.target, *command, "--draw", "uniform")
    (step,) = result["steps"]
    assert (done.code, step["answered"]) == (0, 20)
    ((code, reason, _, unknown),) = [tuple(item.values()) for item in step["customers_without_score"]]
    assert (code, reason) == ("NOT_FOUND", "CUSTOMER_UNKNOWN")
    assert unknown + sum(step["customers_by_model"].values()) == 1000
    assert 400 < unknown < 600
    done = run_module(
        "service.load", server.target, "--redis", loaded_redis, "--registry", small_registry, *command, *BUSY
    )
    assert (done.code, "1,200" in done.out) == (0, False), done.err


def test_failures_are_told_by_code_and_reason(server: ServerProcess, load: Load, ids: Path) -> None:
    ids.write_text("nobody")
    done, result = load(server.target, "--rate", 50, "--duration", 0.5, "--p99-ms", 500)
    (step,) = result["steps"]
    assert done.code == 1
    assert step["failed"] == step["offered"] > 0
    assert list(outcomes(step)) == [("NOT_FOUND", "CUSTOMER_UNKNOWN")]
    assert "does not hold a p99 of 500 ms: 0.00% of all calls" in done.out


def test_no_call_is_lost_when_the_server_asks_for_new_connections(server: ServerProcess, load: Load) -> None:
    options = ("--rate", 1800, "--duration", 1.5, "--warm-up", 0.5, "--connections", 1)
    done, result = load(server.target, *options)
    (step,) = result["steps"]
    assert outcomes(step) == {("OK", ""): step["offered"]}, done.err
    assert step["offered"] > 2400


@pytest.mark.one_front
def test_a_search_tells_the_highest_rate_that_held(server: ServerProcess, load: Load, tmp_path: Path) -> None:
    options = ("--find", "--p99-ms", 9000, "--rate", 20, "--duration", 0.3, "--steps", 3, "--html", tmp_path / "a.html")
    done, result = load(server.target, *options)
    assert done.code == 0, done.err
    assert [step["rate"] for step in result["steps"]] == [20, 40, 80]
    assert (result["highest_rate"], result["lowest_rate_that_failed"]) == (80, None)
    assert "At least 80.0 calls/s hold a p99 of 9000 ms: no higher rate was tried." in done.out
    assert "step  3:" in done.err
    assert "Steps of the search" in (tmp_path / "a.html").read_text()


# --- servers in trouble ---------------------------------------------------------------------------------------------


@pytest.mark.one_front
def test_a_stall_of_the_server_shows_in_all_calls_that_it_kept_waiting(
    own_server: Callable[..., ServerProcess], load: Load
) -> None:
    with own_server() as server:
        server.wait_for("health is SERVING")
        stall = (1.5, lambda _: server.process.send_signal(signal.SIGSTOP))
        goes_on = (2.5, lambda _: server.process.send_signal(signal.SIGCONT))
        options = ("--rate", 100, "--duration", 5, "--arrivals", "constant")
        _, result = load(server.target, *options, meanwhile=[stall, goes_on])
    (step,) = result["steps"]
    assert step["answered"] == step["offered"] == 500
    # 2.5 seconds without answers at 100 calls a second: 250 calls waited, 1.2 seconds on average. A closed loop over
    # four connections would have seen four.
    assert step["latency_ms"]["p99"] > 700
    assert step["latency_ms"]["p90"] > 300


def test_a_server_that_goes_away_is_told_and_the_test_ends(
    own_server: Callable[..., ServerProcess], load: Load
) -> None:
    with own_server() as server:
        server.wait_for("health is SERVING")
        options = ("--rate", 100, "--duration", 4, "--arrivals", "constant", "--deadline-ms", 2000)
        done, result = load(server.target, *options, meanwhile=[(2.5, lambda _: server.process.kill())])
    (step,) = result["steps"]
    assert done.code == 0, done.err
    assert step["offered"] == 400
    assert step["answered"] > 0
    assert step["failed"] > 20
    assert {code for code, _ in outcomes(step)} <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.one_front
def test_ctrl_c_ends_it_with_a_report_of_what_there_was(server: ServerProcess, load: Load) -> None:
    stop = (2.5, lambda process: process.send_signal(signal.SIGINT))
    done, result = load(server.target, "--rate", 50, "--duration", 60, meanwhile=[stop])
    assert done.code == 0, done.err
    (step,) = result["steps"]
    assert step["stopped"]
    assert 0 < step["seconds"] < 60
    assert 0 < step["answered"] == step["offered"] <= 100 * step["seconds"]
    assert "Stopped early." in done.out


@pytest.mark.one_front
def test_tls_is_spoken_with_an_authority_of_ones_own(
    own_server: Callable[..., ServerProcess], load: Load, tmp_path: Path
) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(tmp_path / "server.pem", append=True)
    tls = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "key.pem")]
    (tmp_path / "token").write_text("s3cret\n")
    with own_server(*tls) as server:
        server.wait_for("health is SERVING")
        options = ("--rate", 50, "--duration", 0.5)
        done, result = load(server.target, *options, "--ca", tmp_path / "ca.pem", "--token-file", tmp_path / "token")
        assert (done.code, result["steps"][0]["answered"]) == (0, result["steps"][0]["offered"]), done.err
        done, _ = load(server.target, *options, "--tls")
        assert done.is_bad_input
        assert "cannot connect" in done.err


# --- Locust ---------------------------------------------------------------------------------------------------------


def test_locust_makes_the_same_calls(server: ServerProcess, ids: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("locust") is None:
        pytest.skip("locust is not installed")
    file = Path(tidemark.load.__path__[0]) / "locustfile.py"
    options = ["--headless", "--users", "3", "--spawn-rate", "3", "--run-time", "6s", "--csv", str(tmp_path / "found")]
    command = [sys.executable, "-m", "locust", "-f", str(file), "--host", server.target, "--ids", str(ids), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, row, *_ = (tmp_path / "found_stats.csv").read_text().splitlines()
    result = dict(zip(header.split(","), row.split(","), strict=True))
    assert result["Name"] == "ScoreCustomer"
    assert int(result["Request Count"]) >= 3
    assert int(result["Failure Count"]) == 0
