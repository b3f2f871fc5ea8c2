"""Events come off the wire as they were sent, and what became of them goes back as the contract has it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import events_pb2

from feature_store.state.events import Event, EventReason, Problem, Rules, problem
from service.api import events
from service.api.events import encode_acknowledged, encode_recorded, recorded_messages, streamed_messages
from service.batching.event_batcher import IndexedProblem, RecordingResult
from service.error_pages import page_path
from service.errors import Reason, RequestError
from tidemark.limits import MAX_EVENTS_PER_MESSAGE

NOW = 1_800_000_000
LATE = Problem("event_time", EventReason.EVENT_TOO_LATE, "late")
CLIPPED = Problem("duration_s", EventReason.DURATION_CLIPPED, "much")


def request(*events: events_pb2.Event) -> bytes:
    return events_pb2.RecordEventsRequest(events=events).SerializeToString()


def decode(data: bytes) -> list[Event]:
    return asyncio.run(events.decoded(recorded_messages(data)))


def decoded(**fields: Any) -> Event:
    (event,) = decode(request(events_pb2.Event(**fields)))
    return event


def test_every_field_arrives_in_its_place() -> None:
    event = decoded(
        customer_id="c1",
        event_type="purchase",
        event_time=Timestamp(seconds=NOW, nanos=250_000_000),
        amount=12.5,
        item_id="lamp",
        channel="web",
        duration=Duration(seconds=3, nanos=500_000_000),
        event_id="e1",
        text="nice",
    )
    assert asdict(event) == asdict(
        Event("c1", "purchase", NOW + 0.25, 12.5, 3.5, item_id="lamp", channel="web", event_id="e1", text="nice")
    )


def test_what_is_not_set_is_unknown_and_a_zero_is_none_of_that() -> None:
    nothing, zero = decoded(), decoded(amount=0.0, duration=Duration())
    assert (nothing.amount, nothing.duration_s) == (None, None)
    assert (zero.amount, zero.duration_s) == (0.0, 0.0)
    assert {nothing.customer_id, nothing.event_type, nothing.item_id, nothing.channel, nothing.event_id} == {""}


@pytest.mark.parametrize(
    "moment",
    [
        None,
        Timestamp(seconds=NOW, nanos=-1),
        Timestamp(seconds=NOW, nanos=1_000_000_000),
        Timestamp(seconds=-1),
        Timestamp(seconds=-(2**63)),
    ],
    ids=str,
)
def test_an_event_without_a_time_that_can_be_is_refused_for_that(moment: Timestamp | None) -> None:
    event = decoded(customer_id="c", event_type="visit", event_time=moment)
    result = problem(event, Rules(), NOW)
    assert result is not None
    assert result.reason == "EVENT_TIME_INVALID"


def test_a_time_at_the_end_of_all_seconds_is_in_the_future() -> None:
    event = decoded(customer_id="c", event_type="visit", event_time=Timestamp(seconds=2**63 - 1))
    assert math.isfinite(event.event_time)
    result = problem(event, Rules(), NOW)
    assert result is not None
    assert result.reason == "EVENT_IN_FUTURE"


def test_a_thousand_events_are_taken_in_their_order_and_one_more_is_not() -> None:
    many = [events_pb2.Event(customer_id=str(n)) for n in range(MAX_EVENTS_PER_MESSAGE + 1)]
    assert [event.customer_id for event in decode(request(*many[:-1]))] == [str(n) for n in range(1000)]
    for messages_of in (recorded_messages, streamed_messages):
        with pytest.raises(RequestError, match="at most 1000") as caught:
            messages_of(request(*many))
        assert (caught.value.reason, caught.value.field) == (Reason.TOO_MANY_EVENTS, "events")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xfe", b"GET / HTTP/1.1"])
def test_bytes_that_are_no_events_are_malformed(data: bytes) -> None:
    for messages_of, name in ((recorded_messages, "RecordEventsRequest"), (streamed_messages, "StreamEventsRequest")):
        with pytest.raises(RequestError, match=name) as caught:
            messages_of(data)
        assert caught.value.reason is Reason.REQUEST_MALFORMED


@pytest.mark.parametrize(
    "length",
    [Duration(seconds=-1), Duration(nanos=-1), Duration(nanos=1_000_000_000), Duration(seconds=10**12)],
    ids=str,
)
def test_a_duration_out_of_range_is_refused_for_that(length: Duration) -> None:
    event = decoded(customer_id="c", event_type="visit", event_time=Timestamp(seconds=NOW), duration=length)
    result = problem(event, Rules(), NOW)
    assert result is not None
    assert (result.field, result.reason) == ("duration_s", "DURATION_INVALID")


def test_other_work_has_turns_while_a_large_message_is_decoded() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> None:
        counting = asyncio.create_task(count())
        messages = recorded_messages(request(*[events_pb2.Event()] * 1000))
        assert len(await events.decoded(messages)) == 1000
        counting.cancel()

    asyncio.run(run())
    assert turns >= 1000 // events.SLICE


def outcome() -> RecordingResult:
    return RecordingResult(5, 2, [IndexedProblem(0, LATE), IndexedProblem(7, LATE)], [IndexedProblem(3, CLIPPED)], 4)


LATE_FIELDS = {"field": "event_time", "reason": "EVENT_TOO_LATE", "message": "late"}
MUCH_FIELDS = {"field": "duration", "reason": "DURATION_CLIPPED", "message": "much"}
REJECTED = [events_pb2.RejectedEvent(index=at, **LATE_FIELDS, help_url=page_path("EVENT_TOO_LATE")) for at in (0, 7)]
GUARDED = [events_pb2.GuardedEvent(index=3, **MUCH_FIELDS, help_url=page_path("DURATION_CLIPPED"))]


def test_the_outcome_of_a_request_is_told_event_by_event() -> None:
    reply = events_pb2.RecordEventsResponse.FromString(encode_recorded(outcome()))
    assert reply == events_pb2.RecordEventsResponse(
        accepted=5, duplicates=2, rejected=REJECTED, guarded=GUARDED, unread=4
    )


def test_an_acknowledgement_counts_messages_and_tells_the_outcome_of_the_newest() -> None:
    reply = events_pb2.StreamEventsResponse.FromString(encode_acknowledged(4, outcome()))
    assert reply == events_pb2.StreamEventsResponse(
        acknowledged_messages=4, accepted=5, duplicates=2, rejected=REJECTED, guarded=GUARDED, unread=4
    )


def test_who_sent_nothing_hears_of_nothing() -> None:
    assert decode(b"") == []
    assert encode_recorded(RecordingResult()) == b""
