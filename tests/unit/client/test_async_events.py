"""The asyncio event client on a real stream: it sends again only what is not acknowledged, and gives up in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from tidemark.v1 import events_pb2, events_pb2_grpc

from service.api.status import encoded_status
from service.errors import PUSHBACK, Reason, RequestError
from tidemark import AsyncEventClient, AsyncScoringClient, CallFailedError, Event


@dataclass
class Server(events_pb2_grpc.EventServiceServicer):
    """Acknowledges messages, and ends calls by errors where it is told to."""

    breaks: dict[int, RequestError] = field(default_factory=dict)
    """Errors by the number of messages that arrived before, over all calls."""
    calls: list[list[str]] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)
    ends_early: int = 0
    """So many calls end well after their first message."""

    async def StreamEvents(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.calls.append([])
        async for request in requests:
            arrived = sum(map(len, self.calls))
            if (error := self.breaks.get(arrived)) is not None:
                if error.retry_after_s is not None:  # others do not pass
                    del self.breaks[arrived]
                await _abort(context, error)
            ids = [event.event_id for event in request.events]
            self.calls[-1].append(ids[0])
            new = len(set(ids) - self.counted)
            self.counted |= set(ids)
            yield events_pb2.StreamEventsResponse(
                acknowledged_messages=len(self.calls[-1]), accepted=new, duplicates=len(ids) - new
            )
            if self.ends_early:
                self.ends_early -= 1
                return

    async def RecordEvents(self, request: Any, context: Any) -> Any:  # noqa: N802
        if (error := self.breaks.pop(len(self.calls), None)) is not None:
            self.calls.append([])
            await _abort(context, error)
        self.calls.append([event.event_id for event in request.events])
        rejected = [events_pb2.RejectedEvent(index=0, field="amount", reason="AMOUNT_INVALID", message="why")]
        return events_pb2.RecordEventsResponse(accepted=len(request.events) - 1, rejected=rejected)


async def _abort(context: Any, error: RequestError) -> None:
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", encoded_status(error))]
    if error.pushback_ms is not None:
        trailers.append((PUSHBACK, str(error.pushback_ms)))
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    await context.abort(code, error.message, tuple(trailers))


def run(server: Server, use: Callable[[AsyncEventClient], Awaitable[None]]) -> None:
    async def main() -> None:
        running = grpc.aio.server()
        events_pb2_grpc.add_EventServiceServicer_to_server(server, running)
        port = running.add_insecure_port("127.0.0.1:0")
        await running.start()
        async with AsyncEventClient(f"127.0.0.1:{port}", timeout_s=60) as client:
            await use(client)
        await running.stop(None)

    asyncio.run(main())


def views(count: int) -> list[Event]:
    return [Event("a", "view", event_id=str(n)) for n in range(count)]


AWAY = RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "away", retry_s=0.01)


def test_a_stream_that_breaks_sends_only_what_is_not_acknowledged() -> None:
    server = Server({2: AWAY, 3: AWAY})

    async def use(client: AsyncEventClient) -> None:
        recorded = await client.stream(views(4500), timeout_s=60)
        assert (recorded.accepted, recorded.duplicates) == (4500, 0)

    run(server, use)
    assert server.calls == [["0", "1000"], ["2000"], ["3000", "4000"]]


def test_an_asynchronous_source_is_drawn_once_though_the_stream_breaks_while_it_waits() -> None:
    server, drawn = Server({1: AWAY}), []

    async def source() -> AsyncIterator[Event]:
        for event in views(3500):
            if event.event_id in {"1500", "2500"}:
                await asyncio.sleep(0.2)
            drawn.append(event.event_id)
            yield event

    async def use(client: AsyncEventClient) -> None:
        assert (await client.stream(source(), timeout_s=60)).accepted == 3500

    run(server, use)
    assert drawn == [event.event_id for event in views(3500)]


def test_a_stream_that_ends_too_early_is_resumed() -> None:
    server = Server(ends_early=2)

    async def use(client: AsyncEventClient) -> None:
        recorded = await client.stream(views(2500), timeout_s=60)
        assert recorded.accepted + recorded.duplicates == 2500

    run(server, use)
    assert server.counted == {event.event_id for event in views(2500)}


def test_a_stream_that_cannot_succeed_is_not_repeated() -> None:
    server = Server({0: RequestError(Reason.TOO_MANY_EVENTS, "too many", "events")})

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(CallFailedError) as caught:
            await client.stream(views(1), timeout_s=60)
        assert (caught.value.problem.reason, caught.value.problem.field) == ("TOO_MANY_EVENTS", "events")

    run(server, use)
    assert len(server.calls) == 1


def test_a_recommendation_beyond_the_deadline_ends_the_stream_at_once() -> None:
    server = Server({0: RequestError(Reason.OVERLOADED, "later", retry_s=600)})

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(CallFailedError) as caught:
            await client.stream(views(1), timeout_s=60)
        assert caught.value.retry_after == timedelta(seconds=600)

    run(server, use)


@pytest.mark.parametrize("count", [0, 1500])
def test_an_error_of_the_source_is_raised(count: int) -> None:
    async def source() -> AsyncIterator[Event]:
        for event in views(count):
            yield event
        raise RuntimeError("no more rows")

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(RuntimeError, match="no more rows"):
            await client.stream(source(), timeout_s=60)

    run(Server(), use)


def test_an_error_is_raised_though_messages_are_being_written_when_it_comes() -> None:
    server = Server({1: AWAY, 4: RequestError(Reason.NOT_IN_CLUSTER, "a cluster")})

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(CallFailedError) as caught:
            await client.stream(views(20_000), timeout_s=60)
        assert caught.value.problem.reason == "NOT_IN_CLUSTER"

    run(server, use)
    assert server.counted >= {event.event_id for event in views(4000)}


def test_no_events_make_no_call() -> None:
    server = Server()

    async def use(client: AsyncEventClient) -> None:
        assert (await client.stream([], timeout_s=60)).accepted == 0

    run(server, use)
    assert server.calls == []


def test_a_stream_can_be_cancelled() -> None:
    async def source() -> AsyncIterator[Event]:
        for event in views(1500):
            yield event
        await asyncio.sleep(3600)

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.stream(source(), timeout_s=600)

    run(Server(), use)


def test_record_adds_up_its_calls_and_counts_positions_through_them() -> None:
    server = Server({0: RequestError(Reason.OVERLOADED, "later", retry_s=0.01)})

    async def use(client: AsyncEventClient) -> None:
        recorded = await client.record(views(2500))
        assert recorded.accepted == 2497
        assert [event.index for event in recorded.rejected] == [0, 1000, 2000]
        assert {event.message for event in recorded.rejected} == {"why"}

    run(server, use)
    assert list(map(len, server.calls)) == [0, 1000, 1000, 500]  # gRPC itself has tried the first once more


def test_a_message_too_large_is_not_tried_again_by_grpc() -> None:
    server = Server({0: RequestError(Reason.MESSAGE_TOO_LARGE, "too large")})

    async def use(client: AsyncEventClient) -> None:
        with pytest.raises(CallFailedError, match="MESSAGE_TOO_LARGE") as caught:
            await client.record(views(1))
        assert not caught.value.problem.is_retryable

    run(server, use)
    assert len(server.calls) == 1


def test_a_problem_names_its_customer() -> None:
    async def main() -> None:
        async with AsyncScoringClient("127.0.0.1:1", timeout_s=0.1) as client:
            with pytest.raises(CallFailedError) as caught:
                await client.score("900")
            assert caught.value.problem.customer_id == "900"
            with pytest.raises(TypeError, match="list of ids"):
                await client.score_many("900")

    asyncio.run(main())
