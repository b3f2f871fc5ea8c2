"""Messages of EventService, and the messages of a stream that are not acknowledged yet."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tidemark.v1 import events_pb2

from tidemark.errors import CallFailedError, Problem, events_missing
from tidemark.limits import MAX_EVENTS_PER_MESSAGE
from tidemark.messages.times import duration, timestamp
from tidemark.types import Event, GuardedEvent, Recorded, RejectedEvent

MAX_MESSAGE_BYTES: Final = 512 * 1024
"""Bytes of the events in one message: half of what a server accepts by default."""
MAX_UNACKNOWLEDGED: Final = 8
"""Messages of a stream that are sent ahead of their acknowledgements. They are kept, to be sent again if it breaks."""
PAUSE_S: Final = 0.1
"""Least pause before a stream that broke is resumed."""
_EVENT_OVERHEAD: Final = 4
"""Bytes that an event takes in a message beside its own: tag and length."""
_Detail = TypeVar("_Detail", RejectedEvent, GuardedEvent)


@dataclass(frozen=True)
class Batch:
    """Events of one message, and the position of the first among all events of the call."""

    start: int
    events: list[events_pb2.Event]

    @property
    def request(self) -> events_pb2.RecordEventsRequest:
        """The batch as one RecordEvents call."""
        return events_pb2.RecordEventsRequest(events=self.events)

    @property
    def message(self) -> events_pb2.StreamEventsRequest:
        """The batch as a message of a stream."""
        return events_pb2.StreamEventsRequest(events=self.events)


class _Splitter:
    """Puts events into batches of a bounded number of events and bytes."""

    def __init__(self) -> None:
        self._batch = Batch(0, [])
        self._bytes = 0

    def add(self, event: Event) -> Batch | None:
        """Add an event, and return the batch that is full by it."""
        message = event_message(event)
        size, full = message.ByteSize() + _EVENT_OVERHEAD, None
        events = self._batch.events
        if events and (len(events) == MAX_EVENTS_PER_MESSAGE or self._bytes + size > MAX_MESSAGE_BYTES):
            full = self._batch
            self._batch, self._bytes = Batch(full.start + len(full.events), []), 0
        self._batch.events.append(message)
        self._bytes += size
        return full

    def rest(self) -> Iterator[Batch]:
        """The last batch, if it has events."""
        if self._batch.events:
            yield self._batch


def batches(events: Iterable[Event]) -> Iterator[Batch]:
    """Split events into batches that fit into messages."""
    splitter = _Splitter()
    for event in events:
        if (full := splitter.add(event)) is not None:
            yield full
    yield from splitter.rest()


async def async_batches(events: Iterable[Event] | AsyncIterable[Event]) -> AsyncIterator[Batch]:
    """Split events into batches that fit into messages."""
    if not isinstance(events, AsyncIterable):
        for batch in batches(events):
            yield batch
        return
    splitter = _Splitter()
    async for event in events:
        if (full := splitter.add(event)) is not None:
            yield full
    for batch in splitter.rest():
        yield batch


def event_message(event: Event) -> events_pb2.Event:
    """An event as a message."""
    return events_pb2.Event(
        customer_id=event.customer_id,
        event_type=event.event_type,
        event_time=timestamp(event.event_time),
        amount=event.amount,
        item_id=event.item_id,
        channel=event.channel,
        duration=None if event.duration_s is None else duration(event.duration_s),
        event_id=event.event_id,
        text=event.text,
    )


class Outcome:
    """Adds up the outcome of the batches of a call."""

    def __init__(self) -> None:
        self._accepted = self._duplicates = self._unread = 0
        self._rejected: list[RejectedEvent] = []
        self._guarded: list[GuardedEvent] = []

    def add(self, batch: Batch, response: Any) -> None:
        """Add the response to a batch."""
        self._accepted += response.accepted
        self._duplicates += response.duplicates
        self._unread += response.unread
        self._rejected.extend(_details(RejectedEvent, batch, response.rejected))
        self._guarded.extend(_details(GuardedEvent, batch, response.guarded))

    def result(self) -> Recorded:
        """The outcome of all batches so far."""
        return Recorded(self._accepted, self._duplicates, self._rejected, self._guarded, self._unread)


def _details(kind: type[_Detail], batch: Batch, details: Iterable[Any]) -> Iterator[_Detail]:
    return (
        kind(batch.start + detail.index, detail.field, detail.reason, detail.message, detail.help_url)
        for detail in details
    )


class Unacknowledged:
    """The batches of a stream that are not acknowledged: what to send next, and what to send again. No I/O.

    At most MAX_UNACKNOWLEDGED batches are kept. When the stream breaks, :meth:`restart` puts those that were sent back
    in front of the line.
    """

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._sent = 0
        self._max_sent = MAX_UNACKNOWLEDGED
        self.outcome: Final = Outcome()

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether the next batch has to wait for an acknowledgement."""
        return self._sent >= self._max_sent

    def add(self, batch: Batch) -> None:
        """Append a new batch to the line."""
        self._batches.append(batch)

    def next_batch(self) -> Batch | None:
        """The next batch to send, None where all have been sent."""
        if self._sent == len(self._batches):
            return None
        self._sent += 1
        return self._batches[self._sent - 1]

    def restart(self, *, one_by_one: bool = False) -> None:
        """Send all unacknowledged batches again.

        Args:
            one_by_one: Whether the second batch has to wait until the first is acknowledged.
        """
        self._sent, self._max_sent = 0, 1 if one_by_one else MAX_UNACKNOWLEDGED

    def acknowledge(self, response: events_pb2.StreamEventsResponse) -> None:
        """Take in the acknowledgement of the oldest batch.

        Raises:
            CallFailedError: It is not about all events of that batch.
        """
        events = len(self._batches[0].events) if self._sent else 0
        acknowledged = response.accepted + response.duplicates + len(response.rejected)
        if not self._sent or acknowledged != events:
            raise CallFailedError(events_missing(acknowledged, events))
        self._sent, self._max_sent = self._sent - 1, MAX_UNACKNOWLEDGED
        self.outcome.add(self._batches.popleft(), response)

    def missing(self) -> CallFailedError:
        """The error of a stream that ended well before all batches were acknowledged."""
        return CallFailedError(events_missing(0, sum(len(batch.events) for batch in self._batches)))


def pause_s(problem: Problem, left_s: float) -> float:
    """Seconds to wait before a stream that broke is resumed.

    Args:
        problem: Why it broke.
        left_s: Seconds until the deadline.

    Returns:
        The longer of PAUSE_S and what the server recommends.

    Raises:
        CallFailedError: Another attempt cannot succeed, or not before the deadline.
    """
    retry_after_s = 0.0 if problem.retry_after is None else problem.retry_after.total_seconds()
    wait_s = max(PAUSE_S, retry_after_s)
    if not problem.is_retryable or wait_s > left_s:
        raise CallFailedError(problem)
    return wait_s
