"""A client's connection on the lean front: its bytes, its turns on the loop, its times, and its end."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final, Literal, Protocol, cast

from service.batching.score_batcher import ScoreBatcher
from service.errors import Code, given_up, server_stopping
from service.settings import Settings
from service.telemetry.batch_stages import Tracer
from service.telemetry.metrics import Metrics
from service.transport.lean.call_types import Call, call_error, too_late, too_slow
from service.transport.lean.framing import HEAD, CallError
from service.transport.lean.http2 import PREFACE, Headers, Http2, PeerError, Shed, Stream
from service.transport.standard_services import Health, Reflection
from service.transport.tls import certificate_names

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""How exact deadlines and other times are kept. One timer for all: a timer of its own would cost each call."""
TURN_S: Final = 0.002
HANDSHAKE_S: Final = 10.0
"""A connection must have spoken HTTP/2 by then."""
PONG_S: Final = 5.0
"""A peer that is asked to go has read it by then; without a sign it is taken as read."""
LINGER_S: Final = 1.0
"""Then it has as long to close; a socket that is closed before it is read to the end may lose what was sent."""
AGE_JITTER: Final = 0.1
NOT_HTTP2_TEXT: Final = b"This port speaks gRPC over HTTP/2: call it with a gRPC client\n"
NOT_HTTP2: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(NOT_HTTP2_TEXT), NOT_HTTP2_TEXT)
)
"""For the first bytes of anything else."""


class Front(Protocol):
    """What connections share."""

    @property
    def settings(self) -> Settings:
        """Limits and times."""

    @property
    def batcher(self) -> ScoreBatcher:
        """Where calls are scored."""

    @property
    def health(self) -> Health:
        """Who may be told of changes."""

    @property
    def reflection(self) -> Reflection:
        """What there is to call."""

    @property
    def calls(self) -> Mapping[bytes, Callable[[Connection, Stream], Call]]:
        """By path, what begins a call."""

    @property
    def sheds(self) -> Mapping[bytes, Shed]:
        """By path, what sheds a call before it is read."""

    @property
    def metrics(self) -> Metrics | None:
        """Where calls are counted."""

    @property
    def tracer(self) -> Tracer | None:
        """What begins traces."""

    @property
    def connections(self) -> set[Connection]:
        """All that are open."""

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""

    def flush_soon(self, connection: Connection) -> None:
        """Have it flushed once, after all of this turn of the loop."""

    def flush_later(self, connection: Connection) -> None:
        """Have it flushed within a moment, so that there may be more to write by then."""


class Connection(asyncio.Protocol):
    """From accept to close."""

    def __init__(self, front: Front) -> None:
        self.front: Final = front
        self.most_bytes: Final = front.settings.max_message_bytes
        self._h2 = Http2(front.settings.max_buffered_bytes, front.sheds)
        self._calls: Final[dict[int, Call]] = {}
        self._todo: Final[deque[Stream]] = deque()
        self._greeting: bytes | None = b""
        self.scoring = 0
        """Calls that a batch will answer."""
        self._unflushed = self._paused = self._choked = self._turning = False
        self._born = self._heard = self._took = time.monotonic()
        self._pinged: float | None = None
        self._pongs = 0
        self._unsent = 0
        self._mute = False
        """Whether nothing may be written any more: the connection is lost, or its end has been written."""
        self._closing: float | None = None
        self._leaving: Literal["", "asked", "told", "gone"] = ""
        self._left = math.inf
        age = front.settings.max_connection_age_s
        self._age_s = age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311  # spreads reconnecting

    # --- the transport ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client, unless there are too many already."""
        self._transport = cast("asyncio.Transport", transport)
        secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if len(self.front.connections) >= self.front.settings.max_connections:
            self._transport.abort()
            return
        self.front.connections.add(self)
        if secured is not None and secured.selected_alpn_protocol() not in ("h2", None):
            self._refuse_protocol()

    def data_received(self, data: bytes) -> None:
        """Take in bytes, and serve what has become whole by them."""
        self._heard = time.monotonic()
        if self._mute:
            return
        if self._greeting is not None:
            data = self._greeting + data
            if len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._greeting = data
                return
            self._greeting = None
            if not data.startswith(PREFACE):
                self._refuse_protocol()
                return
        try:
            self._todo.extend(self._h2.receive(data))
        except PeerError as error:
            self._end(error)
            return
        self._serve_all()

    def eof_received(self) -> None:
        """The client sends no more, so nobody waits for answers."""

    def connection_lost(self, _error: Exception | None) -> None:
        """Give up all calls."""
        self._mute = True
        self.front.lost(self)
        for call in list(self._calls.values()):
            call.stream.reset = True
            self._given_up(call)
        self._calls.clear()

    def pause_writing(self) -> None:
        """Read no more from a peer that does not read: nothing it sends could be answered."""
        self._choked = True
        self._took = time.monotonic()
        self._read_or_not()

    def resume_writing(self) -> None:
        """Go on."""
        self._choked = False
        self._read_or_not()

    def abort(self) -> None:
        """Close without another word."""
        self._transport.abort()

    def _refuse_protocol(self) -> None:
        self._transport.write(NOT_HTTP2)
        self._say_goodbye()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names in the client's certificate; none without one."""
        return certificate_names(self._transport.get_extra_info("peercert") or {})

    # --- calls --------------------------------------------------------------------------------------------------

    def _next_turn(self) -> None:
        self._turning = False
        if self._transport.is_closing():
            return
        try:
            if not self._todo:
                self._todo.extend(self._h2.advance())
        except PeerError as error:
            self._end(error)
            return
        self._serve_all()

    def _serve_all(self) -> None:
        """Serve the streams that got further, for as long as a turn may take; the rest has another turn."""
        todo, end = self._todo, time.monotonic() + TURN_S
        while todo:
            self._serve(todo.popleft())
            if todo and time.monotonic() > end:
                break
        if self._h2.worn:
            self.leave()
        if not self.scoring or self._h2.owes:  # otherwise replies are due soon, and all is written with them
            self.flush()
        elif self._h2.shed:
            self.front.flush_later(self)
        if (todo or self._h2.behind) and not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._read_or_not()

    def _read_or_not(self) -> None:
        if (wanted := self._choked or self._turning) is not self._paused and not self._transport.is_closing():
            self._paused = wanted
            if wanted:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _serve(self, stream: Stream) -> None:
        if stream.reset:
            if (given_up := self._calls.pop(stream.id, None)) is not None:
                self._given_up(given_up)
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
        """A call for a stream that is new; None where it was refused on the spot, or is one that has been ended."""
        if stream.id not in self._h2.streams:
            return None
        if stream.method != b"POST":
            self._refuse(stream, 405, [(b"allow", b"POST")])
            return None
        kind = stream.headers.get(b"content-type", b"")
        if kind != b"application/grpc" and not kind.startswith((b"application/grpc+", b"application/grpc;")):
            self._refuse(stream, 415, [(b"accept-post", b"application/grpc")])
            return None
        if (begin := self.front.calls.get(stream.path)) is None:
            raise CallError(Code.UNIMPLEMENTED, "Method not found!")
        if self._unsent > self.front.settings.max_buffered_bytes:
            raise CallError(Code.RESOURCE_EXHAUSTED, "replies wait on this connection: read them first")
        call = begin(self, stream)
        if call.deadline <= call.began:
            raise too_late()
        if (tracer := self.front.tracer) is not None:
            headers = stream.headers
            call.trace = tracer.begin(stream.path, headers.get(b"traceparent"), headers.get(b"tracestate"), call.began)
        self._calls[stream.id] = call
        return call

    def send(self, stream: Stream, head: Headers | None, body: bytes, trailers: Headers | None) -> None:
        """Send a part of a reply, or all of it, if anybody still waits for it."""
        if stream.id not in self._h2.streams:
            return
        self._h2.send(stream, head, body, trailers)
        if trailers is not None and (call := self._calls.pop(stream.id, None)) is not None:
            self._over(call, Code.OK)
        self._flush_soon()

    def _refuse(self, stream: Stream, status: int, headers: Headers) -> None:
        self._h2.refuse(stream, status, headers)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._unflushed:
            self._unflushed = True
            self.front.flush_soon(self)

    def fail(self, stream: Stream, error: Exception) -> None:
        """End a call with a status that is not OK; trailers alone where nothing has been sent yet."""
        told = call_error(error)
        headers, call = told.headers(), self._calls.pop(stream.id, None)
        cause = None if isinstance(error, CallError) else error
        if call is not None:
            self._over(call, told.code, cause)
        if stream.id not in self._h2.streams:
            return
        if call is None and self.front.metrics is not None:  # refused before it was one
            self.front.metrics.ended(stream.path, told.code, 0.0, cause)
        if call is not None and call.talking:
            self._h2.send(stream, None, b"", headers)
            self._flush_soon()
        else:
            self._refuse(stream, 200, [*HEAD, *headers])

    def check_room(self) -> None:
        """CallError where more replies wait for the peer than may."""
        if self._h2.unsent() > self.most_bytes:
            raise CallError(Code.RESOURCE_EXHAUSTED, "replies wait on this connection: read them first")

    def again(self, stream: Stream) -> None:
        """Serve the stream once more, behind all that wait."""
        self._todo.append(stream)

    def go_on(self, stream: Stream) -> None:
        """Serve the stream once more, in a turn of its own: something that it waited for is done."""
        self.again(stream)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def consume(self, stream: Stream, size: int) -> None:
        """Drop the first bytes of a request that goes on: they have been used."""
        self._h2.consume(stream, size)

    def hold(self, stream: Stream, *, wanted: bool) -> None:
        """Let the client wait with more of a request, or wait no longer."""
        if stream.id in self._h2.streams:
            self._h2.hold(stream, wanted=wanted)

    def _over(self, call: Call, code: int, error: Exception | None = None) -> None:
        """A call has ended."""
        call.over()
        if (metrics := self.front.metrics) is not None:
            metrics.ended(call.stream.path, code, time.monotonic() - call.began, error)
        if call.trace is not None:
            call.trace.end(code, error)

    def _given_up(self, call: Call) -> None:
        """Its client waits no longer."""
        self._over(call, given_up(call.deadline - time.monotonic()))

    def flush(self) -> None:
        """Write what there is to write."""
        self._unflushed = False
        if (data := self._h2.to_send()) and not self._mute:
            self._transport.write(data)

    # --- its end ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Ask the client for a new connection, and close this one when its calls are done."""
        if not self._leaving:
            self._leaving, self._left = "asked", time.monotonic() + PONG_S
            self._pongs = self._h2.pongs + (self._pinged is not None)
            self._h2.go_away()
            # Its answer shows that the client has read GOAWAY, and opens no more streams here.
            self._h2.ping()
            self.flush()

    def give_up(self) -> None:
        """Answer what still runs that it has to be asked again, and close: its time is up."""
        if self._mute or self._transport.is_closing():
            return
        for call in list(self._calls.values()):
            self.fail(call.stream, server_stopping())
        self._h2.go_away_at_last()
        self.flush()
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Write no more, and take in what still comes for a while: a socket closed before loses what was sent."""
        self._leaving, self._left = "gone", time.monotonic() + LINGER_S
        self._mute = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _end(self, error: PeerError) -> None:
        logger.debug("closing a connection: %s", error)
        self.flush()
        self._transport.close()

    def tick(self, now: float) -> None:
        """Keep all times: deadlines, signs of life, age."""
        if self._transport.is_closing():  # what it still has to say may find no reader
            self._closing = self._closing or now
            if now > self._closing + self.front.settings.stalled_s:
                self.abort()
            return
        self._h2.refill(TICK_S)
        for call in [call for call in self._calls.values() if now > call.due]:
            self.fail(call.stream, too_late() if now > call.deadline else too_slow())
        if self._stalled(now) or (self._greeting is not None and now > self._born + HANDSHAKE_S):
            self.abort()
        elif self._leaving:
            self._go_on_leaving(now)
        elif now > self._born + self._age_s:
            self.leave()
        else:
            self._keep_alive(now)

    @property
    def held(self) -> int:
        """Bytes in memory: of requests that are not whole, and of replies that were not taken at the last tick."""
        return self._h2.buffered + self._unsent

    def _stalled(self, now: float) -> bool:
        """Whether the peer has taken nothing of what waits for it, for too long."""
        unsent = self._h2.unsent()
        if unsent != self._unsent or not (unsent or self._choked):
            self._unsent, self._took = unsent, now
        return now > self._took + self.front.settings.stalled_s

    def _keep_alive(self, now: float) -> None:
        settings = self.front.settings
        if self._pinged is not None and self._heard >= self._pinged:
            self._pinged = None
        if self._pinged is not None:
            if now > self._pinged + settings.keepalive_timeout_s:
                self.abort()
        elif now > self._heard + settings.keepalive_s:
            self._pinged = now
            self._h2.ping()
            self.flush()

    def _go_on_leaving(self, now: float) -> None:
        if self._leaving == "asked" and (self._h2.pongs > self._pongs or now > self._left):
            self._leaving, self._left = "told", now + self.front.settings.stalled_s
            self._h2.go_away_at_last()
            for call in list(self._calls.values()):
                if call.talking:  # a stream without an end of its own
                    self.fail(call.stream, server_stopping())
            self.flush()
        if self._leaving == "told" and not self._h2.streams and self._unsent and now > self._left:
            self.abort()  # all is answered, and taken too slowly
        elif self._leaving == "told" and not self._h2.streams and not self._unsent:
            self.flush()  # the last reply, and those to calls that were shed, may wait for the end of this turn
            self._say_goodbye()
        elif self._leaving == "told" and self._h2.streams:  # a stream may go on for long, and its peer be gone
            self._keep_alive(now)
        if self._leaving == "gone" and now > self._left:
            self._transport.close()
