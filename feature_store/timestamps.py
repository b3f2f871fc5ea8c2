"""Times as text, all in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_text(seconds: float) -> str:
    """Unix seconds for people: ``2017-12-31 18:00:00 UTC``."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def utc_date(seconds: float) -> str:
    """The day of unix seconds: ``2017-12-31``."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def iso8601(seconds: float) -> str:
    """Unix seconds for programs: ``2017-12-31T18:00:00+00:00``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
