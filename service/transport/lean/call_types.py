"""The kinds of calls on the lean transport: what each does with its request, and how its replies are sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from service.api.methods import Stream as RequestStream
from service.api.methods import Unary as Handler
from service.api.scoring import Method
from service.batching.admission import overloaded
from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.errors import RequestError
from service.scoring.types import Scores
from service.transport.call_error import call_error
from service.transport.lean.call import Call, CallStream, Unary, deadline_exceeded
from service.transport.lean.framing import HEAD, OK
from service.transport.lean.http2 import HeadersOnlyReply, Stream, headers_only_reply
from service.transport.standard_services import Health, Reflection

MAX_WAITING_BYTES: Final = 32_768
"""Bytes of a request stream that may wait while the message before them is handled; beyond it the client must pause."""


class Score(Unary):
    """A call of ScoringService: decoded, submitted to the batcher, and answered when its batch is done."""

    __slots__ = ("batcher", "encoding_task", "method", "part")

    def __init__(
        self,
        batcher: ScoreBatcher,
        method: Method,
        connection: CallStream,
        stream: Stream,
        context: CallContext,
        started: float,
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.batcher: Final = batcher
        self.method: Final = method
        self.encoding_task: asyncio.Task[bytes] | None = None

    def answer(self, request: bytes) -> None:
        """Submit the request to the next batch."""
        self.part = self.method.decode(request)
        self.context.charge(len(self.part.customer_ids))
        self.connection.expect_batch(self)
        self.batcher.submit(self.part, self.finish, self.abandoned, self.context)

    def abandoned(self) -> bool:
        """Whether the client waits no longer."""
        return self.stream.reset

    def finish(self, outcome: Scores | RequestError) -> None:
        """Send the outcome of the batch to the client."""
        if isinstance(outcome, RequestError):
            self.connection.fail(self.stream, outcome)
            return
        if self.method.encodes_at_once(outcome):
            try:
                self.reply(self.method.encode(self.part, outcome))
            except Exception as error:  # whatever it is, the call ends with a status
                self.connection.fail(self.stream, error)
            return
        encode = self.method.encode_in_slices(self.part, outcome)
        self.encoding_task = asyncio.get_running_loop().create_task(encode)
        self.encoding_task.add_done_callback(lambda task: self.deliver(task, self.reply))

    def close(self) -> None:
        """Stop encoding the reply if that is not complete."""
        if self.encoding_task is not None:
            self.encoding_task.cancel()


class Handled(Unary):
    """A call that a handler answers in its own task."""

    __slots__ = ("handler", "task")

    def __init__(
        self, handler: Handler, connection: CallStream, stream: Stream, context: CallContext, started: float
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.handler: Final = handler
        self.task: asyncio.Task[bytes] | None = None

    def answer(self, request: bytes) -> None:
        """Start the handler."""
        self.task = asyncio.get_running_loop().create_task(_handled(self.handler, request, self.context))
        self.task.add_done_callback(lambda task: self.deliver(task, self.reply))

    def close(self) -> None:
        """Stop the handler if it is still running."""
        if self.task is not None:
            self.task.cancel()


class Streamed(Call):
    """A stream of requests. Each gets its response before the next is handled, so a fast client has to wait."""

    __slots__ = ("requests", "task")

    def __init__(
        self,
        begin: Callable[[CallContext], RequestStream],
        connection: CallStream,
        stream: Stream,
        context: CallContext,
        started: float,
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.requests: Final = begin(context)
        self.task: asyncio.Task[bytes] | None = None
        self.due = context.deadline

    def advance(self) -> None:
        """Take the next message if it is complete and the one before it has been handled."""
        if self.task is None:
            self._take_next()
        waits = self.task is not None and len(self.stream.body) > MAX_WAITING_BYTES
        self.connection.hold(self.stream, wanted=waits)

    def _take_next(self) -> None:
        if (request := self.next_request()) is not None:
            self.connection.check_room()  # responses that the client does not read must not pile up
            self.task = asyncio.get_running_loop().create_task(self.requests.answer(request))
            self.task.add_done_callback(self.handled)
        elif self.stream.ended:
            self.connection.send(self.stream, None if self.has_replied else HEAD, b"", OK)

    def handled(self, task: asyncio.Task[bytes]) -> None:
        """Send the response and continue with the next message, or fail the call."""
        self.task = None
        self.deliver(task, self._send_and_continue)

    def _send_and_continue(self, response: bytes) -> None:
        self.send_message(response)
        self.connection.resume(self.stream)

    def close(self) -> None:
        """Stop the handling of a message if it is still running."""
        if self.task is not None:
            self.task.cancel()


class HealthCheck(Unary):
    """Health.Check: answered at once."""

    __slots__ = ("health",)

    def __init__(
        self, health: Health, connection: CallStream, stream: Stream, context: CallContext, started: float
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.health: Final = health

    def answer(self, request: bytes) -> None:
        """Reply with the status of the service that the request names."""
        self.reply(self.health.check(request))


class HealthWatch(Unary):
    """Health.Watch: one request, and a reply at each change."""

    __slots__ = ("health",)

    is_endless = True

    def __init__(
        self, health: Health, connection: CallStream, stream: Stream, context: CallContext, started: float
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.health: Final = health

    def answer(self, request: bytes) -> None:
        """Reply with the current status, and with the new one at each change."""
        self.health.watch(request, self.send_message)

    def close(self) -> None:
        """Send no more changes."""
        self.health.unwatch(self.send_message)


class Reflect(Call):
    """ServerReflectionInfo: a reply to each request, until the client sends no more."""

    __slots__ = ("reflection",)

    is_endless = True

    def __init__(
        self, reflection: Reflection, connection: CallStream, stream: Stream, context: CallContext, started: float
    ) -> None:
        super().__init__(connection, stream, context, started)
        self.reflection: Final = reflection

    def advance(self) -> None:
        """Answer the next request if it is complete."""
        self.due = self.context.deadline
        if self.stream.body:
            self.connection.check_room()
        if (request := self.next_request()) is not None:
            self.send_message(self.reflection.answer(request))
            self.connection.requeue(self.stream)  # other streams first, then the next request
        elif self.stream.ended:
            self.connection.send(self.stream, None if self.has_replied else HEAD, b"", OK)


async def _handled(handler: Handler, request: bytes, context: CallContext) -> bytes:
    if time.monotonic() > context.deadline:
        raise deadline_exceeded()
    # Called here and not where the task is made: a task that is cancelled before it starts leaves nothing behind.
    return await handler(request, context)


@lru_cache(maxsize=4096)
def shed_reply(retry_s: float) -> HeadersOnlyReply:
    """The reply to a call that is shed, encoded once for each retry delay, because shedding must cost very little."""
    return headers_only_reply([*HEAD, *call_error(overloaded(retry_s)).trailers()])
