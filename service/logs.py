"""The log: lines on stderr, as text or JSON, without stack traces."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from service.settings import Settings

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


def without_trace(record: logging.LogRecord) -> bool:
    """Name an error in place of its stack trace, which libraries log, and which may hold a customer's data."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"{record.getMessage()} ({kind.__name__ if kind else 'no error'})", ()
        record.exc_info = record.exc_text = None
    return True
