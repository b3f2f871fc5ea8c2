"""Errors as the contract has them: an encoded google.rpc.Status, the same for a whole call and for one customer."""

from __future__ import annotations

from functools import lru_cache

from tidemark.rpc import error_details_pb2, status_pb2

from service.api.messages import duration
from service.error_pages import ERROR_PAGES
from service.errors import DOMAIN, Code, QuotaExceededError, Reason, RequestError


def encoded_status(error: RequestError, field: str | None = None) -> bytes:
    """Encode the google.rpc.Status of an error.

    Args:
        error: What went wrong.
        field: The wrong field of the request, where it is not ``error.field``. A batch names ``customer_ids``: its
            results are in the order of the ids, so the position of an id need not be repeated here.

    Returns:
        The bytes of a Status with an ErrorInfo. A BadRequest follows where the caller can correct a field, a RetryInfo
        where another attempt may succeed, and a QuotaFailure where a quota is used up. The last detail is a Help with
        the address of the documentation's page about the reason.
    """
    caller = error.caller if isinstance(error, QuotaExceededError) else None
    # The waiting time of a quota differs from call to call. All other errors are few, whatever the number of customers.
    encode = _encoded if caller is None else _encoded.__wrapped__
    address = ERROR_PAGES.address(error.reason)
    return encode(error.code, error.reason, error.message, field or error.field, error.retry_after_s, caller, address)


@lru_cache(maxsize=1024)
def _encoded_help(address: str) -> bytes:
    """The field of a Status with a Help that links to a page. Encoded messages may be joined field by field."""
    result = status_pb2.Status()
    link = error_details_pb2.Help.Link(description="Cause and fix", url=address)
    result.details.add().Pack(error_details_pb2.Help(links=[link]))
    return bytes(result.SerializeToString())


@lru_cache(maxsize=1024)
def _encoded(
    code: Code,
    reason: Reason,
    message: str,
    field: str | None,
    retry_after_s: float | None,
    caller: str | None,
    address: str,
) -> bytes:
    result = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"field": field} if field else None)
    result.details.add().Pack(info)
    if field is not None and code is Code.INVALID_ARGUMENT:
        wrong = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        result.details.add().Pack(error_details_pb2.BadRequest(field_violations=[wrong]))
    if retry_after_s is not None:
        result.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration(retry_after_s)))
    if caller is not None:
        violation = error_details_pb2.QuotaFailure.Violation(subject=caller, description=message)
        result.details.add().Pack(error_details_pb2.QuotaFailure(violations=[violation]))
    return bytes(result.SerializeToString()) + _encoded_help(address)
