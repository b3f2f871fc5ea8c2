"""Every reason has one status code, and every error tells the caller what to do."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from tidemark.rpc import error_details_pb2, status_pb2

from service.api.status import encoded_status
from service.error_pages import ERROR_PAGES
from service.errors import Code, Reason, RequestError, message_too_large
from service.transport.grpcio.server import GRPC_CODES

TABLE = {
    "REQUEST_MALFORMED": "INVALID_ARGUMENT",
    "CUSTOMER_ID_INVALID": "INVALID_ARGUMENT",
    "TOO_MANY_CUSTOMERS": "INVALID_ARGUMENT",
    "TOO_MANY_EVENTS": "INVALID_ARGUMENT",
    "MESSAGE_TOO_LARGE": "RESOURCE_EXHAUSTED",
    "TOO_MANY_EXPLAINED": "INVALID_ARGUMENT",
    "ECONOMICS_INVALID": "INVALID_ARGUMENT",
    "MAX_FEATURE_AGE_INVALID": "INVALID_ARGUMENT",
    "CONSENT_MISSING": "INVALID_ARGUMENT",
    "MERGE_WITH_ITSELF": "INVALID_ARGUMENT",
    "ALLOW_STALE_INVALID": "INVALID_ARGUMENT",
    "FEATURES_NOT_LOADED": "FAILED_PRECONDITION",
    "NOT_IN_CLUSTER": "FAILED_PRECONDITION",
    "FEATURE_STORE_FULL": "RESOURCE_EXHAUSTED",
    "CUSTOMER_UNKNOWN": "NOT_FOUND",
    "CONSENT_WITHHELD": "PERMISSION_DENIED",
    "MERGE_CYCLE": "FAILED_PRECONDITION",
    "ALREADY_MERGED": "FAILED_PRECONDITION",
    "TOO_MANY_ALIASES": "FAILED_PRECONDITION",
    "MODEL_VERSION_INVALID": "INVALID_ARGUMENT",
    "ROLLOUT_SHARE_INVALID": "INVALID_ARGUMENT",
    "MODEL_UNKNOWN": "NOT_FOUND",
    "MODEL_REFUSED": "FAILED_PRECONDITION",
    "ROLLOUT_MISSING": "INVALID_ARGUMENT",
    "PAGE_SIZE_INVALID": "INVALID_ARGUMENT",
    "PAGE_TOKEN_INVALID": "INVALID_ARGUMENT",
    "ROLLOUT_FILE_INVALID": "FAILED_PRECONDITION",
    "REGISTRY_UNAVAILABLE": "UNAVAILABLE",
    "CONFLICT": "ABORTED",
    "ARCHIVE_BEHIND": "RESOURCE_EXHAUSTED",
    "FEATURES_TOO_OLD": "FAILED_PRECONDITION",
    "STATE_UNREADABLE": "DATA_LOSS",
    "FEATURE_STORE_UNAVAILABLE": "UNAVAILABLE",
    "SERVER_STOPPING": "UNAVAILABLE",
    "DEADLINE_TOO_SHORT": "DEADLINE_EXCEEDED",
    "OVERLOADED": "RESOURCE_EXHAUSTED",
    "CREDENTIALS_MISSING": "UNAUTHENTICATED",
    "CREDENTIALS_INVALID": "UNAUTHENTICATED",
    "SCOPE_MISSING": "PERMISSION_DENIED",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "INTERNAL": "INTERNAL",
}


def status(error: RequestError) -> status_pb2.Status:
    return status_pb2.Status.FromString(encoded_status(error))


def test_the_table_covers_every_reason() -> None:
    assert {reason.value for reason in Reason} == set(TABLE)


def test_the_comments_of_the_contract_list_every_reason_with_its_code() -> None:
    files = (Path(__file__).parents[3] / "protos" / "tidemark" / "v1").glob("*.proto")
    codes = "|".join(code.name for code in grpc.StatusCode)
    comments = "".join(path.read_text() for path in files)
    listed = set(re.findall(rf"^//   ({codes}) +([A-Z_]+) ", comments, re.MULTILINE))
    assert listed == {(code, reason) for reason, code in TABLE.items()}


def test_every_status_code_of_grpc_is_there() -> None:
    assert {code.value: code.name for code in Code} == {code.value[0]: code.name for code in grpc.StatusCode}


@pytest.mark.parametrize(("reason", "code"), TABLE.items())
def test_a_reason_maps_to_its_code(reason: str, code: str) -> None:
    result = RequestError(Reason[reason], "what and how to fix it").code
    assert result.name == code
    assert GRPC_CODES[result.value] is getattr(grpc.StatusCode, code)


def test_a_delay_of_its_own_is_told_to_callers_and_to_the_retries_of_grpc() -> None:
    error = RequestError(Reason.OVERLOADED, "later", retry_s=1.25)
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status(error).details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == pytest.approx(1.25)
    assert error.pushback_ms == 1250
    usual = RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "later")
    assert usual.retry_after_s is not None
    assert usual.pushback_ms is None  # its retries go at their own pace
    assert RequestError(Reason.CONFLICT, "again").pushback_ms is None
    assert RequestError(Reason.CUSTOMER_UNKNOWN, "who").pushback_ms is None


@pytest.mark.parametrize("reason", list(Reason))
def test_a_status_carries_one_error_info_and_says_when_to_retry(reason: Reason) -> None:
    result = status(RequestError(reason, "what and how to fix it", "customer_id"))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    infos = [detail for detail in result.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    infos[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason.value, "tidemark", {"field": "customer_id"})
    retries = [detail for detail in result.details if detail.Unpack(retry)]
    may_help = result.code in {Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED}
    assert bool(retries) == (may_help and reason is not Reason.MESSAGE_TOO_LARGE)
    if retries:
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 5


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("docs_url", ["", "https://docs.shop.example", "https://docs.shop.example/"])
def test_every_error_links_to_the_page_of_its_reason(
    reason: Reason, docs_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ERROR_PAGES, "site", "")
    ERROR_PAGES.use(docs_url)
    pages = error_details_pb2.Help()
    unpacked = [detail for detail in status(RequestError(reason, "what is wrong")).details if detail.Unpack(pages)]
    assert len(unpacked) == 1
    site = "https://docs.shop.example/" if docs_url else ""
    assert [link.url for link in pages.links] == [f"{site}reference/errors/{reason.lower().replace('_', '-')}.html"]


@pytest.mark.parametrize("reason", list(Reason))
def test_an_invalid_argument_names_its_field_as_other_tools_expect_it(reason: Reason) -> None:
    result = status(RequestError(reason, "what is wrong", "customer_id"))
    request = error_details_pb2.BadRequest()
    requests = [detail for detail in result.details if detail.Unpack(request)]
    assert len(requests) == (result.code == Code.INVALID_ARGUMENT)
    assert [(wrong.field, wrong.description) for wrong in request.field_violations] == [
        ("customer_id", "what is wrong")
    ] * len(requests)


def test_a_message_that_is_too_large_is_never_sent_again() -> None:
    error = message_too_large("2048", 1024)
    assert (error.code, error.retry_after_s, error.pushback_ms) == (Code.RESOURCE_EXHAUSTED, None, -1)


def test_the_batch_of_a_customer_names_the_field_of_the_batch() -> None:
    error = RequestError(Reason.CUSTOMER_ID_INVALID, "empty", "customer_id")
    assert b"customer_ids" in encoded_status(error, "customer_ids")
    assert encoded_status(error, "customer_ids") is encoded_status(error, "customer_ids")
