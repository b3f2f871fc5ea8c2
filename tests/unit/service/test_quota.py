"""A bucket never gives more than its rate allows, never less than it has, and always tells a wait that is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import customers_pb2, events_pb2, scoring_pb2

from feature_store.definitions import Interests
from feature_store.state.events import Event
from service.api import events as convert_events
from service.api import scoring as convert
from service.api.customers import Customers
from service.api.methods import Handlers, handlers
from service.api.models import Models
from service.api.scoring import METHODS
from service.api.status import encoded_status
from service.auth.quota import MAX_WAITING_STREAMS, Bucket
from service.batching.event_batcher import RecordingResult
from service.call_context import CallContext
from service.errors import Code, QuotaExceededError, Reason, RequestError
from service.scoring.types import ScoreRequest
from service.transport.call_error import call_error
from service.transport.lean.call_types import Score

SLACK = 1e-6
RECORD = f"/{convert_events.SERVICE}/RecordEvents"
STREAM = f"/{convert_events.SERVICE}/StreamEvents"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def bucket(rate: float = 10.0, burst: float = 20.0) -> tuple[Bucket, Clock]:
    clock = Clock()
    return Bucket("shop", rate, burst, clock), clock


calls = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 1000)), max_size=60)
rates = st.floats(0.01, 1e5)


@given(calls, rates, rates)
def test_over_any_time_no_more_is_given_than_rate_and_burst_allow(
    asked: Sequence[tuple[float, int]], rate: float, burst: float
) -> None:
    result, clock = bucket(rate, burst)
    given_at: list[tuple[float, int]] = []
    for pause, units in asked:
        clock.now += pause
        if not result.take(units):
            given_at.append((clock.now, units))
    for first, (start, _) in enumerate(given_at):
        total = 0
        for end, units in given_at[first:]:
            total += units
            most = rate * (end - start) + max(burst, units + burst - min(units, burst))
            assert total <= most * (1 + SLACK) + SLACK


@given(calls, rates, rates)
def test_after_the_wait_that_was_told_the_same_call_passes_and_just_before_it_does_not(
    asked: Sequence[tuple[float, int]], rate: float, burst: float
) -> None:
    result, clock = bucket(rate, burst)
    for pause, units in asked:
        clock.now += pause
        if wait_s := result.take(units):
            began = clock.now
            clock.now = began + wait_s * 0.99
            if clock.now < began + wait_s:
                assert result.take(units) > 0
            clock.now = began + wait_s * 1.001 + SLACK
            assert result.take(units) == 0


@given(rates, rates, st.integers(1, 1000))
def test_a_full_bucket_gives_whatever_is_asked_and_what_was_too_much_is_owed(
    rate: float, burst: float, units: int
) -> None:
    result, clock = bucket(rate, burst)
    assert result.take(units) == 0
    clock.now += max(0.0, units - burst) / rate * 0.99
    if units > burst * 1.1:
        assert result.take(1) > 0


def test_time_that_goes_by_fills_it_no_further_than_the_burst() -> None:
    result, clock = bucket(rate=10, burst=20)
    clock.now += 1e6
    assert result.take(20) == 0
    assert result.take(1) == pytest.approx(0.1)


# --- methods that take from it --------------------------------------------------------------------------------------


def score_request(count: int) -> bytes:
    return scoring_pb2.BatchScoreCustomersRequest(customer_ids=[f"c{n}" for n in range(count)]).SerializeToString()


def events_request(count: int) -> bytes:
    event = events_pb2.Event(customer_id="c", event_type="visit")
    return events_pb2.RecordEventsRequest(events=[event] * count).SerializeToString()


class FakeBatcher:
    """Takes what is submitted and answers nothing."""

    def __init__(self) -> None:
        self.submitted: list[int] = []

    def submit(self, part: ScoreRequest, *_: object) -> None:
        self.submitted.append(len(part.customer_ids))


def test_scores_take_one_for_each_customer_and_bad_requests_nothing() -> None:
    tokens, _ = bucket(rate=10, burst=300)
    batcher = FakeBatcher()
    stream, connection = SimpleNamespace(headers={}), SimpleNamespace(expect_batch=lambda _call: None)
    method = METHODS[f"/{convert.SERVICE}/BatchScoreCustomers"]

    def call(request: bytes) -> None:
        context = CallContext(quota=tokens)
        Score(cast("Any", batcher), method, cast("Any", connection), cast("Any", stream), context, 0.0).answer(request)

    with pytest.raises(RequestError, match="not a"):
        call(b"\xff")
    call(score_request(256))
    with pytest.raises(QuotaExceededError) as caught:
        call(score_request(256))
    assert caught.value.retry_after_s == pytest.approx((256 - 44) / 10)
    call(score_request(44))
    assert batcher.submitted == [256, 44]


class FakeRecorder:
    """Accepts all events."""

    def __init__(self) -> None:
        self.recorded: list[int] = []

    def admit(self, _context: CallContext) -> None:
        """Accept the call."""

    async def record(self, events: Sequence[Event], _context: CallContext) -> RecordingResult:
        self.recorded.append(len(events))
        return RecordingResult(accepted=len(events))


async def nothing(*_: object) -> None:
    """Do nothing."""


def handlers_on(recorder: FakeRecorder) -> Handlers:
    watch = SimpleNamespace(loader=SimpleNamespace(in_thread=nothing_found), router=SimpleNamespace(model_set=None))
    customers = Customers(cast("Any", SimpleNamespace(erase=nothing)), Interests())
    return handlers(cast("Any", recorder), customers, Models(cast("Any", watch)))


async def nothing_found(*_: object) -> tuple[list[object], bool]:
    return [], False


def test_events_take_one_each_customers_one_and_models_nothing() -> None:
    tokens, _ = bucket(rate=10, burst=10)
    recorder = FakeRecorder()
    unary, context = handlers_on(recorder).unary, CallContext(quota=tokens)
    delete, listing = "/tidemark.v1.CustomerService/DeleteCustomer", "/tidemark.v1.ModelService/ListModels"
    one_customer = customers_pb2.DeleteCustomerRequest(customer_id="c").SerializeToString()

    async def work() -> None:
        await unary[RECORD](events_request(9), context)
        await unary[delete](one_customer, context)
        for path, request in ((RECORD, events_request(1)), (delete, one_customer)):
            with pytest.raises(QuotaExceededError):
                await unary[path](request, context)
        await unary[listing](b"", context)
        assert recorder.recorded == [9]

    asyncio.run(work())


def test_a_stream_waits_until_it_can_pay_and_too_many_at_once_are_refused() -> None:
    async def work() -> None:
        context, recorder = CallContext(quota=Bucket("shop", 200, 10)), FakeRecorder()
        begin = handlers_on(recorder).streams[STREAM]
        stream = begin(context)
        start = asyncio.get_running_loop().time()
        for _ in range(3):
            reply = events_pb2.StreamEventsResponse.FromString(await stream.answer(events_request(10)))
            assert reply.accepted == 10
        assert asyncio.get_running_loop().time() - start > 0.05  # 10 at once, then 200 a second
        waiting = [asyncio.ensure_future(begin(context).answer(events_request(10))) for _ in range(MAX_WAITING_STREAMS)]
        await asyncio.sleep(0)
        with pytest.raises(QuotaExceededError):
            await begin(context).answer(events_request(10))
        waiting.pop().cancel()
        await asyncio.gather(*waiting)
        await begin(context).answer(events_request(10))

    asyncio.run(work())


# --- what the caller hears ------------------------------------------------------------------------------------------


def test_the_refusal_names_the_caller_and_when_to_come_back() -> None:
    encoded = encoded_status(QuotaExceededError("shop", "used up", 1.25))
    status = status_pb2.Status.FromString(encoded)
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(failure) for detail in status.details].count(True) == 1
    assert [(item.subject, item.description) for item in failure.violations] == [("shop", "used up")]
    assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert status.code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("wait_s", "told"), [(1.25, b"1250"), (0.0001, b"1")])
def test_grpcs_own_retries_are_told_as_well(wait_s: float, told: bytes) -> None:
    trailers = dict(call_error(QuotaExceededError("shop", "used up", wait_s)).trailers())
    assert trailers[b"grpc-retry-pushback-ms"] == told


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.code is not Code.RESOURCE_EXHAUSTED])
def test_nobody_is_pushed_back_but_for_too_much(reason: Reason) -> None:
    assert b"grpc-retry-pushback-ms" not in dict(call_error(RequestError(reason, "why")).trailers())
