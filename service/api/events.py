"""Between the wire and the core: the messages of EventService."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from tidemark.v1 import events_pb2

from feature_store.state.events import Event
from service.api.scoring import MAX_NANOS, parsed
from service.batching.event_batcher import IndexedProblem, RecordingResult
from service.errors import Reason, RequestError

SERVICE: Final = "tidemark.v1.EventService"
MAX_EVENTS: Final = 1000


def decode_events(data: bytes) -> list[Event]:
    """The events of a RecordEventsRequest, or of a StreamEventsRequest, which is the same on the wire."""
    return [_event(event) for event in _events(data)]


def _events(data: bytes) -> Any:
    request = parsed(events_pb2.RecordEventsRequest, data)
    if (found := len(request.events)) > MAX_EVENTS:
        message = f"{found} events are too many for one message: send at most {MAX_EVENTS}"
        raise RequestError(Reason.TOO_MANY_EVENTS, message, "events")
    return request.events


def _event(event: Any) -> Event:
    return Event(
        event.customer_id,
        event.event_type,
        _seconds(event),
        event.amount if event.HasField("amount") else None,
        event.duration_s if event.HasField("duration_s") else None,
        event.item_id,
        event.channel,
        event.event_id,
        event.text,
    )


def _seconds(event: Any) -> float:
    """Unix seconds; not a number where there is no time, or none that is allowed."""
    if not event.HasField("event_time") or not 0 <= event.event_time.nanos <= MAX_NANOS:
        return math.nan
    return float(event.event_time.seconds + event.event_time.nanos / 1e9)


def encode_recorded(recorded: RecordingResult) -> bytes:
    """A RecordEventsResponse."""
    return bytes(
        events_pb2.RecordEventsResponse(
            accepted=recorded.accepted,
            duplicates=recorded.duplicates,
            rejected=_noted(events_pb2.RejectedEvent, recorded.rejected),
            guarded=_noted(events_pb2.GuardedEvent, recorded.guarded),
        ).SerializeToString()
    )


def encode_streamed(recorded: RecordingResult, most: int) -> bytes:
    """A StreamEventsResponse, with no more than ``most`` of the events that were refused or guarded."""
    return bytes(
        events_pb2.StreamEventsResponse(
            accepted=recorded.accepted,
            duplicates=recorded.duplicates,
            rejected=_noted(events_pb2.RejectedEvent, recorded.rejected[:most]),
            guarded=_noted(events_pb2.GuardedEvent, recorded.guarded[:most]),
            rejected_count=recorded.rejected_count,
            guarded_count=recorded.guarded_count,
        ).SerializeToString()
    )


def _noted(kind: Any, noted: Iterable[IndexedProblem]) -> list[Any]:
    return [kind(index=one.at, field=one.problem.field, reason=one.problem.reason) for one in noted]
