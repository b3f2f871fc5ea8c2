"""The log: lines on stderr, without stack traces."""

from __future__ import annotations

import logging
import sys

from service.settings import Settings


def start_log(settings: Settings) -> None:
    """Log to stderr; with several workers each line says which."""
    process = "%(process)d " if settings.workers > 1 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {process}%(levelname)s %(message)s"))
    handler.addFilter(without_trace)
    logging.basicConfig(level=settings.log_level, handlers=[handler])


def without_trace(record: logging.LogRecord) -> bool:
    """Name an error in place of its stack trace, which libraries log, and which may hold a customer's data."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args = f"{record.getMessage()} ({kind.__name__ if kind else 'no error'})", ()
        record.exc_info = record.exc_text = None
    return True
