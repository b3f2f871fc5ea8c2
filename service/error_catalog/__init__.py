"""The documentation of every reason: cause, fix, and an example that reproduces it. Servers do not import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from service.error_catalog.entry import TARGET, ErrorEntry
from service.error_catalog.events import EVENTS
from service.error_catalog.models import MODELS
from service.error_catalog.requests import REQUESTS
from service.error_catalog.server import SERVER

ERRORS: Final[Mapping[str, ErrorEntry]] = {**REQUESTS, **EVENTS, **MODELS, **SERVER}
"""By reason: those of calls and customers (:class:`service.errors.Reason`), and those of single events."""

__all__ = ["ERRORS", "TARGET", "ErrorEntry"]
