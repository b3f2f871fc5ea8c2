"""Times and durations of messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS_PER_S: Final = 10**9
_MAX_DURATION_S: Final = 315_576_000_000
"""The range of google.protobuf.Duration."""


def timestamp(moment: datetime) -> Timestamp:
    """A time as a message; a naive one is UTC."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def duration(seconds: float) -> Duration:
    """A duration as a message.

    A number that no duration can have becomes -1 s: then the server rejects this event, and not the client all of them.
    """
    try:
        whole, nanos = divmod(round(seconds * _NANOS_PER_S), _NANOS_PER_S)
    except (OverflowError, ValueError):
        return Duration(seconds=-1)
    return Duration(seconds=whole, nanos=nanos) if 0 <= whole <= _MAX_DURATION_S else Duration(seconds=-1)


def moment(message: Timestamp) -> datetime:
    """A time in UTC."""
    return message.ToDatetime(UTC)


def moment_or_none(message: Any, field: str) -> datetime | None:
    """The time in a field of a message, None where it is not set."""
    return moment(getattr(message, field)) if message.HasField(field) else None
