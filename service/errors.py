"""Everything that can go wrong with a request, and the one table from reason to status code.

The numbers are the canonical codes of google.rpc.Code; nothing here knows of gRPC.
"""

from __future__ import annotations

import math
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
    UNAUTHENTICATED = 16


LAST_S: Final = 0.02
"""A client that gives up so shortly before its deadline has reached it: it counts from the other end of the wire."""


def cancellation_code(left_s: float | None) -> Code:
    """The code of a call that its client waits for no longer, so many seconds (None: any) before the deadline."""
    return Code.CANCELLED if left_s is None or left_s > LAST_S else Code.DEADLINE_EXCEEDED


class Reason(StrEnum):
    """Why a request, or one customer of it, got no answer: the ``reason`` of its ErrorInfo."""

    REQUEST_MALFORMED = "REQUEST_MALFORMED"
    CUSTOMER_ID_INVALID = "CUSTOMER_ID_INVALID"
    TOO_MANY_CUSTOMERS = "TOO_MANY_CUSTOMERS"
    TOO_MANY_EVENTS = "TOO_MANY_EVENTS"
    EXPLAIN_TOO_MANY = "EXPLAIN_TOO_MANY"
    ECONOMICS_INVALID = "ECONOMICS_INVALID"
    MAX_FEATURE_AGE_INVALID = "MAX_FEATURE_AGE_INVALID"
    ALLOW_STALE_INVALID = "ALLOW_STALE_INVALID"
    CONSENT_MISSING = "CONSENT_MISSING"
    MERGE_WITH_ITSELF = "MERGE_WITH_ITSELF"
    CUSTOMER_UNKNOWN = "CUSTOMER_UNKNOWN"
    CONSENT_WITHHELD = "CONSENT_WITHHELD"
    MERGE_CYCLE = "MERGE_CYCLE"
    ALREADY_MERGED = "ALREADY_MERGED"
    TOO_MANY_ALIASES = "TOO_MANY_ALIASES"
    MODEL_VERSION_INVALID = "MODEL_VERSION_INVALID"
    ROLLOUT_SHARE_INVALID = "ROLLOUT_SHARE_INVALID"
    MODEL_UNKNOWN = "MODEL_UNKNOWN"
    MODEL_REFUSED = "MODEL_REFUSED"
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE"
    CONFLICT = "CONFLICT"
    ARCHIVE_BEHIND = "ARCHIVE_BEHIND"
    FEATURES_TOO_OLD = "FEATURES_TOO_OLD"
    FEATURES_NOT_LOADED = "FEATURES_NOT_LOADED"
    NOT_IN_CLUSTER = "NOT_IN_CLUSTER"
    STATE_UNREADABLE = "STATE_UNREADABLE"
    FEATURE_STORE_FULL = "FEATURE_STORE_FULL"
    FEATURE_STORE_UNAVAILABLE = "FEATURE_STORE_UNAVAILABLE"
    SERVER_STOPPING = "SERVER_STOPPING"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    OVERLOADED = "OVERLOADED"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    SCOPE_MISSING = "SCOPE_MISSING"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    INTERNAL = "INTERNAL"


CODES: Final = {
    Reason.REQUEST_MALFORMED: Code.INVALID_ARGUMENT,
    Reason.CUSTOMER_ID_INVALID: Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_CUSTOMERS: Code.INVALID_ARGUMENT,
    Reason.TOO_MANY_EVENTS: Code.INVALID_ARGUMENT,
    Reason.EXPLAIN_TOO_MANY: Code.INVALID_ARGUMENT,
    Reason.ECONOMICS_INVALID: Code.INVALID_ARGUMENT,
    Reason.MAX_FEATURE_AGE_INVALID: Code.INVALID_ARGUMENT,
    Reason.ALLOW_STALE_INVALID: Code.INVALID_ARGUMENT,
    Reason.CONSENT_MISSING: Code.INVALID_ARGUMENT,
    Reason.MERGE_WITH_ITSELF: Code.INVALID_ARGUMENT,
    Reason.CUSTOMER_UNKNOWN: Code.NOT_FOUND,
    Reason.CONSENT_WITHHELD: Code.PERMISSION_DENIED,
    Reason.MERGE_CYCLE: Code.FAILED_PRECONDITION,
    Reason.ALREADY_MERGED: Code.FAILED_PRECONDITION,
    Reason.TOO_MANY_ALIASES: Code.FAILED_PRECONDITION,
    Reason.MODEL_VERSION_INVALID: Code.INVALID_ARGUMENT,
    Reason.ROLLOUT_SHARE_INVALID: Code.INVALID_ARGUMENT,
    Reason.MODEL_UNKNOWN: Code.NOT_FOUND,
    Reason.MODEL_REFUSED: Code.FAILED_PRECONDITION,
    Reason.REGISTRY_UNAVAILABLE: Code.FAILED_PRECONDITION,
    Reason.CONFLICT: Code.ABORTED,
    Reason.ARCHIVE_BEHIND: Code.RESOURCE_EXHAUSTED,
    Reason.FEATURES_TOO_OLD: Code.FAILED_PRECONDITION,
    Reason.FEATURES_NOT_LOADED: Code.FAILED_PRECONDITION,
    Reason.NOT_IN_CLUSTER: Code.FAILED_PRECONDITION,
    Reason.STATE_UNREADABLE: Code.DATA_LOSS,
    Reason.FEATURE_STORE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.FEATURE_STORE_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.SERVER_STOPPING: Code.UNAVAILABLE,
    Reason.DEADLINE_TOO_SHORT: Code.DEADLINE_EXCEEDED,
    Reason.OVERLOADED: Code.RESOURCE_EXHAUSTED,
    Reason.CREDENTIALS_MISSING: Code.UNAUTHENTICATED,
    Reason.CREDENTIALS_INVALID: Code.UNAUTHENTICATED,
    Reason.SCOPE_MISSING: Code.PERMISSION_DENIED,
    Reason.QUOTA_EXCEEDED: Code.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: Code.INTERNAL,
}

RETRY_AFTER_S: Final = 0.5
"""What RetryInfo says with UNAVAILABLE: about the time in which health follows Redis."""
RETRIED: Final = (Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED)
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The trailer that tells them."""


class RequestError(Exception):
    """A request, or one of its customers, cannot be served.

    ``message`` says what is wrong and how to mend it, never whose data it is; ``field`` names the request's field.
    ``retry_s``: seconds after which trying again may help, where that is known better than by the code.
    """

    def __init__(self, reason: Reason, message: str, field: str | None = None, *, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: Final = reason
        self.message: Final = message
        self.field: Final = field
        self._retry_s: Final = retry_s

    @property
    def code(self) -> Code:
        """Status code of the reason."""
        return CODES[self.reason]

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which trying again may help, None where it does not."""
        if self._retry_s is not None:
            return self._retry_s
        return RETRY_AFTER_S if self.code in RETRIED else None

    @property
    def pushback_ms(self) -> int | None:
        """The same for gRPC's own retries where the server has had too much, None where they keep to their own pace.

        What is away may be back sooner, and beside a server that stops there is another one.
        """
        retry_s = self.retry_after_s if self.code is Code.RESOURCE_EXHAUSTED else None
        return None if retry_s is None else max(1, math.ceil(retry_s * 1000))


def server_stopping() -> RequestError:
    """For what still runs when a server, or a connection, ends."""
    return RequestError(Reason.SERVER_STOPPING, "the server is stopping: call again, events with the same ids")


class QuotaExceededError(RequestError):
    """A caller has used up what it may have for now; ``caller`` is its name, and trying again helps after a while."""

    def __init__(self, caller: str, message: str, wait_s: float) -> None:
        """``wait_s``: until a call as large as this one is within the quota, if nothing else is called meanwhile."""
        super().__init__(Reason.QUOTA_EXCEEDED, message, retry_s=wait_s)
        self.caller: Final = caller
