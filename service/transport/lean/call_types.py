"""The kinds of calls on the lean front: what is done as a request comes in, and how its replies go out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from service.api.methods import Stream as RequestStream
from service.api.methods import Unary as Handler
from service.api.scoring import Method
from service.api.status import encoded_status
from service.batching.admission import overloaded
from service.call_context import CallContext
from service.errors import Code, Reason, RequestError
from service.scoring.scorer import Scores
from service.telemetry.batch_stages import Trace
from service.transport.lean.framing import (
    GZIP,
    GZIP_HEAD,
    HEAD,
    IDENTITY,
    OK,
    WORTHWHILE,
    CallError,
    announced,
    check_encoding,
    compressed_frame,
    frame,
    next_message,
    only_message,
    timeout_s,
)
from service.transport.lean.http2 import Alone, Stream, headers_alone

if TYPE_CHECKING:  # a connection makes calls, and calls answer on their connection
    from service.transport.lean.connection import Connection

logger = logging.getLogger(__name__)

WHOLE_S: Final = 30.0
"""A unary request must be whole by then."""
ENOUGH: Final = 32_768
"""Bytes of a stream that wait while a message before them is worked on; then its client waits too."""


class Call:
    """A call on a stream, from its headers to its end."""

    __slots__ = ("began", "connection", "deadline", "due", "encoding", "stream", "talking", "trace")

    def __init__(self, connection: Connection, stream: Stream) -> None:
        headers = stream.headers
        self.connection: Final = connection
        self.stream: Final = stream
        self.encoding: Final = headers.get(b"grpc-encoding", IDENTITY)
        if self.encoding != IDENTITY:
            check_encoding(self.encoding)
        self.began: Final = time.monotonic()
        self.deadline: Final = self.began + timeout_s(headers.get(b"grpc-timeout"))
        self.due = min(self.deadline, self.began + WHOLE_S)
        """When to look after it: at its deadline, or when its request should be whole."""
        self.talking = False
        """Whether its headers are sent."""
        self.trace: Trace | None = None

    @property
    def context(self) -> CallContext:
        """What the batchers need to know about the call."""
        return CallContext(self.deadline, self.trace)

    def advance(self) -> None:
        """More of the request has come."""
        raise NotImplementedError

    def next_request(self) -> bytes | None:
        """The next of several requests, None where it is not whole yet, or there is no more."""
        if (found := next_message(self.stream.body, self.encoding, self.connection.most_bytes)) is not None:
            request, size = found
            self.connection.consume(self.stream, size)
            return request
        if self.stream.ended and self.stream.body:
            raise CallError(Code.INTERNAL, "the request ended within a message")
        return None

    def tell(self, message: bytes) -> None:
        """Send one of several replies."""
        head = None if self.talking else HEAD
        self.talking = True
        self.connection.send(self.stream, head, frame(message), None)

    def over(self) -> None:
        """It has ended, in whatever way."""


class Unary(Call):
    """One request, which is answered when it is whole."""

    __slots__ = ()

    def advance(self) -> None:
        """Answer if the request is whole."""
        stream, most = self.stream, self.connection.most_bytes
        if stream.ended:
            self.due = self.deadline
            self.answer(only_message(stream.body, self.encoding, most))
        else:
            announced(stream.body, most)  # too large is too large before it is whole

    def answer(self, request: bytes) -> None:
        """The request is whole."""
        raise NotImplementedError

    def reply(self, message: bytes) -> None:
        """The end of the call."""
        stream, most = self.stream, self.connection.most_bytes
        if len(message) > most:
            text = f"SERVER: Sent message larger than max ({len(message)} vs. {most})"
            raise CallError(Code.RESOURCE_EXHAUSTED, text)
        if (
            self.encoding == GZIP
            and len(message) >= WORTHWHILE
            and GZIP in stream.headers.get(b"grpc-accept-encoding", b"")
        ):
            self.connection.send(stream, GZIP_HEAD, compressed_frame(message), OK)
        else:
            self.connection.send(stream, HEAD, frame(message), OK)


class Score(Unary):
    """A call of the scoring service: decoded, handed to the batcher, and answered when its batch is done."""

    __slots__ = ("method", "part", "submitted")

    def __init__(self, method: Method, connection: Connection, stream: Stream) -> None:
        super().__init__(connection, stream)
        self.method: Final = method
        self.submitted = False

    def answer(self, request: bytes) -> None:
        """Have it scored with the next batch."""
        self.part = self.method.decode(request)
        self.connection.scoring += 1
        self.submitted = True
        self.connection.front.batcher.submit(self.part, self.deliver, self.abandoned, self.context)

    def over(self) -> None:
        """No batch is waited for."""
        self.connection.scoring -= self.submitted

    def abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return self.stream.reset

    def deliver(self, outcome: Scores | RequestError) -> None:
        """Take the batch's outcome to the client."""
        if isinstance(outcome, RequestError):
            self.connection.fail(self.stream, outcome)
            return
        try:
            self.reply(self.method.encode(self.part, outcome))
        except Exception as error:  # whatever it is, the call ends with a status
            self.connection.fail(self.stream, error)


class Handled(Unary):
    """A call that a handler answers, in a task of its own."""

    __slots__ = ("handler", "task")

    def __init__(self, handler: Handler, connection: Connection, stream: Stream) -> None:
        super().__init__(connection, stream)
        self.handler: Final = handler
        self.task: asyncio.Task[bytes] | None = None

    def answer(self, request: bytes) -> None:
        """Have it handled."""
        self.task = asyncio.get_running_loop().create_task(_handled(self.handler, request, self.context))
        self.task.add_done_callback(self.done)

    def done(self, task: asyncio.Task[bytes]) -> None:
        """Take the outcome to the client."""
        if task.cancelled():
            return
        try:
            self.reply(task.result())
        except Exception as error:  # whatever it is, the call ends with a status
            self.connection.fail(self.stream, error)

    def over(self) -> None:
        """Nobody waits any more."""
        if self.task is not None:
            self.task.cancel()


class Streamed(Call):
    """Many requests and one reply: each is taken when the one before it is done with, so a fast client has to wait."""

    __slots__ = ("added", "task")

    def __init__(self, begin: Callable[[CallContext], RequestStream], connection: Connection, stream: Stream) -> None:
        super().__init__(connection, stream)
        self.added: Final = begin(self.context)
        self.task: asyncio.Task[None] | None = None
        self.due = self.deadline

    def advance(self) -> None:
        """The next request, if it is whole and the one before is done with."""
        if self.task is None:
            self._next()
        self.connection.hold(self.stream, wanted=self.task is not None and len(self.stream.body) > ENOUGH)

    def _next(self) -> None:
        if (request := self.next_request()) is not None:
            self.task = asyncio.get_running_loop().create_task(self.added.add(request))
            self.task.add_done_callback(self.done)
        elif self.stream.ended:
            self.connection.send(self.stream, HEAD, frame(self.added.reply()), OK)

    def done(self, task: asyncio.Task[None]) -> None:
        """Go on with the next request."""
        self.task = None
        if task.cancelled():
            return
        if (error := task.exception()) is None:
            self.connection.go_on(self.stream)
        elif isinstance(error, Exception):
            self.connection.fail(self.stream, error)

    def over(self) -> None:
        """Nobody waits any more."""
        if self.task is not None:
            self.task.cancel()


class HealthCheck(Unary):
    """Answered on the spot."""

    __slots__ = ()

    def answer(self, request: bytes) -> None:
        """Health.Check."""
        self.reply(self.connection.front.health.check(request))


class HealthWatch(Unary):
    """One request, and a reply at each change."""

    __slots__ = ()

    def answer(self, request: bytes) -> None:
        """Health.Watch: now, and whenever it changes."""
        self.connection.front.health.watch(request, self.tell)

    def over(self) -> None:
        """Nobody is to be told any more."""
        self.connection.front.health.unwatch(self.tell)


class Reflect(Call):
    """A reply to each request, for as long as there are any."""

    __slots__ = ()

    def advance(self) -> None:
        """ServerReflectionInfo: the next request, if it is whole."""
        self.due = self.deadline
        if self.stream.body:
            self.connection.check_room()
        if (request := self.next_request()) is not None:
            self.tell(self.connection.front.reflection.answer(request))
            self.connection.again(self.stream)  # the next one when others had their turn
        elif self.stream.ended:
            self.connection.send(self.stream, None if self.talking else HEAD, b"", OK)


async def _handled(handler: Handler, request: bytes, context: CallContext) -> bytes:
    if time.monotonic() > context.deadline:
        raise too_late()
    # Called here and not where the task is made: a task that is cancelled before it starts leaves nothing behind.
    return await handler(request, context)


@lru_cache(maxsize=4096)
def shed_reply(retry_s: float) -> Alone:
    """What a call that is shed is told, made once for each time to come back: to shed has to cost next to nothing."""
    return headers_alone([*HEAD, *call_error(overloaded(retry_s)).headers()])


def too_late() -> CallError:
    """For a call past its deadline."""
    return CallError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")


def too_slow() -> CallError:
    """For a request that dribbles."""
    return CallError(Code.DEADLINE_EXCEEDED, f"the request was not whole after {WHOLE_S:g} s")


def call_error(error: Exception) -> CallError:
    """Any error as the end of a call; nothing of the inside of one that is a fault of ours may reach the caller."""
    if isinstance(error, CallError):
        return error
    if not isinstance(error, RequestError):
        name = type(error).__name__
        logger.error("a call failed: %s", name)
        error = RequestError(Reason.INTERNAL, f"the server failed ({name})")
    return CallError(error.code, error.message, encoded_status(error), error.pushback_ms)
