"""Which bundle ``tidemark demo`` serves, and whether it fits one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from service import demo

VERSION = "20260101T000000-00000000"


@pytest.mark.parametrize("has_report", [True, False])
def test_a_bundle_whose_fit_was_stopped_before_its_report_is_served_and_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, *, has_report: bool
) -> None:
    (tmp_path / VERSION).mkdir()
    if has_report:
        (tmp_path / VERSION / "report.html").touch()
    commands: list[tuple[str, ...]] = []

    def announced(_console: Console, _url: str | None, *arguments: str) -> list[str]:
        commands.append(arguments)
        return [sys.executable, "-c", "import time; time.sleep(3600)"]

    bundle = SimpleNamespace(manifest=SimpleNamespace(version=VERSION))
    monkeypatch.setattr(demo, "_current", lambda _registry: bundle)
    monkeypatch.setattr(demo, "_announced", announced)
    started: list[subprocess.Popen[str]] = []

    class Started(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Started)
    # As the command does: where the tests run in the background, SIGINT is ignored, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with demo._bundle_in(Console(quiet=True), "shop.toml", tmp_path):
        assert [process.poll() for process in started] == ([] if has_report else [None])
    assert commands == ([] if has_report else [("fit", "shop.toml", "--registry", str(tmp_path))])
    assert all(process.poll() is not None for process in started)
