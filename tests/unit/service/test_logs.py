"""Log lines name an error and never show a stack trace."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from service.logs import start_log, without_trace
from service.settings import Settings


def test_an_error_is_named_without_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    start_log(Settings(registry=Path("somewhere"), redis="unix:///tmp/none"))
    logging.getLogger("grpc").error("Exception in RPC [%s]", "ScoreCustomer", exc_info=ValueError("customer 17"))
    told = capsys.readouterr().err
    assert told.endswith(" ERROR Exception in RPC [ScoreCustomer] (ValueError)\n")
    assert told.count("\n") == 1


def test_other_records_are_left_alone() -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "%d calls", (3,), None)
    assert without_trace(record)
    assert record.getMessage() == "3 calls"
