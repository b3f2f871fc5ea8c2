"""HTTP/2 for the lean transport, without I/O: bytes in, requests as far as they have arrived, and replies out.

It alone imports zttp, beside the load generator's client (``tidemark.load.sending.connection``). zttp parses, keeps the
windows and refuses what the standard forbids. This module adds what zttp leaves to its users: how much one peer may
hold in memory, how many frames that ask for nothing it may send, and when it should reconnect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NoReturn

import zttp

Headers = list[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
STREAM_CLOSED: Final = 5
ENHANCE_YOUR_CALM: Final = 11

MAX_REQUESTS: Final = 3000
"""Requests until a peer should reconnect. zttp treats 4,096 as a flood; the rest is room for those under way then."""
MAX_RESETS: Final = 100
"""Resets until a peer should reconnect. zttp treats 256 as a flood, and 128 streams may be open at a GOAWAY."""
TURN_EVENTS: Final = 1024
"""Events handled at a time, so that no peer holds the event loop for long. Many headers count as further events."""
BURST: Final = 2000.0
"""Frames that ask for nothing (SETTINGS, PING, WINDOW_UPDATE, …) that a peer may send at once."""
PER_SECOND: Final = 500.0
"""Further such frames allowed per second,"""
PER_REQUEST: Final = 10.0
"""per request,"""
PER_MESSAGE: Final = 1.0
"""and per message of a stream of requests."""
BYTES_PER_IDLE_FRAME: Final = 32
"""Bytes without a request or a body that count as one frame: zttp shows neither PRIORITY nor empty DATA frames."""
FRAME_HEAD: Final = 9
FRAME_BYTES: Final = 16_384 + FRAME_HEAD
"""Size of the largest frame, which may arrive in pieces."""
SHORT_DATA: Final = 16
"""A DATA frame with less counts as asking for nothing: the smallest event with its prefix is about twice as long."""
PRIORITY: Final = 2
WINDOW_UPDATE: Final = 8

EVERY_STREAM: Final = 2**31 - 1
OPAQUE: Final = b"tidemark"
PING: Final = b"\0\0\x08\x06\0\0\0\0\0" + OPAQUE


STATUS_200: Final = b"\x88"
"""``:status: 200`` by its index in HPACK's static table."""
HEADERS_ONLY: Final = b"\1\5"
"""Type and flags of a HEADERS frame that is complete and ends its stream."""

HeadersOnlyReply = tuple[bytes, bytes]
"""A reply that consists of headers only: the bytes of its frame before and after the stream id."""
LoadShedder = Callable[[], HeadersOnlyReply | None]
"""Returns the reply to a request that is shed before it is read; None to take the request."""
NO_SHEDDERS: Final[Mapping[bytes, LoadShedder]] = {}


class PeerError(Exception):
    """The peer broke the protocol or a limit: send what :meth:`Http2.to_send` still has, and close."""


class Stream:
    """A request as far as it has arrived: its headers (the last of each name) and the rest of its body.

    ``repeats_authorization``: whether the header authorization came more than once.
    """

    __slots__ = ("body", "ended", "headers", "id", "method", "path", "repeats_authorization", "reset")

    def __init__(self, event: zttp.Request) -> None:
        self.id: Final = event.stream_id
        self.method: Final = event.method
        self.path: Final = event.path
        self.headers: Final = dict(event.headers)
        self.repeats_authorization: Final = (
            len(self.headers) < len(event.headers) and sum(name == b"authorization" for name, _ in event.headers) > 1
        )
        self.body: bytes | bytearray = b""
        self.ended = event.end_stream
        self.reset = False


class Http2:
    """The server's side of one connection.

    ``max_buffered``: limit of the bytes of bodies that are not consumed, and of replies that the peer has not taken.
    ``sheds``: by path, what may shed a request when it arrives; such a request never becomes a stream.
    """

    def __init__(self, max_buffered: int, sheds: Mapping[bytes, LoadShedder] = NO_SHEDDERS) -> None:
        self._h2 = zttp.Connection(zttp.SERVER, zttp.HTTP2)
        self._h2.initiate_connection()
        self._max_buffered: Final = max_buffered
        self.streams: Final[dict[int, Stream]] = {}
        """Requests that have no complete reply yet."""
        self.has_pending_output = False
        """Whether there is more to send than replies: an acknowledgement, or a window for the rest of a request."""
        self.has_unparsed_input = False
        """Whether received bytes wait to be parsed by :meth:`advance`."""
        self.pongs = 0
        """Answers to our pings so far."""
        self._parked: dict[int, zttp.Stream] = {}
        self._own_frames = b""
        self._sheds: Final = sheds
        self.shed: Final[list[bytes]] = []
        """Replies to shed requests, in pieces."""
        self._held: Final[dict[int, bytes]] = {}
        """Streams whose peer must pause, and the WINDOW_UPDATE frames that would let it continue."""
        self.buffered = 0
        """Bytes of bodies that are not consumed."""
        self._credit = BURST
        self._idle_bytes = 0
        self._next_frame = len(PREFACE)
        """Bytes that come before the head of the next frame; negative while part of that head has come."""
        self._head = b""
        """That part."""
        self._requests = self._resets = self._last = 0
        self._final = False

    # --- what the peer sends ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> Collection[Stream]:
        """Parse received bytes and return the streams that have advanced. PeerError ends the connection."""
        self._idle_bytes += len(data)
        self._check_frames(data)
        try:
            self._h2.receive_data(data)
        except zttp.ProtocolError as error:
            raise PeerError(str(error)) from error
        return self.advance()

    def _check_frames(self, data: bytes) -> None:
        """End the connection for PRIORITY on stream 0 (RFC 9113, 6.3), which zttp ignores."""
        at = self._next_frame
        if at < 0:  # the head of a frame came in pieces
            data, at = self._head + data, 0
        end = len(data) - FRAME_HEAD
        while at <= end:
            if data[at + 3] == PRIORITY and not (data[at + 5] & 0x7F or data[at + 6] or data[at + 7] or data[at + 8]):
                self._h2.close(PROTOCOL_ERROR)
                raise PeerError("PRIORITY on stream 0")
            at += FRAME_HEAD + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
        self._next_frame = at - len(data)
        if self._next_frame < 0:
            self._head = data[at:]

    def advance(self) -> Collection[Stream]:  # noqa: C901, PLR0912  # one branch a kind of event, in the loop that all calls take
        """Parse what was received before, for one turn, and return the streams that have advanced."""
        moved: dict[int, Stream] = {}
        streams, sheds, next_event = self.streams, self._sheds, self._h2.next_event
        shed: dict[int, HeadersOnlyReply] = {}
        turn, idle, requests = TURN_EVENTS, 0, 0
        event: Any = None  # compared by its class: isinstance for each would cost more than parsing
        try:
            while turn > 0 and (event := next_event()) is not zttp.NEED_DATA:
                turn -= 1
                kind = type(event)
                if kind is zttp.Data:
                    data = event.data
                    short = len(data) < SHORT_DATA
                    idle += short
                    if (stream := streams.get(event.stream_id)) is not None:
                        moved[stream.id] = stream
                        self.buffered += len(data)
                        self._idle_bytes -= len(data) if short else FRAME_HEAD + len(data)
                        if stream.body or self.buffered > self._max_buffered:
                            self._grow(stream, data)
                        else:
                            stream.body = data
                elif kind is zttp.Request:
                    requests += 1
                    turn -= len(event.headers) >> 3
                    if not self._final:
                        self._last = event.stream_id
                        if (path := event.path) in sheds and (reply := sheds[path]()) is not None:
                            shed[self._last] = reply
                        else:
                            streams[self._last] = moved[self._last] = Stream(event)
                elif kind is zttp.EndOfMessage:
                    if (stream := streams.get(event.stream_id)) is not None:
                        stream.ended = True
                        moved[stream.id] = stream
                    elif event.stream_id in shed:
                        self._send_shed_reply(event.stream_id, shed.pop(event.stream_id))
                else:
                    idle += 1
                    if kind is not zttp.WindowUpdate:
                        self._control(event, moved)
        except zttp.ProtocolError as error:
            raise PeerError(str(error)) from error
        for stream_id, reply in shed.items():
            self._send_shed_reply(stream_id, reply)
        self.has_unparsed_input = event is not zttp.NEED_DATA
        self.has_pending_output = self.has_pending_output or any(not stream.ended for stream in moved.values())
        self._charge(idle, requests)
        return moved.values()

    def _grow(self, stream: Stream, data: bytes) -> None:
        """Append to a body that arrives in pieces."""
        if self.buffered > self._max_buffered:
            self._flood("more bodies at once than a connection may hold")
        if isinstance(stream.body, bytes):
            stream.body = bytearray(stream.body)  # grows without being copied each time
        stream.body += data

    def _control(self, event: zttp.Event, moved: dict[int, Stream]) -> None:
        self.has_pending_output = True
        if isinstance(event, zttp.RstStream):
            if event.error_code == STREAM_CLOSED:  # zttp's own, for what was on its way when a request was refused
                self._idle_bytes = 0
            else:
                self._resets += 1
            if (stream := self.streams.get(event.stream_id)) is not None:
                self._close(stream)
                stream.reset = True
                moved[stream.id] = stream
        elif isinstance(event, zttp.Ping) and event.ack and event.data == OPAQUE:
            self.pongs += 1

    def _charge(self, idle: float, requests: int) -> None:
        """Charge frames that ask for nothing against the peer's allowance."""
        if requests:
            self._requests += requests
            self._idle_bytes = 0
        elif self._idle_bytes > FRAME_BYTES:
            idle += self._idle_bytes / BYTES_PER_IDLE_FRAME
            self._idle_bytes = 0
        self._credit = min(BURST, self._credit + PER_REQUEST * requests) - idle
        if self._credit < 0:
            self._flood("too many frames that ask for nothing")

    def _flood(self, why: str) -> NoReturn:
        self._h2.close(ENHANCE_YOUR_CALM)
        raise PeerError(why)

    def refill(self, seconds: float) -> None:
        """Increase the peer's allowance for ``seconds`` that have passed."""
        self._credit = min(BURST, self._credit + PER_SECOND * seconds)

    def consume(self, stream: Stream, size: int) -> None:
        """Drop the first bytes of a body: they have been used."""
        stream.body = stream.body[size:]
        self.buffered -= size
        self._credit = min(BURST, self._credit + PER_MESSAGE)

    def hold(self, stream: Stream, *, wanted: bool) -> None:
        """Keep the window of a stream closed, so that the peer pauses; or open it again.

        zttp opens a window as soon as bytes have arrived. While a stream is held these frames are kept back.
        """
        if wanted:
            self._held.setdefault(stream.id, b"")
        elif frames := self._held.pop(stream.id, b""):
            self._own_frames += frames
            self.has_pending_output = True

    def _without_held_windows(self, data: bytes) -> bytes:
        """The frames to send, without those that would open the window of a held stream."""
        kept, start, at = [], 0, 0
        while at < len(data):
            end = at + FRAME_HEAD + int.from_bytes(data[at : at + 3])
            stream = int.from_bytes(data[at + 5 : at + 9])
            if data[at + 3] == WINDOW_UPDATE and stream in self._held:
                self._held[stream] += data[at:end]
                kept.append(data[start:at])
                start = end
            at = end
        return b"".join([*kept, data[start:]])

    # --- what is sent to the peer -------------------------------------------------------------------------------------

    def send(self, stream: Stream, head: Headers | None, body: bytes, trailers: Headers | None) -> None:
        """Send a part of the reply of an open stream, or all of it: trailers end the reply and the stream."""
        handle = self._h2.stream(stream.id)
        if head is not None:
            handle.send_response(200, head)
        if body:
            handle.send_data(body)
        if trailers is not None:
            handle.end_message(trailers)
            self._close(stream)
        if handle.pending_bytes:
            self._parked[stream.id] = handle
        elif trailers is not None and not stream.ended:
            handle.reset(NO_ERROR)  # the rest of the request need not come

    def refuse(self, stream: Stream, status: int, headers: Headers) -> None:
        """Reply with headers only."""
        handle = self._h2.stream(stream.id)
        handle.send_response(status, headers, True)  # noqa: FBT003  # takes no keyword
        if not stream.ended:
            handle.reset(NO_ERROR)
        self._close(stream)

    def _send_shed_reply(self, stream_id: int, reply: HeadersOnlyReply) -> None:
        """Reply to a shed request. The reset that zttp adds is ignored by the peer if the request is complete."""
        self.shed.extend((reply[0], stream_id.to_bytes(4), reply[1]))
        self._h2.stream(stream_id).reset(NO_ERROR)

    def _close(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self.buffered -= len(stream.body)
        self._held.pop(stream.id, None)

    def unsent(self) -> int:
        """Bytes of replies that wait because the peer's window is full."""
        if not self._parked:
            return 0
        waiting = {at: size for at, handle in self._parked.items() if (size := handle.pending_bytes)}
        self._parked = {at: self._parked[at] for at in waiting}
        return sum(waiting.values())

    def ping(self) -> None:
        """Send a ping; :attr:`pongs` counts the answers."""
        self._own_frames += PING

    def go_away(self) -> None:
        """Ask the peer to open no more streams; those that it opens before it has read this are still answered."""
        self._h2.close(NO_ERROR, EVERY_STREAM)

    def go_away_finally(self) -> None:
        """Name the last stream that is answered; the peer may safely repeat later ones on another connection."""
        self._final = True
        self._h2.close(NO_ERROR, self._last)

    @property
    def has_requests(self) -> bool:
        """Whether the peer has sent any request, shed ones included."""
        return self._requests > 0

    @property
    def should_reconnect(self) -> bool:
        """Whether the peer should soon use a new connection."""
        return self._requests >= MAX_REQUESTS or self._resets >= MAX_RESETS

    def to_send(self) -> bytes:
        """Return and clear the bytes to send."""
        self.has_pending_output = False
        data = self._h2.data_to_send()
        if self._held:
            data = self._without_held_windows(data)
        if self.shed:
            data = b"".join([*self.shed, data])
            self.shed.clear()
        if self._own_frames:
            data, self._own_frames = data + self._own_frames, b""
        return data


def headers_only_reply(headers: Headers) -> HeadersOnlyReply:
    """Encode a headers-only reply that is valid on every connection: it uses no dynamic table of HPACK."""
    block = STATUS_200 + b"".join(b"\0%b%b" % (_hpack_string(name), _hpack_string(value)) for name, value in headers)
    return len(block).to_bytes(3) + HEADERS_ONLY, block


def _hpack_string(value: bytes) -> bytes:
    """A string literal of HPACK: its length, seven bits at a time after the first, and its bytes."""
    most = 0x7F
    if len(value) < most:
        return b"%c%b" % (len(value), value)
    length, rest = b"%c" % most, len(value) - most
    while rest > most:
        length += b"%c" % (rest & most | 0x80)
        rest >>= 7
    return b"%b%c%b" % (length, rest, value)
