"""EventService: its messages, and what its methods do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from tidemark.v1 import events_pb2

from feature_store.state.events import Event, Problem
from service.api.encoding import field, varint
from service.api.messages import duration_s, parsed, timestamp_s
from service.batching.event_batcher import EventBatcher, IndexedProblem, RecordingResult
from service.call_context import CallContext
from service.error_pages import ERROR_PAGES
from service.errors import Reason, RequestError
from tidemark.limits import MAX_EVENTS_PER_MESSAGE

SERVICE: Final = "tidemark.v1.EventService"
SLICE: Final = 64
"""Events that are decoded in one go. Then other calls have a turn on the loop."""
_FIELDS: Final = {"duration_s": "duration"}
"""Fields of the contract whose name differs from that in the core."""


class Events:
    """The unary methods of EventService."""

    def __init__(self, recorder: EventBatcher) -> None:
        self._recorder: Final = recorder

    async def record(self, request: bytes, context: CallContext) -> bytes:
        """RecordEvents: bytes of the request in, bytes of the response out.

        Raises:
            RequestError: The call as a whole failed. Some of its events may be recorded.
        """
        self._recorder.admit(context)  # before the request is read, so that shedding it costs little
        messages = recorded_messages(request)
        context.charge(len(messages))
        return encode_recorded(await _recorded(self._recorder, messages, context))


class EventStream:
    """A StreamEvents call: records one message, acknowledges it, and only then takes the next."""

    def __init__(self, recorder: EventBatcher, context: CallContext) -> None:
        self._recorder: Final = recorder
        self._context: Final = context
        self._acknowledged = 0

    async def answer(self, request: bytes) -> bytes:
        """Record the events of a message and return its acknowledgement.

        Only the first message of a stream is subject to admission control. Later ones wait, and their client with them.

        Raises:
            RequestError: The stream failed. Some events of this message may be recorded.
        """
        if not self._acknowledged:
            self._recorder.admit(self._context)
        messages = streamed_messages(request)
        await self._context.wait_and_charge(len(messages))  # meanwhile the client's window stays closed
        recorded = await _recorded(self._recorder, messages, self._context)
        self._acknowledged += 1
        return encode_acknowledged(self._acknowledged, recorded)


async def _recorded(
    recorder: EventBatcher, messages: Sequence[events_pb2.Event], context: CallContext
) -> RecordingResult:
    """Record events, and let other calls have a turn before a long response is encoded."""
    recorded = await recorder.record(await decoded(messages), context)
    if len(recorded.rejected) + len(recorded.guarded) > SLICE:
        await asyncio.sleep(0)
    return recorded


# --- requests -------------------------------------------------------------------------------------------------------


def recorded_messages(data: bytes) -> Sequence[events_pb2.Event]:
    """The events of an encoded RecordEventsRequest.

    Raises:
        RequestError: It is malformed, or has too many events.
    """
    return _few(parsed(events_pb2.RecordEventsRequest, data).events)


def streamed_messages(data: bytes) -> Sequence[events_pb2.Event]:
    """The events of an encoded StreamEventsRequest.

    Raises:
        RequestError: It is malformed, or has too many events.
    """
    return _few(parsed(events_pb2.StreamEventsRequest, data).events)


def _few(events: Sequence[events_pb2.Event]) -> Sequence[events_pb2.Event]:
    if (count := len(events)) > MAX_EVENTS_PER_MESSAGE:
        message = f"{count} events are too many for one message: send at most {MAX_EVENTS_PER_MESSAGE}"
        raise RequestError(Reason.TOO_MANY_EVENTS, message, "events")
    return events


async def decoded(messages: Sequence[events_pb2.Event]) -> list[Event]:
    """Canonical events of messages, decoded in slices so that a large request does not hold up the loop."""
    events: list[Event] = []
    for start in range(0, len(messages), SLICE):
        if start:
            await asyncio.sleep(0)
        events += map(_event, messages[start : start + SLICE])
    return events


def _event(message: events_pb2.Event) -> Event:
    """A canonical event. Times that are missing or out of range become nan, which the check of events rejects."""
    return Event(
        message.customer_id,
        message.event_type,
        timestamp_s(message.event_time) if message.HasField("event_time") else math.nan,
        message.amount if message.HasField("amount") else None,
        duration_s(message.duration) if message.HasField("duration") else None,
        message.item_id,
        message.channel,
        message.event_id,
        message.text,
    )


# --- responses ------------------------------------------------------------------------------------------------------


def encode_recorded(recorded: RecordingResult) -> bytes:
    """An encoded RecordEventsResponse."""
    response = events_pb2.RecordEventsResponse
    return b"".join(
        [
            response(
                accepted=recorded.accepted, duplicates=recorded.duplicates, unread=recorded.unread
            ).SerializeToString(),
            *_details(response.REJECTED_FIELD_NUMBER, events_pb2.RejectedEvent, recorded.rejected),
            *_details(response.GUARDED_FIELD_NUMBER, events_pb2.GuardedEvent, recorded.guarded),
        ]
    )


def encode_acknowledged(acknowledged: int, recorded: RecordingResult) -> bytes:
    """An encoded StreamEventsResponse.

    Args:
        acknowledged: Number of messages of the stream that are acknowledged with this response.
        recorded: Outcome of the events of the newest of them.
    """
    response = events_pb2.StreamEventsResponse
    counts = response(
        acknowledged_messages=acknowledged,
        accepted=recorded.accepted,
        duplicates=recorded.duplicates,
        unread=recorded.unread,
    )
    return b"".join(
        [
            counts.SerializeToString(),
            *_details(response.REJECTED_FIELD_NUMBER, events_pb2.RejectedEvent, recorded.rejected),
            *_details(response.GUARDED_FIELD_NUMBER, events_pb2.GuardedEvent, recorded.guarded),
        ]
    )


def _details(number: int, kind: Any, problems: Iterable[IndexedProblem]) -> Iterator[bytes]:
    """Encoded fields of a response with problems as RejectedEvent or GuardedEvent.

    A message may have 1,000 problems, which are few different ones: all but the index is encoded once for each. As
    message objects they would hold the event loop for more than two milliseconds.
    """
    for index, problem in problems:
        at = b"\x08" + varint(index) if index else b""  # index (1)
        yield field(number, at + _encoded_problem(kind, problem))


@lru_cache(maxsize=1024)
def _encoded_problem(kind: Any, problem: Problem) -> bytes:
    name = _FIELDS.get(problem.field, problem.field)
    address = ERROR_PAGES.address(problem.reason)
    return bytes(kind(field=name, reason=problem.reason, message=problem.message, help_url=address).SerializeToString())
