"""The blocking client of EventService.

Example:
    with EventClient("127.0.0.1:50051") as client:
        recorded = client.record([Event("900", "view", item_id="shoe-1", channel="web")])
        for event in recorded.rejected:
            print(event.index, event.reason, event.message)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import grpc
from tidemark.v1 import events_pb2, events_pb2_grpc

from tidemark.base import Client
from tidemark.channel import NO_RETRIES
from tidemark.errors import CallFailedError, call_failed
from tidemark.messages.events import Batch, Outcome, Unacknowledged, batches, pause_s
from tidemark.types import Event, Recorded


class EventClient(Client):
    """Records events."""

    _make_stub = staticmethod(events_pb2_grpc.EventServiceStub)

    @cached_property
    def _streaming(self) -> grpc.Channel:
        """A connection for streams, on which gRPC itself retries nothing."""
        channel: grpc.Channel = self._connection.channel(grpc, NO_RETRIES)
        return channel

    def close(self) -> None:
        """Close the connections. Calls that still run are cancelled."""
        super().close()
        if "_streaming" in vars(self):
            self._streaming.close()

    def record(self, events: Sequence[Event], *, timeout_s: float | None = None) -> Recorded:
        """Record events, in calls of at most 1000 events and half a MiB.

        Args:
            events: The events, in any order.
            timeout_s: Seconds for each call, its retries included; None for the client's default.

        Returns:
            The outcome for all events.

        Raises:
            CallFailedError: A call failed. Events of earlier calls, and perhaps some of this one, are recorded; it is
                safe to record all of them again.
        """
        outcome = Outcome()
        for batch in batches(events):
            outcome.add(batch, self._call(self._stub.RecordEvents, batch.request, timeout_s))
        return outcome.result()

    def stream(self, events: Iterable[Event], *, timeout_s: float) -> Recorded:
        """Record any number of events in one stream, and resume it where it breaks.

        The client waits for acknowledgements after a few messages, so memory stays bounded. When the stream breaks for
        a reason that may pass, it waits as long as the server recommends and sends only unacknowledged events again.
        Such events may have been recorded before; then they count among the duplicates.

        Args:
            events: The events. They are drawn in another thread as they are sent.
            timeout_s: Seconds for all of it.

        Returns:
            The outcome for all events.

        Raises:
            CallFailedError: The server refuses the events, or the time is up. Acknowledged events are recorded.
        """
        end = time.monotonic() + timeout_s
        stream = _Stream(batches(events))
        if not stream.begin():
            return stream.outcome.result()
        method = self._make_stub(self._streaming).StreamEvents
        while True:
            try:
                stream.run(method, max(0.0, end - time.monotonic()), self._connection.metadata)
                return stream.outcome.result()
            except CallFailedError as error:
                wait_s = pause_s(error.problem, end - time.monotonic())
            time.sleep(wait_s)


class _Attempt:
    """One call of a stream."""

    def __init__(self) -> None:
        self.is_over = False


class _Stream:
    """A stream of events over as many calls as it takes.

    grpcio draws the messages of a call in a thread, and that of a broken call may still be at it when the next begins:
    so only one of them draws at a time, and all state is changed under a lock.
    """

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source: Final = source
        self._drawing: Final = threading.Lock()
        self._changed: Final = threading.Condition()
        self._unacknowledged: Final = Unacknowledged()
        self._is_drawn = False
        self._source_error: BaseException | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome of what is acknowledged."""
        return self._unacknowledged.outcome

    def begin(self) -> bool:
        """Draw the first batch, and return whether there is one."""
        first = next(self._source, None)
        if first is not None:
            self._unacknowledged.add(first)
        return first is not None

    def run(self, method: Any, timeout_s: float, metadata: Any) -> None:
        """Make one call.

        Raises:
            CallFailedError: It ended before all events were acknowledged.
        """
        attempt = _Attempt()
        with self._changed:
            self._unacknowledged.restart()
        call = method(self._messages(attempt), timeout=timeout_s, metadata=metadata)
        try:
            for response in call:
                with self._changed:
                    self._unacknowledged.acknowledge(response)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            if self._source_error is None:
                raise call_failed(error) from None
        finally:
            with self._changed:
                attempt.is_over = True
                self._changed.notify_all()
            call.cancel()
        if self._source_error is not None:
            raise self._source_error
        with self._changed:
            if self._unacknowledged or not self._is_drawn:
                raise self._unacknowledged.missing()

    def _messages(self, attempt: _Attempt) -> Iterator[events_pb2.StreamEventsRequest]:
        while (batch := self._next(attempt)) is not None:
            yield batch.message

    def _next(self, attempt: _Attempt) -> Batch | None:
        """The next batch for a call, as soon as it may be sent; None at the end of all batches, or of the call."""
        with self._drawing:
            with self._changed:
                while self._unacknowledged.is_full and not attempt.is_over:
                    self._changed.wait()
                if attempt.is_over:
                    return None
                if (batch := self._unacknowledged.next_batch()) is not None or self._is_drawn:
                    return batch
            try:
                drawn = next(self._source, None)
            except BaseException as error:
                self._source_error = error
                raise
            with self._changed:
                if drawn is None:
                    self._is_drawn = True
                    return None
                self._unacknowledged.add(drawn)
                return None if attempt.is_over else self._unacknowledged.next_batch()
