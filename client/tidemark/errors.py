"""Errors of calls and of single customers, as the server describes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc
from tidemark.rpc import error_details_pb2, status_pb2

RETRIED: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""Codes that gRPC's own retries react to. grpcio's server answers CANCELLED to a call that arrives while it stops."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
HIDDEN_STATUS: Final = "Internal error from Core"
"""What grpc.aio reports, in place of the server's status, where a message is written while the server ends the call."""
_TOO_LARGE: Final = "larger than max"
"""Words of grpcio about a message that it refuses by itself, which no retry can change."""


@dataclass(frozen=True)
class Problem:
    """Why there is no answer.

    Attributes:
        code: Status code.
        reason: Code of the server in UPPER_SNAKE_CASE, such as ``CUSTOMER_UNKNOWN``. Where the server sent no details,
            the name of the status code.
        message: Explanation, with a way to correct the cause.
        field: The field of the request that is wrong, if one is.
        retry_after: Time after which another attempt may succeed, None if the server does not recommend one.
        customer_id: The customer that the problem is about, if it is about one.
        is_retryable: Whether the same call may succeed later.
        help_url: Address of the documentation's page about the reason, or its path in the documentation; None if the
            server did not send one.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    field: str | None = None
    retry_after: timedelta | None = None
    customer_id: str | None = None
    is_retryable: bool = False
    help_url: str | None = None


class CallFailedError(Exception):
    """A call failed.

    Attributes:
        problem: Why it failed.
    """

    def __init__(self, problem: Problem) -> None:
        """Wrap a problem."""
        page = f" ({problem.help_url})" if problem.help_url else ""
        super().__init__(f"{problem.code.name} {problem.reason}: {problem.message}{page}")
        self.problem: Final = problem

    @property
    def retry_after(self) -> timedelta | None:
        """Time after which another attempt may succeed, None if the server does not recommend one."""
        return self.problem.retry_after


def problem_of_status(status: status_pb2.Status, customer_id: str | None = None) -> Problem:
    """The problem that a google.rpc.Status describes.

    Args:
        status: A status with details, as the server sends them for a call or for a customer of a batch.
        customer_id: The customer that it is about, if any.

    Returns:
        The problem. A code that this version does not know becomes ``UNKNOWN``.
    """
    info, retry, pages = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.Help()
    retry_after = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(pages)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    return Problem(
        code=_CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        reason=info.reason,
        message=status.message,
        field=info.metadata.get("field"),
        retry_after=retry_after,
        customer_id=customer_id,
        is_retryable=retry_after is not None,
        help_url=pages.links[0].url if pages.links else None,
    )


def problem_of_error(error: grpc.RpcError, customer_id: str | None = None) -> Problem:
    """The problem that ended a call.

    Args:
        error: The error of grpcio, of a blocking or an asyncio call.
        customer_id: The customer that the call is about, if any.

    Returns:
        The problem, from the server's details if the error has them.
    """
    trailers: Any = error.trailing_metadata() or ()
    details = dict(trailers).get("grpc-status-details-bin")
    if details is not None:
        return problem_of_status(status_pb2.Status.FromString(details), customer_id)
    code, message = error.code(), error.details() or ""
    is_retryable = (code in RETRIED and _TOO_LARGE not in message) or message == HIDDEN_STATUS
    return Problem(code, code.name, message, customer_id=customer_id, is_retryable=is_retryable)


def call_failed(error: Any, customer_id: str | None = None) -> CallFailedError:
    """The error to raise for an error of grpcio."""
    return CallFailedError(problem_of_error(error, customer_id))


def events_missing(acknowledged: int, sent: int) -> Problem:
    """For a stream that ended before all of its messages were acknowledged."""
    message = f"the server acknowledged {acknowledged} of {sent} events: the others are sent again"
    return Problem(grpc.StatusCode.DATA_LOSS, "EVENTS_MISSING", message, is_retryable=True)
