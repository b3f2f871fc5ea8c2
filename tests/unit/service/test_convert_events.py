"""Events come off the wire as they were sent, and what became of them goes back as the contract has it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tidemark.v1 import events_pb2

from feature_store.state.events import Event, Problem, Rules, problem
from service.api.events import MAX_EVENTS, decode_events, encode_recorded, encode_streamed
from service.batching.event_batcher import IndexedProblem, RecordingResult
from service.errors import Reason, RequestError

NOW = 1_800_000_000
LATE, CLIPPED = Problem("event_time", "EVENT_TOO_LATE: late"), Problem("amount", "AMOUNT_CLIPPED: much")


def request(*events: events_pb2.Event) -> bytes:
    return events_pb2.RecordEventsRequest(events=events).SerializeToString()


def decoded(**fields: Any) -> Event:
    (event,) = decode_events(request(events_pb2.Event(**fields)))
    return event


def test_every_field_arrives_in_its_place() -> None:
    event = decoded(
        customer_id="c1",
        event_type="purchase",
        event_time=Timestamp(seconds=NOW, nanos=250_000_000),
        amount=12.5,
        item_id="lamp",
        channel="web",
        duration_s=3.5,
        event_id="e1",
        text="nice",
    )
    assert asdict(event) == asdict(
        Event("c1", "purchase", NOW + 0.25, 12.5, 3.5, item_id="lamp", channel="web", event_id="e1", text="nice")
    )


def test_what_is_not_set_is_unknown_and_a_zero_is_none_of_that() -> None:
    nothing, zero = decoded(), decoded(amount=0.0, duration_s=0.0)
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
    found = problem(event, Rules(), NOW)
    assert found is not None
    assert found.reason.startswith("EVENT_TIME_INVALID")


def test_a_time_at_the_end_of_all_seconds_is_in_the_future() -> None:
    event = decoded(customer_id="c", event_type="visit", event_time=Timestamp(seconds=2**63 - 1))
    assert math.isfinite(event.event_time)
    found = problem(event, Rules(), NOW)
    assert found is not None
    assert found.reason.startswith("EVENT_IN_FUTURE")


def test_a_thousand_events_are_taken_in_their_order_and_one_more_is_not() -> None:
    many = [events_pb2.Event(customer_id=str(n)) for n in range(MAX_EVENTS + 1)]
    assert [event.customer_id for event in decode_events(request(*many[:-1]))] == [str(n) for n in range(MAX_EVENTS)]
    with pytest.raises(RequestError, match="at most 1000") as caught:
        decode_events(request(*many))
    assert (caught.value.reason, caught.value.field) == (Reason.TOO_MANY_EVENTS, "events")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xfe", b"GET / HTTP/1.1"])
def test_bytes_that_are_no_events_are_malformed(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_events(data)
    assert caught.value.reason is Reason.REQUEST_MALFORMED


def test_what_became_of_a_request_is_told_event_by_event() -> None:
    reply = events_pb2.RecordEventsResponse.FromString(
        encode_recorded(
            RecordingResult(
                5, 2, [IndexedProblem(0, LATE), IndexedProblem(7, LATE)], [IndexedProblem(3, CLIPPED)], 2, 1
            )
        )
    )
    assert reply == events_pb2.RecordEventsResponse(
        accepted=5,
        duplicates=2,
        rejected=[
            events_pb2.RejectedEvent(index=0, field=LATE.field, reason=LATE.reason),
            events_pb2.RejectedEvent(index=7, field=LATE.field, reason=LATE.reason),
        ],
        guarded=[events_pb2.GuardedEvent(index=3, field=CLIPPED.field, reason=CLIPPED.reason)],
    )


def test_what_became_of_a_stream_is_counted_though_not_all_is_told() -> None:
    noted = [IndexedProblem(at, LATE) for at in range(5)]
    reply = events_pb2.StreamEventsResponse.FromString(encode_streamed(RecordingResult(9, 1, noted, noted, 50, 60), 3))
    assert (reply.accepted, reply.duplicates, reply.rejected_count, reply.guarded_count) == (9, 1, 50, 60)
    assert [one.index for one in reply.rejected] == [one.index for one in reply.guarded] == [0, 1, 2]


def test_who_sent_nothing_hears_of_nothing() -> None:
    assert decode_events(b"") == []
    assert encode_recorded(RecordingResult()) == b""
