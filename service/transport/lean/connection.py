"""A client's connection to the lean transport: bytes in and out, its calls, and its turns on the event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import Final, Protocol, cast

from service.call_context import CallContext, Quota
from service.errors import Code, cancellation_code, server_stopping
from service.settings import Settings
from service.telemetry.batch_stages import Tracer
from service.telemetry.metrics import Metrics
from service.transport.call_error import CallError, call_error
from service.transport.lean.call import Call, MakeCall, deadline_exceeded, overdue
from service.transport.lean.connection_limit import ConnectionLimit, address_of
from service.transport.lean.framing import HEAD, IDENTITY, check_encoding, timeout_s
from service.transport.lean.http2 import PREFACE, Headers, Http2, LoadShedder, PeerError, Stream
from service.transport.lean.lifetime import Action, Lifetime, Limits
from service.transport.tls import certificate_names

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""Precision of deadlines and other times. One timer serves all connections: a timer for each call would cost more."""
TURN_S: Final = 0.002
"""Seconds that a connection may hold the event loop; what is left waits until the others had their turn."""
SHED_FLUSH_S: Final = 0.002
"""Seconds that replies to shed calls may wait, so that they are written together with the replies of a batch."""
AGE_JITTER: Final = 0.1
NOT_HTTP2_TEXT: Final = b"This port speaks gRPC over HTTP/2: call it with a gRPC client\n"
NOT_HTTP2: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(NOT_HTTP2_TEXT), NOT_HTTP2_TEXT)
)
"""The answer to first bytes that are not HTTP/2."""


class ConnectionOwner(Protocol):
    """The server as its connections see it: what they share."""

    @property
    def settings(self) -> Settings:
        """Limits and times."""

    @property
    def calls(self) -> Mapping[bytes, MakeCall]:
        """What begins a call, by path."""

    @property
    def sheds(self) -> Mapping[bytes, LoadShedder]:
        """What may shed a call before it is read, by path."""

    @property
    def metrics(self) -> Metrics | None:
        """Counts calls."""

    @property
    def tracer(self) -> Tracer | None:
        """Begins traces."""

    @property
    def connections(self) -> set[Connection]:
        """All open connections."""

    @property
    def limit(self) -> ConnectionLimit:
        """Says whether there is room for another connection."""

    def authorize(self, stream: Stream, connection: Connection) -> Quota | None:
        """The quota of the caller, None if there is no limit; RequestError if the caller may not make this call."""

    def lost(self, connection: Connection) -> None:
        """Forget a connection that has been closed."""


class Connection(asyncio.Protocol):
    """A connection, from accept to close."""

    def __init__(self, owner: ConnectionOwner) -> None:
        settings = owner.settings
        self._owner: Final = owner
        self.max_message_bytes: Final = settings.max_message_bytes
        self._h2 = Http2(settings.max_buffered_bytes, owner.sheds)
        self._calls: Final[dict[int, Call]] = {}
        self._ready: Final[deque[Stream]] = deque()
        """Streams with something to do that wait for their turn."""
        self._preface: bytes | None = b""
        """The first bytes as far as they have come; None after the preface of HTTP/2."""
        self._calls_in_batches = 0
        self._is_silent = True
        """Whether no request has come yet."""
        self._last_call_at = 0.0
        self.address = ""
        self.is_known = False
        """Whether a call of a known caller came over it."""
        self._flush_scheduled = self._late_flush_scheduled = self._turn_scheduled = False
        self._reading_paused = self._write_blocked = False
        self._write_closed = False
        """Whether nothing may be written any more: the connection is lost, or our side of it is closed."""
        self._unsent = 0
        jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311  # spreads reconnecting
        limits = Limits(
            max_age_s=settings.max_connection_age_s * jitter,
            keepalive_s=settings.keepalive_interval_s,
            keepalive_timeout_s=settings.keepalive_timeout_s,
            write_stall_timeout_s=settings.write_stall_timeout_s,
        )
        self._lifetime: Final = Lifetime(limits, time.monotonic())

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, unless there are too many already."""
        self._transport = cast("asyncio.Transport", transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.address = address_of(transport.get_extra_info("peername"))
        if not self._owner.limit.admit(self):
            self._transport.abort()
            return
        self._owner.connections.add(self)
        if tls is not None and tls.selected_alpn_protocol() not in ("h2", None):
            self._refuse_protocol()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, and serve the streams that have advanced by them."""
        self._lifetime.heard(time.monotonic())
        if self._write_closed:
            return
        if self._preface is not None:
            data = self._preface + data
            if len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._preface = data
                return
            self._preface = None
            self._lifetime.greeted()
            if not data.startswith(PREFACE):
                self._refuse_protocol()
                return
        try:
            self._ready.extend(self._h2.receive(data))
        except PeerError as error:
            self._close_for(error)
            return
        if self._is_silent and self._h2.has_requests:
            self._is_silent = False
            self._lifetime.called()
            self._owner.limit.called(self)
        self._serve_ready()

    def eof_received(self) -> None:
        """Close: a client that sends no more does not wait for answers either."""

    def connection_lost(self, _error: Exception | None) -> None:
        """End all calls: their client has gone."""
        self._write_closed = True
        self._owner.lost(self)
        for call in list(self._calls.values()):
            call.stream.reset = True
            self._cancelled(call)
        self._calls.clear()

    def pause_writing(self) -> None:
        """Read no more from a peer that does not read: no reply to it could be sent."""
        self._write_blocked = True
        self._lifetime.write_blocked(time.monotonic())
        self._pause_or_resume_reading()

    def resume_writing(self) -> None:
        """Read again."""
        self._write_blocked = False
        self._pause_or_resume_reading()

    @property
    def idle_since(self) -> float | None:
        """When its last call ended, in monotonic seconds; None while a call is under way, or replies are to be read."""
        return None if self._h2.streams or self._h2.unsent() else self._last_call_at

    def give_way(self) -> None:
        """Close at once to make room for another connection; the peer may repeat what it is just sending."""
        if self._preface is None:
            self._h2.go_away_finally()
            self.flush()
        self._write_closed = True
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what has not been sent is lost."""
        self._transport.abort()

    def _refuse_protocol(self) -> None:
        self._transport.write(NOT_HTTP2)
        self._half_close()

    @cached_property
    def certificate_names(self) -> tuple[str, ...]:
        """The names in the client's certificate; empty without one."""
        return certificate_names(self._transport.get_extra_info("peercert") or {})

    # --- turns on the event loop --------------------------------------------------------------------------------

    def _serve_ready(self) -> None:
        """Serve the streams that are ready, for one turn at most; the rest has another turn."""
        ready, end = self._ready, time.monotonic() + TURN_S
        while ready:
            self._serve(ready.popleft())
            if ready and time.monotonic() > end:
                break
        if self._h2.should_reconnect:
            self.leave()
        if not self._calls_in_batches or self._h2.has_pending_output:  # else written with replies due soon
            self.flush()
        elif self._h2.shed and not self._late_flush_scheduled:
            self._late_flush_scheduled = True
            asyncio.get_running_loop().call_later(SHED_FLUSH_S, self._flush_late)
        if ready or self._h2.has_unparsed_input:
            self._schedule_turn()
        self._pause_or_resume_reading()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_scheduled = False
        if self._transport.is_closing():
            return
        try:
            if not self._ready:
                self._ready.extend(self._h2.advance())
        except PeerError as error:
            self._close_for(error)
            return
        self._serve_ready()

    def _pause_or_resume_reading(self) -> None:
        wanted = self._write_blocked or self._turn_scheduled
        if wanted is not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = wanted
            if wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _serve(self, stream: Stream) -> None:
        if stream.reset:
            if (call := self._calls.pop(stream.id, None)) is not None:
                self._cancelled(call)
            return
        call = self._calls.get(stream.id)
        try:
            if call is None:
                call = self._begin(stream)
            if call is not None:
                call.advance()
        except Exception as error:  # whatever it is, the call ends with a status
            self.fail(stream, error)

    def _begin(self, stream: Stream) -> Call | None:
        """Begin the call of a new stream; None if it was refused at once, or is a stream that has ended already."""
        if stream.id not in self._h2.streams:
            return None
        headers = stream.headers
        if stream.method != b"POST":
            self._refuse(stream, 405, [(b"allow", b"POST")])
            return None
        content_type = headers.get(b"content-type", b"")
        if content_type != b"application/grpc" and not content_type.startswith(
            (b"application/grpc+", b"application/grpc;")
        ):
            self._refuse(stream, 415, [(b"accept-post", b"application/grpc")])
            return None
        if (make := self._owner.calls.get(stream.path)) is None:
            raise CallError(Code.UNIMPLEMENTED, "Method not found!")
        if self._unsent > self._owner.settings.max_buffered_bytes:
            raise _replies_unread()
        quota = self._owner.authorize(stream, self)
        check_encoding(headers.get(b"grpc-encoding", IDENTITY))
        started = time.monotonic()
        deadline = started + timeout_s(headers.get(b"grpc-timeout"))
        if deadline <= started:
            raise deadline_exceeded()
        trace = None
        if (tracer := self._owner.tracer) is not None:
            trace = tracer.begin(stream.path, headers.get(b"traceparent"), headers.get(b"tracestate"), started)
        call = self._calls[stream.id] = make(self, stream, CallContext(deadline, trace, quota), started)
        return call

    # --- what calls ask for (CallStream) ------------------------------------------------------------------------

    def send(self, stream: Stream, head: Headers | None, body: bytes, trailers: Headers | None) -> None:
        """Send a part of a reply, or all of it, if the client still waits for it. Trailers end the call."""
        if stream.id not in self._h2.streams:
            return
        self._h2.send(stream, head, body, trailers)
        if trailers is not None and (call := self._calls.pop(stream.id, None)) is not None:
            self._ended(call, Code.OK)
        self._flush_soon()

    def fail(self, stream: Stream, error: Exception) -> None:
        """End a call with a status that is not OK, in headers only if nothing has been sent yet."""
        status, call = call_error(error), self._calls.pop(stream.id, None)
        trailers, cause = status.trailers(), None if isinstance(error, CallError) else error
        if call is not None:
            self._ended(call, status.code, cause)
        if stream.id not in self._h2.streams:
            return
        if call is None and self._owner.metrics is not None:  # the call was refused before it began
            self._owner.metrics.ended(stream.path, status.code, 0.0, cause)
        if call is not None and call.has_replied:
            self._h2.send(stream, None, b"", trailers)
            self._flush_soon()
        else:
            self._refuse(stream, 200, [*HEAD, *trailers])

    def check_room(self) -> None:
        """CallError if too many replies wait for the client to read them."""
        if self._h2.unsent() > self.max_message_bytes:
            raise _replies_unread()

    def requeue(self, stream: Stream) -> None:
        """Advance the call again after the other streams that are ready."""
        self._ready.append(stream)

    def resume(self, stream: Stream) -> None:
        """Advance the call again in a later turn of the event loop."""
        self._ready.append(stream)
        self._schedule_turn()

    def consume(self, stream: Stream, size: int) -> None:
        """Drop the first bytes of the request's body."""
        self._h2.consume(stream, size)

    def hold(self, stream: Stream, *, wanted: bool) -> None:
        """Stop the client from sending more of a request, or let it continue."""
        if stream.id in self._h2.streams:
            self._h2.hold(stream, wanted=wanted)

    def expect_batch(self, call: Call) -> None:
        """Note that a batch will answer the call: what there is to write until then is written with its replies."""
        call.awaits_batch = True
        self._calls_in_batches += 1

    def _ended(self, call: Call, code: int, error: Exception | None = None) -> None:
        self._calls_in_batches -= call.awaits_batch
        self._last_call_at = time.monotonic()
        call.close()
        if (metrics := self._owner.metrics) is not None:
            metrics.ended(call.stream.path, code, self._last_call_at - call.started, error)
        if (trace := call.context.trace) is not None:
            trace.end(code, error)

    def _cancelled(self, call: Call) -> None:
        self._ended(call, cancellation_code(call.context.deadline - time.monotonic()))

    # --- writing ------------------------------------------------------------------------------------------------

    def _refuse(self, stream: Stream, status: int, headers: Headers) -> None:
        self._h2.refuse(stream, status, headers)
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Write what there is once, after all of this turn of the event loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def _flush_late(self) -> None:
        self._late_flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what there is."""
        self._flush_scheduled = False
        if (data := self._h2.to_send()) and not self._write_closed:
            self._transport.write(data)

    @property
    def buffered_bytes(self) -> int:
        """Bytes in memory: of incomplete requests, and of replies that the peer had not taken at the last tick."""
        return self._h2.buffered + self._unsent

    # --- its end ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Ask the client for a new connection, and close this one when its calls are done."""
        if self._lifetime.leave(time.monotonic(), self._h2.pongs):
            self._h2.go_away()
            self._h2.ping()  # its answer shows that the client has read GOAWAY and opens no more streams here
            self.flush()

    def give_up(self) -> None:
        """Fail the calls still running with UNAVAILABLE and close: the grace period is over."""
        if self._write_closed or self._transport.is_closing():
            return
        for call in list(self._calls.values()):
            self.fail(call.stream, server_stopping())
        self._h2.go_away_finally()
        self.flush()
        self._half_close()

    def _half_close(self) -> None:
        """Write no more, and read for a while: closing a socket before it is read may lose what was sent."""
        self._lifetime.half_close(time.monotonic())
        self._write_closed = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _close_for(self, error: PeerError) -> None:
        logger.debug("closing a connection: %s", error)
        self.flush()
        self._transport.close()

    def tick(self, now: float) -> None:
        """Enforce deadlines, and do what the connection's lifetime asks for."""
        if self._transport.is_closing():
            if self._lifetime.tick_closing(now) is Action.ABORT:
                self.abort()
            return
        self._h2.refill(TICK_S)
        for call in list(self._calls.values()):
            if (error := overdue(call, now)) is not None:
                self.fail(call.stream, error)
        if self._tick_lifetime(now) is Action.DRAIN:
            self._tick_lifetime(now)  # there may be nothing to drain

    def _tick_lifetime(self, now: float) -> Action:
        self._unsent = self._h2.unsent()
        action = self._lifetime.tick(
            now,
            pongs=self._h2.pongs,
            open_streams=len(self._h2.streams),
            unsent=self._unsent,
            write_blocked=self._write_blocked,
        )
        match action:
            case Action.NOTHING:
                pass
            case Action.PING:
                self._h2.ping()
                self.flush()
            case Action.LEAVE:
                self.leave()
            case Action.DRAIN:
                self._drain()
            case Action.HALF_CLOSE:
                self.flush()  # the last reply, and those to calls that were shed, may wait for the end of this turn
                self._half_close()
            case Action.CLOSE:
                self._transport.close()
            case Action.ABORT:
                self.abort()
        return action

    def _drain(self) -> None:
        self._h2.go_away_finally()
        for call in list(self._calls.values()):
            if call.is_endless and call.has_replied:
                self.fail(call.stream, server_stopping())
        self.flush()


def _replies_unread() -> CallError:
    return CallError(Code.RESOURCE_EXHAUSTED, "replies wait on this connection: read them first")
