"""An HTTP/2 connection for load: calls go out, their outcomes come back. The only user of zttp beside the server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final, cast

import zttp

from tidemark.load.outcomes import CONNECTION_LOST, INCOMPLETE_MESSAGE, STREAM_RESET, Headers, Outcome, of_headers

Header = tuple[bytes, bytes]
INITIAL_MAX_CALLS: Final = 100
"""Calls at a time until the server has said how many it takes."""
MAX_CONCURRENT_STREAMS: Final = 3
"""Number of the HTTP/2 setting."""
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
PREFIX_BYTES: Final = 5
"""Length of a gRPC message's prefix: the compression flag and the size."""
GRPC_STATUS_OK: Final = (b"grpc-status", b"0")


class Call:
    """A call from the time at which it is due (monotonic clock) to its end; ``lag`` is how late it started, in s."""

    __slots__ = ("body", "connection", "due", "ended", "headers", "lag", "request", "status", "stream")

    def __init__(self, due: float, lag: float, request: bytes) -> None:
        self.due: Final = due
        self.lag: Final = lag
        self.request: Final = request
        self.connection: Connection | None = None
        self.stream = self.status = 0
        self.headers: Headers = ()
        self.body = b""
        self.ended = False


OnEnd = Callable[[Call, Outcome | None], None]
"""Called once for each call; the outcome is None if ``call.body`` holds the message of a successful reply."""


class Connection(asyncio.Protocol):
    """One connection to the server.

    Args:
        path: path of the method that is called.
        headers: headers of every call.
        on_end: called when a call has ended.
        on_unstarted: called with a call that the server says it never started, so that it can go elsewhere.
        on_capacity: called when another call may fit.
    """

    def __init__(
        self,
        path: bytes,
        headers: Sequence[Header],
        on_end: OnEnd,
        on_unstarted: Callable[[Call], None],
        on_capacity: Callable[[], None],
    ) -> None:
        self._h2: Final = zttp.Connection(zttp.CLIENT, zttp.HTTP2)
        self._path, self._headers = path, list(headers)
        self._on_end, self._on_unstarted, self._on_capacity = on_end, on_unstarted, on_capacity
        self._calls: Final[dict[int, Call]] = {}
        self._max_calls = INITIAL_MAX_CALLS
        self.closing: Final = asyncio.Event()
        """Set when no more calls may start here."""

    @property
    def has_capacity(self) -> bool:
        """Whether another call may start."""
        return len(self._calls) < self._max_calls and not self.closing.is_set()

    def start(self, call: Call, timeout_s: float) -> None:
        """Start a call with this timeout; :meth:`flush` sends it."""
        timeout = (b"grpc-timeout", b"%dm" % max(1, math.ceil(timeout_s * 1e3)))
        stream = self._h2.send_request(b"POST", self._path, b"2", [*self._headers, timeout])
        stream.send_data(call.request)
        stream.end_message()
        call.connection, call.stream = self, stream.stream_id
        self._calls[call.stream] = call

    def flush(self) -> None:
        """Send everything that waits to be sent."""
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def cancel(self, call: Call) -> None:
        """Give up a call, and tell the server so."""
        if self._calls.pop(call.stream, None) is not None:
            self._h2.stream(call.stream).reset(CANCEL)
            self.flush()
            self._close_if_idle()

    def close(self) -> None:
        """Close at once, without a goodbye."""
        self._transport.abort()

    # --- what the server sends --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the client's preface."""
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Handle what the server sent."""
        try:
            self._h2.receive_data(data)
            while (event := self._h2.next_event()) is not zttp.NEED_DATA:
                self._handle(event)
        except zttp.ProtocolError:
            self._transport.abort()
            return
        self.flush()
        self._close_if_idle()
        self._on_capacity()

    def connection_lost(self, _error: Exception | None) -> None:
        """End all calls that have no reply yet."""
        self.closing.set()
        while self._calls:
            self._on_end(self._calls.popitem()[1], CONNECTION_LOST)
        self._on_capacity()

    def _handle(self, event: zttp.Event) -> None:
        if isinstance(event, zttp.Response):
            if call := self._calls.get(event.stream_id):
                call.status, call.headers = event.status_code, event.headers
        elif isinstance(event, zttp.Data):
            if call := self._calls.get(event.stream_id):
                call.body += event.data
        elif isinstance(event, zttp.EndOfMessage):
            if call := self._calls.pop(event.stream_id, None):
                self._on_end(call, _outcome(call, event.trailers))
        elif isinstance(event, zttp.RstStream):
            self._handle_reset(event)
        elif isinstance(event, zttp.GoAway):
            self._handle_goaway(event.last_stream_id)
        elif isinstance(event, zttp.Settings):
            self._max_calls = dict(event.params).get(MAX_CONCURRENT_STREAMS, self._max_calls)

    def _handle_reset(self, event: zttp.RstStream) -> None:
        if (call := self._calls.pop(event.stream_id, None)) is None:
            return
        if event.error_code == REFUSED_STREAM:
            self._on_unstarted(call)
        else:
            self._on_end(call, STREAM_RESET)

    def _handle_goaway(self, last_stream: int) -> None:
        """Start nothing more here; calls beyond the last stream that the server took start elsewhere."""
        self.closing.set()
        for stream in [stream for stream in self._calls if stream > last_stream]:
            self._on_unstarted(self._calls.pop(stream))

    def _close_if_idle(self) -> None:
        """Close once the server has asked for it and all calls have ended."""
        if self.closing.is_set() and not self._calls:
            self._transport.close()


def _outcome(call: Call, trailers: Headers) -> Outcome | None:
    """The outcome of a call that ended with these trailers; None for a complete message and status OK."""
    last = trailers or call.headers
    if GRPC_STATUS_OK not in last:
        return of_headers(call.status, last)
    size = len(call.body) - PREFIX_BYTES
    complete = size >= 0 and int.from_bytes(call.body[:PREFIX_BYTES]) == size
    return None if complete else INCOMPLETE_MESSAGE
