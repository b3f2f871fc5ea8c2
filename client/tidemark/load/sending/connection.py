"""A client's HTTP/2 connection for load: calls out, how they ended back. Beside the server's, the only user of zttp."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final, cast

import zttp

from tidemark.load.outcomes import CONNECTION_LOST, NO_MESSAGE, STREAM_RESET, Headers, Outcome, of_headers

Header = tuple[bytes, bytes]
FIRST_ROOM: Final = 100
"""Calls at a time before the server has said how many it takes."""
MAX_STREAMS: Final = 3
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
PREFIX: Final = 5
"""Bytes of a message's prefix: not compressed, and its size."""
WELL: Final = (b"grpc-status", b"0")


class Call:
    """A call from the time it should begin (``at``, on the monotonic clock) to its end; ``lag`` is how late it did."""

    __slots__ = ("at", "body", "headers", "lag", "line", "over", "request", "status", "stream")

    def __init__(self, at: float, lag: float, request: bytes) -> None:
        self.at: Final = at
        self.lag: Final = lag
        self.request: Final = request
        self.line: Line | None = None
        self.stream = self.status = 0
        self.headers: Headers = ()
        self.body = b""
        self.over = False


Ended = Callable[[Call, Outcome | None], None]
"""Told once for each call; the outcome is None where it went well and ``call.body`` is the message."""


class Line(asyncio.Protocol):
    """A connection. ``returned`` gets calls that the server has not begun, for another; ``moved`` is told of room."""

    def __init__(
        self,
        path: bytes,
        headers: Sequence[Header],
        ended: Ended,
        returned: Callable[[Call], None],
        moved: Callable[[], None],
    ) -> None:
        self._h2: Final = zttp.Connection(zttp.CLIENT, zttp.HTTP2)
        self._path, self._headers = path, list(headers)
        self._ended, self._returned, self._moved = ended, returned, moved
        self._calls: Final[dict[int, Call]] = {}
        self._most = FIRST_ROOM
        self.going: Final = asyncio.Event()
        """Set when no more calls may begin here."""

    @property
    def free(self) -> bool:
        """Whether another call may begin."""
        return len(self._calls) < self._most and not self.going.is_set()

    def begin(self, call: Call, timeout_s: float) -> None:
        """Begin a call that the server is told to give up after so long; :meth:`flush` sends it."""
        timeout = (b"grpc-timeout", b"%dm" % max(1, math.ceil(timeout_s * 1e3)))
        stream = self._h2.send_request(b"POST", self._path, b"2", [*self._headers, timeout])
        stream.send_data(call.request)
        stream.end_message()
        call.line, call.stream = self, stream.stream_id
        self._calls[call.stream] = call

    def flush(self) -> None:
        """Send what is to be sent."""
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def cancel(self, call: Call) -> None:
        """Give a call up, and tell the server."""
        if self._calls.pop(call.stream, None) is not None:
            self._h2.stream(call.stream).reset(CANCEL)
            self.flush()
            self._rest()

    def close(self) -> None:
        """Close without a word."""
        self._transport.abort()

    # --- what the server sends --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Speak first."""
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take in answers."""
        try:
            self._h2.receive_data(data)
            while (event := self._h2.next_event()) is not zttp.NEED_DATA:
                self._take(event)
        except zttp.ProtocolError:
            self._transport.abort()
            return
        self.flush()
        self._rest()
        self._moved()

    def connection_lost(self, _error: Exception | None) -> None:
        """What was not answered never will be."""
        self.going.set()
        while self._calls:
            self._ended(self._calls.popitem()[1], CONNECTION_LOST)
        self._moved()

    def _take(self, event: zttp.Event) -> None:
        if isinstance(event, zttp.Response):
            if call := self._calls.get(event.stream_id):
                call.status, call.headers = event.status_code, event.headers
        elif isinstance(event, zttp.Data):
            if call := self._calls.get(event.stream_id):
                call.body += event.data
        elif isinstance(event, zttp.EndOfMessage):
            if call := self._calls.pop(event.stream_id, None):
                self._ended(call, _outcome(call, event.trailers))
        elif isinstance(event, zttp.RstStream):
            self._reset(event)
        elif isinstance(event, zttp.GoAway):
            self._go(event.last_stream_id)
        elif isinstance(event, zttp.Settings):
            self._most = dict(event.params).get(MAX_STREAMS, self._most)

    def _reset(self, event: zttp.RstStream) -> None:
        if (call := self._calls.pop(event.stream_id, None)) is None:
            return
        if event.error_code == REFUSED_STREAM:
            self._returned(call)
        else:
            self._ended(call, STREAM_RESET)

    def _go(self, last: int) -> None:
        """Begin nothing more here; what the server says it has not begun, begins elsewhere."""
        self.going.set()
        for stream in [stream for stream in self._calls if stream > last]:
            self._returned(self._calls.pop(stream))

    def _rest(self) -> None:
        """Close when the server has asked for it and all calls have ended."""
        if self.going.is_set() and not self._calls:
            self._transport.close()


def _outcome(call: Call, trailers: Headers) -> Outcome | None:
    last = trailers or call.headers
    if WELL not in last:
        return of_headers(call.status, last)
    whole = len(call.body) >= PREFIX and int.from_bytes(call.body[:PREFIX]) == len(call.body) - PREFIX
    return None if whole else NO_MESSAGE
