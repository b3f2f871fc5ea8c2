"""A call of the lean transport: its request as it arrives, its deadline, and its replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from service.call_context import CallContext
from service.errors import Code
from service.transport.call_error import CallError
from service.transport.lean.framing import (
    GZIP,
    GZIP_HEAD,
    HEAD,
    IDENTITY,
    MIN_COMPRESSED_BYTES,
    OK,
    announced_size,
    compressed_frame,
    frame,
    next_message,
    only_message,
)
from service.transport.lean.http2 import Headers, Stream

MAX_REQUEST_S: Final = 30.0
"""Seconds within which a unary request must have arrived completely."""


class CallStream(Protocol):
    """What a call may ask of the connection that carries it."""

    @property
    def max_message_bytes(self) -> int:
        """Size limit of a request and of a reply, after decompression."""

    def send(self, stream: Stream, head: Headers | None, body: bytes, trailers: Headers | None) -> None:
        """Send a part of a reply; trailers end the call with status OK."""

    def fail(self, stream: Stream, error: Exception) -> None:
        """End the call with the status of an error."""

    def consume(self, stream: Stream, size: int) -> None:
        """Drop the first bytes of the request's body."""

    def hold(self, stream: Stream, *, wanted: bool) -> None:
        """Stop the client from sending more of the request, or let it continue."""

    def requeue(self, stream: Stream) -> None:
        """Advance the call again after the other streams that are ready."""

    def resume(self, stream: Stream) -> None:
        """Advance the call again in a later turn of the event loop."""

    def check_room(self) -> None:
        """CallError if too many replies wait for the client to read them."""

    def expect_batch(self, call: Call) -> None:
        """Note that a batch will answer the call: what there is to write until then is written with its replies."""


class Call:
    """A call, from its headers to its end."""

    __slots__ = ("awaits_batch", "connection", "context", "due", "encoding", "has_replied", "started", "stream")

    is_endless: ClassVar[bool] = False
    """Whether the call goes on until one side gives it up, so that a connection that closes has to end it."""

    def __init__(self, connection: CallStream, stream: Stream, context: CallContext, started: float) -> None:
        """Begin a call.

        Args:
            connection: The connection that carries the call.
            stream: Its HTTP/2 stream.
            context: Its deadline, trace and quota.
            started: When its headers were handled, by the monotonic clock in seconds.
        """
        self.connection: Final = connection
        self.stream: Final = stream
        self.context: Final = context
        self.started: Final = started
        self.encoding: Final = stream.headers.get(b"grpc-encoding", IDENTITY)
        self.due = min(context.deadline, started + MAX_REQUEST_S)
        """When the call is failed: at its deadline, or when its request should have arrived."""
        self.has_replied = False
        """Whether the headers of the reply have been sent."""
        self.awaits_batch = False

    def advance(self) -> None:
        """Handle more of the request."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the call holds. Called once when the call ends, for any reason."""

    def next_request(self) -> bytes | None:
        """The next request of a stream of requests; None if it has not arrived completely or there are no more."""
        body = self.stream.body
        if (message_and_size := next_message(body, self.encoding, self.connection.max_message_bytes)) is not None:
            message, size = message_and_size
            self.connection.consume(self.stream, size)
            return message
        if self.stream.ended and body:
            raise CallError(Code.INTERNAL, "the request ended within a message")
        return None

    def send_message(self, message: bytes) -> None:
        """Send one of several replies."""
        head = None if self.has_replied else HEAD
        self.has_replied = True
        self.connection.send(self.stream, head, frame(message), None)

    def deliver(self, task: asyncio.Task[bytes], send: Callable[[bytes], None]) -> None:
        """Send what a task of this call has produced, or fail the call with its error.

        Args:
            task: A task that has ended. If it was cancelled, nothing is sent.
            send: Sends the message to the client.
        """
        if task.cancelled():
            return
        # The error is not raised again here: its traceback would then hold this frame, which holds the task, which
        # holds the error and with it the parsed request, until the garbage collector finds that cycle.
        if (error := task.exception()) is None:
            try:
                send(task.result())
            except Exception as problem:  # whatever it is, the call ends with a status
                self.connection.fail(self.stream, problem)
        elif isinstance(error, Exception):
            self.connection.fail(self.stream, error)


class Unary(Call):
    """A call with a single request, which is answered when it has arrived completely."""

    __slots__ = ()

    def advance(self) -> None:
        """Answer the request if it is complete."""
        stream, max_bytes = self.stream, self.connection.max_message_bytes
        if stream.ended:
            self.due = self.context.deadline
            self.answer(only_message(stream.body, self.encoding, max_bytes))
        else:
            announced_size(stream.body, max_bytes)  # refuses a request that is too large before it is complete

    def answer(self, request: bytes) -> None:
        """Handle the complete request."""
        raise NotImplementedError

    def reply(self, message: bytes) -> None:
        """Send the only reply and end the call."""
        stream, max_bytes = self.stream, self.connection.max_message_bytes
        if len(message) > max_bytes:
            text = f"SERVER: Sent message larger than max ({len(message)} vs. {max_bytes})"
            raise CallError(Code.RESOURCE_EXHAUSTED, text)
        if (
            self.encoding == GZIP
            and len(message) >= MIN_COMPRESSED_BYTES
            and GZIP in stream.headers.get(b"grpc-accept-encoding", b"")
        ):
            self.connection.send(stream, GZIP_HEAD, compressed_frame(message), OK)
        else:
            self.connection.send(stream, HEAD, frame(message), OK)


MakeCall = Callable[[CallStream, Stream, CallContext, float], Call]
"""Begins a call of one method, with the arguments of :class:`Call`."""


def overdue(call: Call, now: float) -> CallError | None:
    """The error of a call that is past its deadline, or whose request takes too long; None while it may go on."""
    if now <= call.due:
        return None
    return deadline_exceeded() if now > call.context.deadline else request_too_slow()


def deadline_exceeded() -> CallError:
    """The error of a call past its deadline."""
    return CallError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")


def request_too_slow() -> CallError:
    """The error of a unary call whose request does not arrive in time."""
    return CallError(Code.DEADLINE_EXCEEDED, f"the request was not complete after {MAX_REQUEST_S:g} s")
