"""The log: text or JSON lines on stderr, without stack traces, and with a keyed hash in place of a customer's id."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from service.settings import Settings

logger: Final = logging.getLogger("tidemark")

HASH_DIGITS: Final = 16
"""Hexadecimal digits of a customer's hash: 64 bits, so a collision within a shop is very unlikely."""
MAX_LINES_PER_MINUTE: Final = 10
MINUTE_S: Final = 60.0
RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of every log record; all others were passed as ``extra``."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object per line: time, level, logger, message, process, and the ``extra`` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        own = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        fields = {name: value for name, value in vars(record).items() if name not in RECORD_FIELDS}
        return json.dumps(own | fields | own, default=str)  # first the own fields, which no extra field replaces


def start_log(settings: Settings) -> None:
    """Log to stderr as the settings say; with several workers each line contains the process id."""
    process = "%(process)d " if settings.workers > 1 else ""
    text = logging.Formatter(f"%(asctime)s {process}%(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    handler.addFilter(without_trace)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    if settings.log_key is not None:
        customers.key = settings.log_key.get_secret_value().encode()


def without_trace(record: logging.LogRecord) -> bool:
    """Replace the stack trace of a record by the name of the error: a trace may contain a customer's data."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"{record.getMessage()} ({kind.__name__ if kind else 'no error'})", ()
        record.exc_info = record.exc_text = None
    return True


def log_loop_error(_loop: AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log an unhandled error of the event loop without its arguments, which may contain a customer's data."""
    message, error = str(context.get("message", "")), context.get("exception")
    logger.error("%s (%s)", message.partition("(")[0], type(error).__name__ if error else "no error")


class CustomerLog:
    """Logs lines about single customers: an HMAC in place of the id, and at most MAX_LINES_PER_MINUTE."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = secrets.token_bytes(16)
        self._clock: Final = clock
        self._minute_began = clock()
        self._lines = 0

    def hashed(self, customer_id: str) -> str:
        """The name of a customer in the log: the first 64 bits of HMAC-SHA256 of the id, in hexadecimal digits."""
        return hmac.new(self.key, customer_id.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]

    def report(self, problem: str, customer_id: str) -> None:
        """Log what is wrong with a customer's data; lines beyond the limit are dropped."""
        if (now := self._clock()) > self._minute_began + MINUTE_S:
            self._minute_began, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES_PER_MINUTE:
            note = " (further customers are not logged for a minute)" if self._lines == MAX_LINES_PER_MINUTE else ""
            logger.warning("customer %s: %s%s", self.hashed(customer_id), problem, note)


customers: Final = CustomerLog()
"""The log of this process."""
