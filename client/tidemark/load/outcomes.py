"""How calls end: answered, refused for load, out of time, or failed, each with its code and reason."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from tidemark.rpc import error_details_pb2, status_pb2

CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""By their numbers. Not grpc's own: to import it takes a sender longer than to start."""
HTTP_CODES: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""What gRPC makes of an answer that is none of gRPC's."""

Headers = Iterable[tuple[bytes, bytes]]


class Kind(StrEnum):
    """What an outcome counts as."""

    ANSWERED = "answered"
    REFUSED = "refused"
    EXPIRED = "expired"
    FAILED = "failed"


KINDS: Final = {"OK": Kind.ANSWERED, "RESOURCE_EXHAUSTED": Kind.REFUSED, "DEADLINE_EXCEEDED": Kind.EXPIRED}


class Outcome(NamedTuple):
    """A status code and the reason of its ErrorInfo; in lower case a reason of ours, empty where there is none."""

    code: str
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """What it counts as."""
        return KINDS.get(self.code, Kind.FAILED)


OK: Final = Outcome("OK")
NO_ANSWER: Final = Outcome("DEADLINE_EXCEEDED", "no answer by the deadline")
NO_CONNECTION: Final = Outcome("UNAVAILABLE", "no connection")
CONNECTION_LOST: Final = Outcome("UNAVAILABLE", "connection lost")
STREAM_RESET: Final = Outcome("UNAVAILABLE", "stream reset")
NO_MESSAGE: Final = Outcome("INTERNAL", "the answer is no whole message")


def of_headers(status: int, headers: Headers) -> Outcome:
    """The outcome that the last headers of an answer tell, with the HTTP status of the first."""
    found = dict(headers)
    number = found.get(b"grpc-status", b"")
    if not number.isdigit():
        return Outcome(CODES[HTTP_CODES.get(status, 2)], f"HTTP status {status} without a gRPC status")
    code = CODES[int(number)] if int(number) < len(CODES) else "UNKNOWN"
    return Outcome(code, _reason(found.get(b"grpc-status-details-bin", b"")))


def of_status(status: status_pb2.Status) -> Outcome:
    """The outcome for one customer of a batch."""
    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in status.details if detail.Unpack(info)), "")
    return Outcome(CODES[status.code] if 0 <= status.code < len(CODES) else "UNKNOWN", reason)


def _reason(details: bytes) -> str:
    try:
        status = status_pb2.Status.FromString(binascii.a2b_base64(details + b"=" * (-len(details) % 4)))
    except (DecodeError, binascii.Error):
        return ""
    return of_status(status).reason
