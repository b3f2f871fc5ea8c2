"""Everything that can go wrong with a request, and the one table from reason to status code.

The numbers are the canonical codes of google.rpc.Code; nothing here knows of gRPC.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

DOMAIN: Final = "tidemark"


class Code(IntEnum):
    """Canonical status codes in use (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


LAST_S: Final = 0.02
"""A client that gives up so shortly before its deadline has reached it: it counts from the other end of the wire."""


def given_up(left_s: float | None) -> Code:
    """The code of a call that its client waits for no longer, so many seconds (None: any) before the deadline."""
    return Code.CANCELLED if left_s is None or left_s > LAST_S else Code.DEADLINE_EXCEEDED


class Reason(StrEnum):
    """Why a request, or one customer of it, got no answer: the ``reason`` of its ErrorInfo."""

    REQUEST_MALFORMED = "REQUEST_MALFORMED"
    CUSTOMER_ID_INVALID = "CUSTOMER_ID_INVALID"
    TOO_MANY_CUSTOMERS = "TOO_MANY_CUSTOMERS"
    TOO_MANY_EVENTS = "TOO_MANY_EVENTS"
    ECONOMICS_INVALID = "ECONOMICS_INVALID"
    MAX_FEATURE_AGE_INVALID = "MAX_FEATURE_AGE_INVALID"
    CONSENT_MISSING = "CONSENT_MISSING"
    MERGE_WITH_ITSELF = "MERGE_WITH_ITSELF"
    CUSTOMER_UNKNOWN = "CUSTOMER_UNKNOWN"
    CONSENT_WITHHELD = "CONSENT_WITHHELD"
    MERGE_CYCLE = "MERGE_CYCLE"
    ALREADY_MERGED = "ALREADY_MERGED"
    TOO_MANY_ALIASES = "TOO_MANY_ALIASES"
    CONFLICT = "CONFLICT"
    ARCHIVE_BEHIND = "ARCHIVE_BEHIND"
    FEATURES_TOO_OLD = "FEATURES_TOO_OLD"
    STATE_UNREADABLE = "STATE_UNREADABLE"
    FEATURE_STORE_UNAVAILABLE = "FEATURE_STORE_UNAVAILABLE"
    INTERNAL = "INTERNAL"


CODES: Final = {
    Reason.REQUEST_MALFORMED: Code.INVALID_ARGUMENT,
    Reason.CUSTOMER_ID_INVALID: Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_CUSTOMERS: Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_EVENTS: Code.INVALID_ARGUMENT,
    Reason.ECONOMICS_INVALID: Code.INVALID_ARGUMENT,
    Reason.MAX_FEATURE_AGE_INVALID: Code.INVALID_ARGUMENT,
    Reason.CONSENT_MISSING: Code.INVALID_ARGUMENT,
    Reason.MERGE_WITH_ITSELF: Code.INVALID_ARGUMENT,
    Reason.CUSTOMER_UNKNOWN: Code.NOT_FOUND,
    Reason.CONSENT_WITHHELD: Code.PERMISSION_DENIED,
    Reason.MERGE_CYCLE: Code.FAILED_PRECONDITION,
    Reason.ALREADY_MERGED: Code.FAILED_PRECONDITION,
    Reason.TOO_MANY_ALIASES: Code.FAILED_PRECONDITION,
    Reason.CONFLICT: Code.ABORTED,
    Reason.ARCHIVE_BEHIND: Code.RESOURCE_EXHAUSTED,
    Reason.FEATURES_TOO_OLD: Code.FAILED_PRECONDITION,
    Reason.STATE_UNREADABLE: Code.DATA_LOSS,
    Reason.FEATURE_STORE_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.INTERNAL: Code.INTERNAL,
}

RETRY_AFTER_S: Final = 0.5
"""What RetryInfo says with UNAVAILABLE: about the time in which health follows Redis."""
RETRIED: Final = (Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED)


class RequestError(Exception):
    """A request, or one of its customers, cannot be served.

    ``message`` says what is wrong and how to mend it, never whose data it is; ``field`` names the request's field.
    """

    def __init__(self, reason: Reason, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.reason: Final = reason
        self.message: Final = message
        self.field: Final = field

    @property
    def code(self) -> Code:
        """Status code of the reason."""
        return CODES[self.reason]

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which trying again may help, None where it does not."""
        return RETRY_AFTER_S if self.code in RETRIED else None
