"""Figures of the test suite, read from what its latest runs have left in ``build/``: a run takes minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.benchmarks.setting import Bench, Measured

BUILD: Final = Path("build")


def latest_runs(_bench: Bench) -> dict[str, Measured]:
    """``test_seconds`` of ``make test`` and ``slow_machine`` of ``make test-slow-machine``, as far as they have run."""
    figures: dict[str, Measured] = {}
    if run := _read("test.json"):
        figures["test_seconds"] = run["test_seconds"], f"make test, exit code {run['exit_code']:g}"
    if run := _read("slow_machine.json"):
        figures["slow_machine"] = run["failures"], "failures of make test-slow-machine"
    return figures


def _read(name: str) -> dict[str, float]:
    path = BUILD / name
    result: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return result
