"""What the messages of all services have in common: parsing, ids, and times."""

from __future__ import annotations

import math
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from feature_store.definitions import MAX_ID_BYTES
from feature_store.state.events import text_fault
from service.errors import Reason, RequestError

MAX_NANOS: Final = 999_999_999
MAX_DURATION_S: Final = 315_576_000_000
"""The range of google.protobuf.Duration, which is about 10,000 years."""
_NANOS_PER_S: Final = 1e9


def parsed(kind: Any, data: bytes) -> Any:
    """Parse the message of a request.

    Args:
        kind: Class of the message.
        data: Its encoded bytes.

    Returns:
        The message.

    Raises:
        RequestError: The bytes are not such a message (REQUEST_MALFORMED).
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        message = f"the request is not a {kind.DESCRIPTOR.full_name}: build it from the published proto files"
        raise RequestError(Reason.REQUEST_MALFORMED, message) from error


def id_error(customer_id: str, field: str) -> RequestError | None:
    """What is wrong with the id in ``field``, None for a valid id. The message never repeats the id."""
    if (fault := text_fault(customer_id, MAX_ID_BYTES)) is None:
        return None
    message = f"the customer id {fault}: send 1 to {MAX_ID_BYTES} bytes of printable text"
    return RequestError(Reason.CUSTOMER_ID_INVALID, message, field)


def timestamp(seconds: float) -> Timestamp:
    """A time in finite unix seconds as a message."""
    whole, fraction = divmod(seconds, 1)
    return Timestamp(seconds=int(whole), nanos=int(fraction * _NANOS_PER_S))


def timestamp_or_none(seconds: float) -> Timestamp | None:
    """A time in unix seconds as a message, None where it is not finite."""
    return timestamp(seconds) if math.isfinite(seconds) else None


def timestamp_s(moment: Timestamp) -> float:
    """A time in unix seconds; not a number where its nanoseconds are out of range."""
    return moment.seconds + moment.nanos / _NANOS_PER_S if 0 <= moment.nanos <= MAX_NANOS else math.nan


def duration(seconds: float) -> Duration:
    """A duration of zero or more seconds as a message."""
    whole, fraction = divmod(seconds, 1)
    return Duration(seconds=int(whole), nanos=int(fraction * _NANOS_PER_S))


def duration_s(length: Duration) -> float:
    """A duration of zero or more in seconds; not a number where it is negative or out of range."""
    if 0 <= length.seconds <= MAX_DURATION_S and 0 <= length.nanos <= MAX_NANOS:
        return length.seconds + length.nanos / _NANOS_PER_S
    return math.nan
