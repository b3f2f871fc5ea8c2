"""Log lines, text or JSON, name an error and never show a stack trace, and a customer only under a hash."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Literal

import pytest

from service.settings import Settings
from service.telemetry.logs import (
    MAX_LINES_PER_MINUTE,
    CustomerLog,
    customers,
    log_loop_error,
    start_log,
    without_trace,
)


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
    reported = capsys.readouterr().err
    assert reported.endswith(" ERROR Exception in RPC [ScoreCustomer] (ValueError)\n")
    assert reported.count("\n") == 1


def test_other_records_are_left_alone() -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "%d calls", (3,), None)
    assert without_trace(record)
    assert record.getMessage() == "3 calls"


def test_errors_of_the_event_loop_are_logged_without_their_data(caplog: pytest.LogCaptureFixture) -> None:
    def fail(customer_id: str) -> None:
        raise ValueError(customer_id)

    async def fail_later(customer_id: str) -> None:
        fail(customer_id)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        loop.call_soon(fail, "customer-17")
        task = asyncio.ensure_future(fail_later("customer-17"))
        await asyncio.sleep(0.01)
        del task

    asyncio.run(work())
    assert [record.getMessage().count("(ValueError)") for record in caplog.records] == [1, 1]
    assert "customer-17" not in caplog.text


def test_a_customer_is_named_by_an_hmac_of_the_id() -> None:
    log = CustomerLog()
    log.key = b"of the shop"
    result = log.hashed("küche-17")
    assert result == hmac.new(b"of the shop", "küche-17".encode(), hashlib.sha256).hexdigest()[:16]
    assert CustomerLog().hashed("17") != CustomerLog().hashed("17")
    assert customers.hashed("17") == customers.hashed("17")


def test_the_number_of_lines_about_customers_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = CustomerLog(lambda: now)
    for round_ in (1, 2):
        for number in range(1000):
            log.report("cannot be used", f"customer-{number}")
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == MAX_LINES_PER_MINUTE * round_
        assert lines[-1].endswith("cannot be used (further customers are not logged for a minute)")
        now += 61
    assert "customer-" not in caplog.text


def test_a_json_log_has_one_object_per_line_with_the_extra_fields(
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
