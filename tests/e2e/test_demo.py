"""``make run`` in small: from nothing to first answers, and a stop that leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.client import ScoringClient


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_answers_within_15_seconds_and_stops_cleanly(
    stop: signal.Signals, sample_registry: Path, tmp_path: Path
) -> None:
    port, said = free_port(), tmp_path / "said.txt"
    command = ["service.demo", "complete_journey", "--registry", str(sample_registry), "--port", str(port)]
    start = time.monotonic()
    with said.open("w") as out:
        demo = subprocess.Popen([sys.executable, "-P", "-m", *command], stdout=out, stderr=out, cwd=tmp_path)
        while "until Ctrl-C" not in said.read_text():
            assert demo.poll() is None, said.read_text()
            assert time.monotonic() - start < 15
            time.sleep(0.05)
    text = said.read_text()
    assert "no training needed" in text
    assert "times shifted" in text
    rows = re.findall(
        r"^\s*(\d+)\s+0\.\d+\s+[01]\.\d+\s+(?:act|-)\s+0\.\d+\s+[01]\.\d+\s+(?:act|-)\s+[\d.]+", text, re.MULTILINE
    )
    assert len(rows) == 10
    with ScoringClient(f"127.0.0.1:{port}", timeout_s=5) as client:
        assert client.score(rows[0]).customer_id == rows[0]
    redis = re.search(r"embedded Redis at unix://(\S+)", text)
    assert redis is not None
    assert Path(redis[1]).exists()
    demo.send_signal(stop)
    assert demo.wait(timeout=15) == 0
    assert not Path(redis[1]).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
