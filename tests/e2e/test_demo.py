"""``make run`` in small: from nothing to first answers, and a stop that leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.waiting import PATIENCE_S
from tidemark import ScoringClient


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_the_demo_answers_and_stops_cleanly(stop: signal.Signals, sample_registry: Path, tmp_path: Path) -> None:
    port, said = free_port(), tmp_path / "said.txt"
    command = ["service.demo", "complete_journey", "--registry", str(sample_registry), "--port", str(port)]
    start = time.monotonic()
    with running(command, said, tmp_path) as demo:
        while "until Ctrl-C" not in said.read_text():
            assert demo.poll() is None, said.read_text()
            assert time.monotonic() - start < 300
            time.sleep(0.05)
        check(demo, said.read_text(), port, stop)


@contextmanager
def running(command: list[str], said: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("w") as out:
        demo = subprocess.Popen([sys.executable, "-P", "-m", *command], stdout=out, stderr=out, cwd=folder)
    try:
        yield demo
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(timeout=PATIENCE_S)


def check(demo: subprocess.Popen[bytes], text: str, port: int, stop: signal.Signals) -> None:
    assert "no training needed" in text
    assert "times shifted" in text
    rows = re.findall(
        r"^\s*(\d+)\s+0\.\d+\s+[01]\.\d+\s+(?:act|-)\s+0\.\d+\s+[01]\.\d+\s+(?:act|-)\s+[\d.]+", text, re.MULTILINE
    )
    assert len(rows) == 10
    with ScoringClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
        assert client.score(rows[0]).customer_id == rows[0]
    redis = re.search(r"embedded Redis at unix://(\S+)", text)
    assert redis is not None
    assert Path(redis[1]).exists()
    demo.send_signal(stop)
    assert demo.wait(timeout=PATIENCE_S) == 0
    assert not Path(redis[1]).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_port_that_is_taken_is_refused_before_anything_is_done(tmp_path: Path, run_module: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_module("service.demo", "complete_journey", "--registry", tmp_path / "registry", "--port", port)
    assert ended.is_bad_input
    assert ended.out == ""
    assert not (tmp_path / "registry").exists()


def test_a_password_in_the_redis_url_is_not_printed(sample_registry: Path, run_module: Run) -> None:
    url = "redis://user:shibboleth@127.0.0.1:1"
    options = ["--registry", sample_registry, "--port", free_port(), "--redis", url]
    ended = run_module("service.demo", "complete_journey", *options)
    assert ended.code == 2
    assert "shibboleth" not in ended.out + ended.err
