"""The log: lines on stderr, text or JSON, without stack traces, and with customers under a hash where one is meant."""

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
"""64 bits: no two customers of a shop have the same, more or less."""
MOST_A_MINUTE: Final = 10
MINUTE_S: Final = 60.0
OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as ``extra``."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, process, and the fields that came as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        fields = {name: value for name, value in vars(record).items() if name not in OWN}
        return json.dumps(told | fields | told, default=str)  # its own first, and no other under their names


def start_log(settings: Settings) -> None:
    """Log to stderr; with several workers each line says which."""
    process = "%(process)d " if settings.workers > 1 else ""
    text = logging.Formatter(f"%(asctime)s {process}%(levelname)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    handler.addFilter(without_trace)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    if settings.log_key is not None:
        customers.key = settings.log_key.get_secret_value().encode()


def without_trace(record: logging.LogRecord) -> bool:
    """Name an error in place of its stack trace, which libraries log, and which may hold a customer's data."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"{record.getMessage()} ({kind.__name__ if kind else 'no error'})", ()
        record.exc_info = record.exc_text = None
    return True


def log_loop_error(_loop: AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """What a loop says of errors that nobody took: by default with the arguments, which may be a customer's data."""
    what, error = str(context.get("message", "")), context.get("exception")
    logger.error("%s (%s)", what.partition("(")[0], type(error).__name__ if error else "no error")


class CustomerLog:
    """Lines about single customers: an HMAC in place of the id, and no more than so many a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = secrets.token_bytes(16)
        self._clock: Final = clock
        self._began = clock()
        self._told = 0

    def hashed(self, customer_id: str) -> str:
        """The customer as the log names it: HMAC-SHA256 of the id under the key, its first 64 bits in hex."""
        return hmac.new(self.key, customer_id.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]

    def tell(self, what: str, customer_id: str) -> None:
        """A line of what is wrong with a customer; of very many some are left out."""
        if (now := self._clock()) > self._began + MINUTE_S:
            self._began, self._told = now, 0
        self._told += 1
        if self._told <= MOST_A_MINUTE:
            rest = " (others are left out for a minute)" if self._told == MOST_A_MINUTE else ""
            logger.warning("customer %s: %s%s", self.hashed(customer_id), what, rest)


customers: Final = CustomerLog()
"""The process's own."""
hashed: Final = customers.hashed
