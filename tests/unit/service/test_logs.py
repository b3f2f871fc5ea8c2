"""Log lines name an error and never show a stack trace, as text or as JSON."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Literal

import pytest

from service.logs import start_log, without_trace
from service.settings import Settings


def started(monkeypatch: pytest.MonkeyPatch, log_format: Literal["text", "json"]) -> None:
    """Start the log in a process that has none yet."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    start_log(Settings(registry=Path("somewhere"), redis="unix:///tmp/none", log_format=log_format))


def test_an_error_is_named_without_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, "text")
    logging.getLogger("grpc").error("Exception in RPC [%s]", "ScoreCustomer", exc_info=ValueError("customer 17"))
    told = capsys.readouterr().err
    assert told.endswith(" ERROR Exception in RPC [ScoreCustomer] (ValueError)\n")
    assert told.count("\n") == 1


def test_other_records_are_left_alone() -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "%d calls", (3,), None)
    assert without_trace(record)
    assert record.getMessage() == "3 calls"


def test_json_is_an_object_a_line_with_the_fields_that_were_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, "json")
    fields = {"model": "v1", "path": Path("models"), "level": "mine"}
    logging.getLogger("tidemark").info("model %s,\nserved", "v1", extra=fields)
    logging.getLogger("grpc").error("failed", exc_info=ValueError("customer 17"))
    logging.getLogger("tidemark").debug("not told")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    process = first.pop("process")
    assert isinstance(process, int)
    own = {"level": "INFO", "logger": "tidemark", "message": "model v1,\nserved"}
    assert first == own | {"model": "v1", "path": "models"}
    assert (second["level"], second["message"]) == ("ERROR", "failed (ValueError)")
    assert "17" not in second["message"]
    assert "Traceback" not in json.dumps(second)
