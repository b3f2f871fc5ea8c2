"""Everything that can go wrong with a request, with its reason and status code. It knows no gRPC library."""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum
from typing import Final, Self

from feature_store.errors import ReadOnlyStoreError, StoreFullError, StoreUnavailableError

DOMAIN: Final = "tidemark"


class Code(IntEnum):
    """The canonical status codes (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CLOCK_TOLERANCE_S: Final = 0.02
"""A cancellation this close to the deadline counts as a timeout: the client's clock started earlier."""


def cancellation_code(left_s: float | None) -> Code:
    """The status code of a call that its client cancelled.

    Args:
        left_s: Seconds left until the call's deadline; None if it has no deadline.
    """
    return Code.CANCELLED if left_s is None or left_s > CLOCK_TOLERANCE_S else Code.DEADLINE_EXCEEDED


class Reason(StrEnum):
    """Why a request, or one customer of it, got no answer: the ``reason`` of its ErrorInfo, and the status code."""

    code: Code

    def __new__(cls, name: str, code: Code) -> Self:
        """Make a member whose value is its name."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.code = code
        return member

    REQUEST_MALFORMED = "REQUEST_MALFORMED", Code.INVALID_ARGUMENT
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE", Code.RESOURCE_EXHAUSTED
    CUSTOMER_ID_INVALID = "CUSTOMER_ID_INVALID", Code.INVALID_ARGUMENT
    TOO_MANY_CUSTOMERS = "TOO_MANY_CUSTOMERS", Code.INVALID_ARGUMENT
    TOO_MANY_EVENTS = "TOO_MANY_EVENTS", Code.INVALID_ARGUMENT
    TOO_MANY_EXPLAINED = "TOO_MANY_EXPLAINED", Code.INVALID_ARGUMENT
    ECONOMICS_INVALID = "ECONOMICS_INVALID", Code.INVALID_ARGUMENT
    MAX_FEATURE_AGE_INVALID = "MAX_FEATURE_AGE_INVALID", Code.INVALID_ARGUMENT
    ALLOW_STALE_INVALID = "ALLOW_STALE_INVALID", Code.INVALID_ARGUMENT
    CONSENT_MISSING = "CONSENT_MISSING", Code.INVALID_ARGUMENT
    MERGE_WITH_ITSELF = "MERGE_WITH_ITSELF", Code.INVALID_ARGUMENT
    CUSTOMER_UNKNOWN = "CUSTOMER_UNKNOWN", Code.NOT_FOUND
    CONSENT_WITHHELD = "CONSENT_WITHHELD", Code.PERMISSION_DENIED
    MERGE_CYCLE = "MERGE_CYCLE", Code.FAILED_PRECONDITION
    ALREADY_MERGED = "ALREADY_MERGED", Code.FAILED_PRECONDITION
    TOO_MANY_ALIASES = "TOO_MANY_ALIASES", Code.FAILED_PRECONDITION
    MODEL_VERSION_INVALID = "MODEL_VERSION_INVALID", Code.INVALID_ARGUMENT
    ROLLOUT_MISSING = "ROLLOUT_MISSING", Code.INVALID_ARGUMENT
    ROLLOUT_SHARE_INVALID = "ROLLOUT_SHARE_INVALID", Code.INVALID_ARGUMENT
    PAGE_SIZE_INVALID = "PAGE_SIZE_INVALID", Code.INVALID_ARGUMENT
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID", Code.INVALID_ARGUMENT
    MODEL_UNKNOWN = "MODEL_UNKNOWN", Code.NOT_FOUND
    MODEL_REFUSED = "MODEL_REFUSED", Code.FAILED_PRECONDITION
    ROLLOUT_FILE_INVALID = "ROLLOUT_FILE_INVALID", Code.FAILED_PRECONDITION
    REGISTRY_UNAVAILABLE = "REGISTRY_UNAVAILABLE", Code.UNAVAILABLE
    CONFLICT = "CONFLICT", Code.ABORTED
    ARCHIVE_BEHIND = "ARCHIVE_BEHIND", Code.RESOURCE_EXHAUSTED
    FEATURES_TOO_OLD = "FEATURES_TOO_OLD", Code.FAILED_PRECONDITION
    FEATURES_NOT_LOADED = "FEATURES_NOT_LOADED", Code.FAILED_PRECONDITION
    NOT_IN_CLUSTER = "NOT_IN_CLUSTER", Code.FAILED_PRECONDITION
    STATE_UNREADABLE = "STATE_UNREADABLE", Code.DATA_LOSS
    FEATURE_STORE_FULL = "FEATURE_STORE_FULL", Code.RESOURCE_EXHAUSTED
    FEATURE_STORE_UNAVAILABLE = "FEATURE_STORE_UNAVAILABLE", Code.UNAVAILABLE
    SERVER_STOPPING = "SERVER_STOPPING", Code.UNAVAILABLE
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT", Code.DEADLINE_EXCEEDED
    OVERLOADED = "OVERLOADED", Code.RESOURCE_EXHAUSTED
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING", Code.UNAUTHENTICATED
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID", Code.UNAUTHENTICATED
    SCOPE_MISSING = "SCOPE_MISSING", Code.PERMISSION_DENIED
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED", Code.RESOURCE_EXHAUSTED
    INTERNAL = "INTERNAL", Code.INTERNAL


RETRY_AFTER_S: Final = 0.5
"""The delay in RetryInfo unless it is known better: about the time in which health follows Redis."""
RETRIED: Final = (Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED)
"""Status codes after which another attempt may succeed."""
FINAL: Final = frozenset({Reason.MESSAGE_TOO_LARGE})
"""Reasons that another attempt cannot change, though their code is one of RETRIED."""
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The trailer that sets the delay of gRPC's own retries."""
NO_RETRY_MS: Final = -1
"""The delay that forbids a retry."""


class RequestError(Exception):
    """A request, or one of its customers, cannot be served.

    Attributes:
        reason: Why.
        message: What is wrong and how to fix it; never whose data it is.
        field: The field of the request that is wrong; None if it is no single field.
    """

    def __init__(self, reason: Reason, message: str, field: str | None = None, *, retry_s: float | None = None) -> None:
        """Make an error.

        Args:
            reason: Why the request cannot be served.
            message: What is wrong and how to fix it.
            field: The field of the request that is wrong.
            retry_s: Seconds after which another attempt may succeed, if that is known better than by the status code.
        """
        super().__init__(message)
        self.reason: Final = reason
        self.message: Final = message
        self.field: Final = field
        self._retry_s: Final = retry_s

    @property
    def code(self) -> Code:
        """The status code of the reason."""
        return self.reason.code

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which another attempt may succeed; None if it cannot."""
        if self._retry_s is not None:
            return self._retry_s
        return RETRY_AFTER_S if self.code in RETRIED and self.reason not in FINAL else None

    @property
    def pushback_ms(self) -> int | None:
        """The pushback for gRPC's own retries: the wait in milliseconds, -1 for no retry, None for their own pace.

        Only a server with too much to do sets their pace: a feature store may be back sooner than RetryInfo says, and
        a call that meets a stopping server can go to another one at once.
        """
        if self.reason in FINAL:
            return NO_RETRY_MS
        retry_s = self.retry_after_s if self.code is Code.RESOURCE_EXHAUSTED else None
        return None if retry_s is None else max(1, math.ceil(retry_s * 1000))


class QuotaExceededError(RequestError):
    """A caller has used up its quota.

    Attributes:
        caller: The caller's name.
    """

    def __init__(self, caller: str, message: str, wait_s: float) -> None:
        """``wait_s``: seconds until the same call is within the quota, if the caller makes no other call."""
        super().__init__(Reason.QUOTA_EXCEEDED, message, retry_s=wait_s)
        self.caller: Final = caller


def message_too_large(size: str, max_bytes: int) -> RequestError:
    """For a request of ``size`` bytes where at most ``max_bytes`` are accepted. The words are those of grpcio."""
    text = f"SERVER: Received message larger than max ({size} vs. {max_bytes})"
    return RequestError(Reason.MESSAGE_TOO_LARGE, text)


def server_stopping() -> RequestError:
    """The error of calls that are still running when a server or a connection ends."""
    return RequestError(Reason.SERVER_STOPPING, "the server is stopping: call again, events with the same ids")


def store_error(error: StoreUnavailableError, advice: str = "try again shortly") -> RequestError:
    """The error of a call that the feature store did not answer, or refused to write for.

    Args:
        error: The failure of the feature store.
        advice: What the caller should do.
    """
    if isinstance(error, StoreFullError):
        message = "the feature store has no memory left for writes: give Redis more, or erase what is not needed"
        return RequestError(Reason.FEATURE_STORE_FULL, message)
    if isinstance(error, ReadOnlyStoreError):
        message = f"the feature store takes no writes just now: {advice}"
        return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, message)
    return RequestError(Reason.FEATURE_STORE_UNAVAILABLE, f"the feature store does not answer: {advice}")


def not_in_cluster() -> RequestError:
    """The error of an operation that a Redis cluster cannot do atomically."""
    message = "the features are in a Redis cluster, which takes loads, consent and deletions only: use a single Redis"
    return RequestError(Reason.NOT_IN_CLUSTER, message)
