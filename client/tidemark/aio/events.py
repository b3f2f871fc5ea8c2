"""The asyncio client of EventService.

Example:
    async with AsyncEventClient("127.0.0.1:50051") as client:
        recorded = await client.record([Event("900", "view", item_id="shoe-1", channel="web")])
        for event in recorded.rejected:
            print(event.index, event.reason, event.message)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from functools import cached_property
from typing import Any, Final

import grpc
import grpc.aio
from tidemark.v1 import events_pb2_grpc

from tidemark.aio.base import AsyncClient
from tidemark.channel import NO_RETRIES
from tidemark.errors import HIDDEN_STATUS, CallFailedError, call_failed
from tidemark.messages.events import PAUSE_S, Batch, Outcome, Unacknowledged, async_batches, batches, pause_s
from tidemark.types import Event, Recorded


class AsyncEventClient(AsyncClient):
    """Records events."""

    _make_stub = staticmethod(events_pb2_grpc.EventServiceStub)

    @cached_property
    def _streaming(self) -> grpc.aio.Channel:
        """A connection for streams, on which gRPC itself retries nothing."""
        channel: grpc.aio.Channel = self._connection.channel(grpc.aio, NO_RETRIES)
        return channel

    async def close(self) -> None:
        """Close the connections. Calls that still run are cancelled."""
        await super().close()
        if "_streaming" in vars(self):
            await self._streaming.close()

    async def record(self, events: Sequence[Event], *, timeout_s: float | None = None) -> Recorded:
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
            outcome.add(batch, await self._call(self._stub.RecordEvents, batch.request, timeout_s))
        return outcome.result()

    async def stream(self, events: Iterable[Event] | AsyncIterable[Event], *, timeout_s: float) -> Recorded:
        """Record any number of events in one stream, and resume it where it breaks.

        The client waits for acknowledgements after a few messages, so memory stays bounded. When the stream breaks for
        a reason that may pass, it waits as long as the server recommends and sends only unacknowledged events again.
        Such events may have been recorded before; then they count among the duplicates.

        Args:
            events: The events, of a plain or an asynchronous iterable. They are drawn as they are sent.
            timeout_s: Seconds for all of it.

        Returns:
            The outcome for all events.

        Raises:
            CallFailedError: The server refuses the events, or the time is up. Acknowledged events are recorded.
        """
        end = time.monotonic() + timeout_s
        stream = _Stream(async_batches(events))
        method = self._make_stub(self._streaming).StreamEvents
        try:
            while await stream.has_more():
                try:
                    await stream.run(method, max(0.0, end - time.monotonic()), self._connection.metadata)
                except CallFailedError as error:
                    await asyncio.sleep(pause_s(error.problem, end - time.monotonic()))
        finally:
            stream.close()
        return stream.outcome.result()


class _Stream:
    """A stream of events over as many calls as it takes."""

    def __init__(self, source: AsyncIterator[Batch]) -> None:
        self._source: Final = source
        self._unacknowledged: Final = Unacknowledged()
        self._acknowledged: Final = asyncio.Event()
        self._drawing: asyncio.Task[Batch | None] | None = None
        self._is_drawn = False
        self._source_error: BaseException | None = None
        self._is_status_hidden = False
        """Whether the last call ended with a status that grpc.aio hid. The next call then pauses before its first
        message, and waits for its acknowledgement before the second: no message is being written when it ends."""

    @property
    def outcome(self) -> Outcome:
        """The outcome of what is acknowledged."""
        return self._unacknowledged.outcome

    async def has_more(self) -> bool:
        """Whether there are events that have not been acknowledged."""
        if not self._unacknowledged and not self._is_drawn:
            await self._draw()
        return bool(self._unacknowledged)

    def close(self) -> None:
        """Draw no more events."""
        if self._drawing is not None:
            self._drawing.cancel()

    async def run(self, method: Any, timeout_s: float, metadata: Any) -> None:
        """Make one call.

        Raises:
            CallFailedError: It ended before all events were acknowledged.
        """
        self._unacknowledged.restart(one_by_one=self._is_status_hidden)
        call = method(timeout=timeout_s, metadata=metadata)
        sending = asyncio.create_task(self._send(call))
        try:
            async for response in call:
                self._unacknowledged.acknowledge(response)
                self._acknowledged.set()
        except asyncio.CancelledError:
            if self._source_error is None:
                raise
        except grpc.RpcError as error:
            failed = call_failed(error)
            self._is_status_hidden = failed.problem.message == HIDDEN_STATUS
            if self._source_error is None:
                raise failed from None
        finally:
            sending.cancel()
            call.cancel()
            await asyncio.wait([sending])
        if self._source_error is not None:
            raise self._source_error
        if self._unacknowledged or not self._is_drawn:
            raise self._unacknowledged.missing()

    async def _send(self, call: Any) -> None:
        try:
            if self._is_status_hidden:
                await asyncio.sleep(PAUSE_S)
            while (batch := await self._next()) is not None:
                await call.write(batch.message)
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call has ended, and its status says why
        except Exception as error:  # the source of the events failed
            self._source_error = error
            call.cancel()

    async def _next(self) -> Batch | None:
        """The next batch, as soon as it may be sent; None at the end of all batches."""
        while self._unacknowledged.is_full:
            self._acknowledged.clear()
            await self._acknowledged.wait()
        if (batch := self._unacknowledged.next_batch()) is not None or self._is_drawn:
            return batch
        await self._draw()
        return self._unacknowledged.next_batch()

    async def _draw(self) -> None:
        """Add the next batch to the line.

        It is drawn in a separate task: if the call breaks meanwhile, the source must not be cancelled with it.
        """
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._drawn())
        drawing = self._drawing
        batch = await asyncio.shield(drawing)
        self._drawing = None
        if batch is None:
            self._is_drawn = True
        else:
            self._unacknowledged.add(batch)

    async def _drawn(self) -> Batch | None:
        return await anext(self._source, None)
