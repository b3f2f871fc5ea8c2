"""How calls end: answered, refused because of load, expired, or failed; each with a status code and a reason."""

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
"""Status codes by number. Written out, because importing grpc would take a sending process longer than all the rest."""
HTTP_CODES: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""The status codes that gRPC assigns to HTTP statuses of replies without a gRPC status."""

Headers = Iterable[tuple[bytes, bytes]]


class Kind(StrEnum):
    """What a call counts as in the totals."""

    ANSWERED = "answered"
    REFUSED = "refused"
    EXPIRED = "expired"
    FAILED = "failed"


KINDS: Final = {"OK": Kind.ANSWERED, "RESOURCE_EXHAUSTED": Kind.REFUSED, "DEADLINE_EXCEEDED": Kind.EXPIRED}


class Outcome(NamedTuple):
    """A status code, and the reason of its ErrorInfo. Lower-case reasons are the load generator's; empty means none."""

    code: str
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """What a call with this outcome counts as."""
        return KINDS.get(self.code, Kind.FAILED)


OK: Final = Outcome("OK")
NO_ANSWER: Final = Outcome("DEADLINE_EXCEEDED", "no answer by the deadline")
NO_CONNECTION: Final = Outcome("UNAVAILABLE", "no connection")
CONNECTION_LOST: Final = Outcome("UNAVAILABLE", "connection lost")
STREAM_RESET: Final = Outcome("UNAVAILABLE", "stream reset")
INCOMPLETE_MESSAGE: Final = Outcome("INTERNAL", "the reply is not one complete message")


def of_headers(status: int, headers: Headers) -> Outcome:
    """The outcome of a reply with this HTTP status, and these headers or trailers at its end."""
    by_name = dict(headers)
    number = by_name.get(b"grpc-status", b"")
    if not number.isdigit():
        return Outcome(CODES[HTTP_CODES.get(status, 2)], f"HTTP status {status} without a gRPC status")
    code = CODES[int(number)] if int(number) < len(CODES) else "UNKNOWN"
    return Outcome(code, _reason(by_name.get(b"grpc-status-details-bin", b"")))


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
