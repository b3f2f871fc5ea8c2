"""Past capacity: calls are shed with when to come back, what nobody waits for is not done, and health gets through."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemark.rpc import error_details_pb2, status_pb2
from tidemark.v1 import customers_pb2, events_pb2, scoring_pb2

from feature_store.bundles import bundle
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateLayout
from service.errors import PUSHBACK
from tests.benchmarks import open_load
from tests.benchmarks.setting import customer_id
from tests.conftest import Trained
from tests.e2e.conftest import RedisProcess
from tests.e2e.live import ALONE, Start, event, info_of, starter
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S

KNOWN = 1000

pytestmark = pytest.mark.both_fronts

SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
BATCH = "/tidemark.v1.ScoringService/BatchScoreCustomers"
RECORD = "/tidemark.v1.EventService/RecordEvents"
STREAM = "/tidemark.v1.EventService/StreamEvents"
GET = "/tidemark.v1.CustomerService/GetCustomer"
PATIENT = ("--redis-timeout-s", "60", "--health-interval-s", "60")
"""A server for which a Redis that is paused is slow, not away."""

ONE = scoring_pb2.ScoreCustomerRequest(customer_id=customer_id(7)).SerializeToString()
SIXTY = scoring_pb2.BatchScoreCustomersRequest(customer_ids=[customer_id(i) for i in range(60)]).SerializeToString()
EVENTS = events_pb2.RecordEventsRequest(
    events=[event(customer_id(i), "view", item_id="shoe") for i in range(64)]
).SerializeToString()


@pytest.fixture(scope="module")
def stored(toy: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis with a thousand customers."""
    redis = RedisProcess(tmp_path_factory.mktemp("r"), "never")
    loaded = bundle.read(toy.registry)
    layout = StateLayout(loaded.manifest.features)
    slots = np.resize(loaded.golden["input_state"], (KNOWN, len(layout.features)))
    with StateWriter(redis.url, layout) as writer:
        writer.write([customer_id(i) for i in range(KNOWN)], layout.pack_many(np.full(KNOWN, time.time()), slots))
    yield redis
    redis.kill()


@pytest.fixture
def redis(stored: RedisProcess) -> Iterator[RedisProcess]:
    yield stored
    stored.resume()


@pytest.fixture
def start(toy: Trained, redis: RedisProcess, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, toy.registry, tmp_path, redis.url)


class Calls:
    """Calls that are under way at once on one connection, and what became of each."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, ALONE)
        self._reading: list[asyncio.Future[None]] = []

    def begin(self, path: str, request: bytes, count: int = 1, timeout: float = PATIENCE_S) -> list[Any]:
        method: Any = self._channel.unary_unary(path)
        return [method(request, timeout=timeout) for _ in range(count)]

    def stream(self, path: str, *requests: bytes) -> Any:
        """A call with a stream of requests, whose replies are read and forgotten."""
        method: Any = self._channel.stream_stream(path)
        call = method(iter(requests), timeout=PATIENCE_S)
        self._reading.append(asyncio.ensure_future(_read(call)))
        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await asyncio.gather(*self._reading)


async def _read(call: Any) -> None:
    with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
        async for _ in call:
            pass


async def settle(server: ServerProcess) -> None:
    """Let what has been called reach the server, which then has nothing more to do."""
    await asyncio.sleep(0.3)  # grpcio's threads send it
    await asyncio.to_thread(server.await_idle)


async def first_refused(calls: list[Any]) -> Any:
    """The first of the calls that is refused, while others wait."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for call in calls:
            if call.done() and await call.code() is not grpc.StatusCode.OK:
                return call
        await asyncio.sleep(0.01)
    raise AssertionError("none was refused")


async def codes_of(calls: list[Any]) -> list[grpc.StatusCode]:
    return [await call.code() for call in calls]


async def assert_shed(call: Any) -> None:
    """It is told why, and twice when to come back."""
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(await call.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.message == await call.details()
    assert info_of(status).reason == "OVERLOADED"
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    after: Duration = retry.retry_delay
    assert 0 < after.ToTimedelta().total_seconds() < 10
    assert int(trailers[PUSHBACK]) == pytest.approx(after.ToTimedelta().total_seconds() * 1000, abs=1)


async def answered(calls: Calls) -> None:
    """A call for one that comes back whenever it is told to, as clients do, is answered."""
    until = time.monotonic() + PATIENCE_S
    while await (call := calls.begin(SCORE, ONE)[0]).code() is not grpc.StatusCode.OK:
        await assert_shed(call)
        assert time.monotonic() < until
        await asyncio.sleep(int(dict(await call.trailing_metadata())[PUSHBACK]) / 1000)


async def serving(target: str) -> int:
    async with grpc.aio.insecure_channel(target, ALONE) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)).status)


def test_beyond_the_bound_calls_are_shed_at_once_and_the_others_answered(start: Start, redis: RedisProcess) -> None:
    server = start(*PATIENT, "--max-queue-s", "0.005")

    async def main() -> None:
        async with Calls(server.target) as item, Calls(server.target) as other:
            (warm,) = item.begin(SCORE, ONE)
            await warm
            redis.pause()
            calls = [*item.begin(SCORE, ONE, 120), *other.begin(BATCH, SIXTY, 60)]
            await assert_shed(await first_refused(calls[:120] if calls[0].done() else calls))
            assert await serving(server.target) == health_pb2.HealthCheckResponse.SERVING  # though calls wait
            (late,) = item.begin(SCORE, ONE)
            await assert_shed(await first_refused([late]))
            redis.resume()
            codes = await codes_of(calls)
            assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert codes.count(grpc.StatusCode.OK) >= 3
            await answered(item)

    asyncio.run(main())
    server.stop()
    assert re.search(r"scoring calls not answered so far: shed \d+", server.log)


def test_calls_that_were_cancelled_or_have_expired_are_not_scored(start: Start, redis: RedisProcess) -> None:
    server = start(*PATIENT, "--max-queue-s", "60")

    async def main() -> None:
        async with Calls(server.target) as calls:
            await calls.begin(SCORE, ONE)[0]
            redis.pause()
            first = calls.begin(SCORE, ONE)
            await settle(server)  # it is under way; the others wait
            leaving, expiring = calls.begin(SCORE, ONE, 20), calls.begin(SCORE, ONE, 10, timeout=3.0)
            staying = calls.begin(SCORE, ONE, 5)
            await settle(server)
            for call in leaving:
                call.cancel()
            assert set(await codes_of(expiring)) == {grpc.StatusCode.DEADLINE_EXCEEDED}
            await settle(server)
            redis.resume()
            assert set(await codes_of([*first, *staying])) == {grpc.StatusCode.OK}

    asyncio.run(main())
    server.stop()
    assert "customers scored so far: 7\n" in server.log
    result = re.search(r"scoring calls not answered so far: cancelled (\d+)(?:, expired (\d+))?", server.log)
    assert result is not None
    # grpcio itself ends calls at their deadline, by cancelling them.
    assert int(result[1]) + int(result[2] or 0) == 30


def test_a_deadline_that_cannot_be_met_is_refused_at_once(start: Start, redis: RedisProcess) -> None:
    server = start(*PATIENT, "--max-queue-s", "60")

    async def main() -> None:
        async with Calls(server.target) as item, Calls(server.target) as other:
            await item.begin(SCORE, ONE)[0]
            # An idle server meets it.
            assert await codes_of(item.begin(SCORE, ONE, timeout=30.0)) == [grpc.StatusCode.OK]
            redis.pause()
            waiting = [*item.begin(BATCH, SIXTY, 100), *other.begin(BATCH, SIXTY, 100)]
            await settle(server)
            async with Calls(server.target) as third:
                # More than 200 batches wait: none takes less than a tenth of a millisecond, and on a slow machine more.
                refusals = [
                    await told(call)
                    for timeout in (0.02, 0.04, 0.08, 0.16)
                    for call in third.begin(SCORE, ONE, 20, timeout=timeout)
                ]
                redis.resume()
                assert any("DEADLINE_TOO_SHORT" in result for result in refusals), refusals
                assert set(await codes_of(waiting)) == {grpc.StatusCode.OK}

    asyncio.run(main())


async def told(call: Any) -> str:
    """Code and reason of a call that fails."""
    code, trailers = await call.code(), dict(await call.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin")
    return f"{code} {info_of(status_pb2.Status.FromString(details)).reason if details else ''}"


def test_events_are_shed_by_the_time_they_would_wait_and_streams_wait_themselves(
    start: Start, redis: RedisProcess
) -> None:
    server = start(*PATIENT, "--max-event-queue-s", "0.01")

    async def main() -> None:
        async with Calls(server.target) as calls:
            await calls.begin(RECORD, EVENTS)[0]
            going_on = calls.stream(STREAM, *[EVENTS] * 3)
            assert await going_on.code() is grpc.StatusCode.OK
            redis.pause()
            under_way = calls.begin(RECORD, EVENTS, 2)
            await settle(server)
            recorded = calls.begin(RECORD, EVENTS, 12)
            await assert_shed(await first_refused(recorded))
            await assert_shed(await first_refused([calls.stream(STREAM, EVENTS)]))
            redis.resume()
            assert set(await codes_of(under_way)) == {grpc.StatusCode.OK}
            codes = await codes_of(recorded)
            assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}

    asyncio.run(main())
    server.stop()
    assert re.search(r"event calls not answered so far: shed \d+", server.log)


def test_events_of_calls_that_expired_or_were_cancelled_are_not_recorded(start: Start, redis: RedisProcess) -> None:
    server = start(*PATIENT, "--max-event-queue-s", "60")

    async def main() -> None:
        async with Calls(server.target) as calls:
            await calls.begin(RECORD, EVENTS)[0]
            redis.pause()
            under_way = calls.begin(RECORD, EVENTS, 2)
            await settle(server)
            leaving, expiring = calls.begin(RECORD, EVENTS, 3), calls.begin(RECORD, EVENTS, 3, timeout=3.0)
            await settle(server)
            for call in leaving:
                call.cancel()
            await codes_of(expiring)
            await settle(server)
            redis.resume()
            assert set(await codes_of(under_way)) == {grpc.StatusCode.OK}

    asyncio.run(main())
    server.stop()
    assert re.search(r"events so far:.* accepted 192\b", server.log)


class Watch(threading.Thread):
    """Calls one after the other while others overload the server: how many were answered, and what went wrong."""

    def __init__(self, target: str, path: str, request: bytes) -> None:
        super().__init__(daemon=True)
        self._target, self._path, self._request = target, path, request
        self.over = threading.Event()
        self.answered = 0
        self.failed: list[str] = []

    def run(self) -> None:
        with grpc.insecure_channel(self._target, ALONE) as channel:
            method: Callable[..., Any] = channel.unary_unary(self._path)
            while not self.over.wait(0.05):
                try:
                    method(self._request, timeout=PATIENCE_S)
                except grpc.RpcError as error:
                    self.failed.append(str(error))
                self.answered += 1


def test_health_and_customers_get_through_while_the_server_is_overloaded(front: str, start: Start) -> None:
    server: ServerProcess = start("--max-queue-s", "0.05")
    target = server.target
    watches = [
        Watch(target, "/grpc.health.v1.Health/Check", b""),
        Watch(target, GET, customers_pb2.GetCustomerRequest(customer_id=customer_id(3)).SerializeToString()),
    ]
    with open_load.apart(int(target.rpartition(":")[2]), connections=4, customers=KNOWN) as load:
        capacity = load.run(30_000 if front == "lean" else 3_000, 0.3).goodput
        for watch in watches:
            watch.start()
        rate, seen = 2 * capacity, load.run(2 * capacity, 1.5)
        while seen.shed + seen.failed == 0 and rate < 64 * capacity:  # it can do more than was measured
            rate *= 2
            seen = load.run(rate, 1.5)
        for watch in watches:
            watch.over.set()
        for watch in watches:
            watch.join()
    assert seen.good > 0
    assert seen.shed + seen.failed > 0, seen  # the load knows a shed call only as the lean front writes it
    for watch in watches:
        assert watch.failed == []
        assert watch.answered >= 3  # while the others overloaded it
