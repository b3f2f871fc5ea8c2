"""A bucket never gives more than its rate allows, never less than it has, and always tells a wait that is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import events_pb2, scoring_pb2

from service.api import events as convert_events
from service.api import scoring as convert
from service.api.methods import Handlers
from service.api.scoring import METHODS
from service.api.status import encoded_status
from service.auth.quota import MOST_WAITING, Bucket, metered_handlers, metered_scores
from service.call_context import NO_CONTEXT, CallContext
from service.errors import CODES, Code, QuotaExceededError, Reason, RequestError
from service.transport.lean.call_types import call_error

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
    found, clock = bucket(rate, burst)
    given_at: list[tuple[float, int]] = []
    for pause, units in asked:
        clock.now += pause
        if not found.take(units):
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
    found, clock = bucket(rate, burst)
    for pause, units in asked:
        clock.now += pause
        if wait_s := found.take(units):
            began = clock.now
            clock.now = began + wait_s * 0.99
            if clock.now < began + wait_s:
                assert found.take(units) > 0
            clock.now = began + wait_s * 1.001 + SLACK
            assert found.take(units) == 0


@given(rates, rates, st.integers(1, 1000))
def test_a_full_bucket_gives_whatever_is_asked_and_what_was_too_much_is_owed(
    rate: float, burst: float, units: int
) -> None:
    found, clock = bucket(rate, burst)
    assert found.take(units) == 0
    clock.now += max(0.0, units - burst) / rate * 0.99
    if units > burst * 1.1:
        assert found.take(1) > 0


def test_time_that_goes_by_fills_it_no_further_than_the_burst() -> None:
    found, clock = bucket(rate=10, burst=20)
    clock.now += 1e6
    assert found.take(20) == 0
    assert found.take(1) == pytest.approx(0.1)


# --- methods that take from it --------------------------------------------------------------------------------------


def score_request(count: int) -> bytes:
    return scoring_pb2.BatchScoreCustomersRequest(customer_ids=[f"c{n}" for n in range(count)]).SerializeToString()


def events_request(count: int) -> bytes:
    return events_pb2.RecordEventsRequest(events=[events_pb2.Event()] * count).SerializeToString()


def test_scores_take_one_for_each_customer_and_bad_requests_nothing() -> None:
    found, _ = bucket(rate=10, burst=300)
    batch = metered_scores(METHODS, found)[f"/{convert.SERVICE}/BatchScoreCustomers"]
    with pytest.raises(RequestError, match="not a"):
        batch.decode(b"\xff")
    assert len(batch.decode(score_request(256)).customer_ids) == 256
    with pytest.raises(QuotaExceededError) as caught:
        batch.decode(score_request(256))
    assert caught.value.retry_after_s == pytest.approx((256 - 44) / 10)
    assert len(batch.decode(score_request(44)).customer_ids) == 44


async def answer(_request: bytes, _context: CallContext) -> bytes:
    return b"done"


def test_events_take_one_each_customers_one_and_models_nothing() -> None:
    found, _ = bucket(rate=10, burst=10)
    customer, model = "/tidemark.v1.CustomerService/GetCustomer", "/tidemark.v1.ModelService/ListModels"
    unary = metered_handlers(Handlers(dict.fromkeys((RECORD, customer, model), answer)), found).unary

    async def work() -> None:
        assert await unary[RECORD](events_request(9), NO_CONTEXT) == b"done"
        assert await unary[customer](b"", NO_CONTEXT) == b"done"
        for path in (RECORD, customer):
            with pytest.raises(QuotaExceededError):
                await unary[path](events_request(1), NO_CONTEXT)
        assert await unary[model](b"", NO_CONTEXT) == b"done"

    asyncio.run(work())


class Stream:
    def __init__(self, _context: CallContext) -> None:
        self.added = 0

    async def add(self, _request: bytes) -> None:
        self.added += 1

    def reply(self) -> bytes:
        return b"%d" % self.added


def test_a_stream_waits_until_it_can_pay_and_too_many_at_once_are_refused() -> None:
    async def work() -> None:
        found = Bucket("shop", 200, 10)
        begin = metered_handlers(Handlers({}, {STREAM: Stream}), found).streams[STREAM]
        stream = begin(NO_CONTEXT)
        start = asyncio.get_running_loop().time()
        for _ in range(3):
            await stream.add(events_request(10))
        assert stream.reply() == b"3"
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.1, abs=0.08)
        waiting = [asyncio.ensure_future(begin(NO_CONTEXT).add(events_request(10))) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(QuotaExceededError):
            await begin(NO_CONTEXT).add(events_request(10))
        waiting.pop().cancel()
        await asyncio.gather(*waiting)
        await begin(NO_CONTEXT).add(events_request(10))

    asyncio.run(work())


# --- what the caller hears ------------------------------------------------------------------------------------------


def test_the_refusal_names_the_caller_and_when_to_come_back() -> None:
    encoded = encoded_status(QuotaExceededError("shop", "used up", 1.25))
    status = status_pb2.Status.FromString(encoded)
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(failure) for detail in status.details].count(True) == 1
    assert [(one.subject, one.description) for one in failure.violations] == [("shop", "used up")]
    assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert status.code == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("wait_s", "told"), [(1.25, b"1250"), (0.0001, b"1")])
def test_grpcs_own_retries_are_told_as_well(wait_s: float, told: bytes) -> None:
    trailers = dict(call_error(QuotaExceededError("shop", "used up", wait_s)).headers())
    assert trailers[b"grpc-retry-pushback-ms"] == told


@pytest.mark.parametrize("reason", [reason for reason in Reason if CODES[reason] is not Code.RESOURCE_EXHAUSTED])
def test_nobody_is_pushed_back_but_for_too_much(reason: Reason) -> None:
    assert b"grpc-retry-pushback-ms" not in dict(call_error(RequestError(reason, "why")).headers())
