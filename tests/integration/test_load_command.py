"""What ``tidemark load-test`` refuses, in a line that says what to do, before any call is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from feature_store.bundles.bundle import OFFERS
from service.load_test import load_test as load
from tests.conftest import Call
from tests.made_evidence import made_bundle, made_rows
from training.evidence import Evidence

HERE, ELSEWHERE = "127.0.0.1:1", "192.0.2.1:50051"


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("1\n2\n")
    return path


def test_another_machine_is_loaded_only_where_that_is_said(call: Call, ids: Path) -> None:
    done = call(load, ELSEWHERE, "--ids", ids)
    assert done.is_bad_input
    assert "--allow-remote" in done.err


def test_a_token_is_not_sent_to_another_machine_in_the_clear(call: Call, ids: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    done = call(load, ELSEWHERE, "--ids", ids, "--allow-remote", "--token-file", tmp_path / "token")
    assert done.is_bad_input
    assert "in the clear" in done.err
    (tmp_path / "token").write_text("two words\n")
    done = call(load, HERE, "--ids", ids, "--token-file", tmp_path / "token")
    assert done.is_bad_input
    assert "--token-file" in done.err
    assert "two words" not in done.err


def test_somebody_has_to_be_asked_for(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    done = call(load, HERE)
    assert done.is_bad_input
    assert "add --redis and --registry, or --ids" in done.err


def test_an_empty_redis_is_told(call: Call, tmp_path: Path, clean_redis: str) -> None:
    made_bundle(tmp_path / "models", {offer: made_rows(offer, customers=20) for offer in OFFERS}, Evidence())
    done = call(load, HERE, "--redis", clean_redis, "--registry", tmp_path / "models")
    assert done.is_bad_input
    assert "Redis holds no customers" in done.err


def test_a_server_that_is_not_there_is_told(call: Call, ids: Path) -> None:
    done = call(load, HERE, "--ids", ids)
    assert done.is_bad_input
    assert "cannot connect to 127.0.0.1:1: Connection refused" in done.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rate", "1e9"], "--rate"),
        (["--duration", "1e9"], "--duration"),
        (["--batch", "1001"], "--batch"),
        (["--find"], "--p99-ms"),
        (["--rate", "100000", "--duration", "3600"], "calls"),
        (["--certificate", __file__], "--key"),
        (["--ca", __file__], "TLS"),
    ],
)
def test_what_is_too_much_or_does_not_go_together_is_told(call: Call, ids: Path, options: list[str], word: str) -> None:
    done = call(load, HERE, "--ids", ids, *options)
    assert done.is_bad_input
    assert word in done.err


def alone(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidemark.load", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "stdin", "word"),
    [
        ([HERE], "", "add --ids FILE"),
        ([HERE, "--ids", "-"], "\n", "standard input holds no ids"),
        ([HERE, "--ids", "-"], "1\n2\n", "cannot connect to 127.0.0.1:1"),
        ([HERE, "--rate", "1e9"], "", "--rate"),
        ([ELSEWHERE, "--ids", "-"], "1\n", "--allow-remote"),
    ],
)
def test_the_client_alone_ends_bad_input_in_one_line(arguments: list[str], stdin: str, word: str) -> None:
    done = alone(*arguments, stdin=stdin)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
