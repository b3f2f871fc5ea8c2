"""HTTP/2 for the lean front, without I/O: bytes in, requests as far as they have come, replies out.

It alone imports zttp, beside the load generator's client (``tidemark.load.sending.connection``). zttp parses, keeps the
windows and refuses what the standard forbids. Here stands what it leaves to others: how much one peer may hold in
memory, how many frames that ask for nothing it may send, and when it should come on a new connection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NoReturn

import zttp

Headers = list[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_ERROR: Final = 0
STREAM_CLOSED: Final = 5
ENHANCE_YOUR_CALM: Final = 11

MOST_REQUESTS: Final = 3000
"""zttp takes 4,096 requests on a connection for a flood; the rest is room for what is on its way at a GOAWAY."""
MOST_RESETS: Final = 100
"""And 256 resets of streams, of which 128 may be open when the peer is asked to go."""
TURN: Final = 1024
"""Events taken at a time (and a request counts more with many headers), so that no peer holds the loop for long."""
BURST: Final = 2000.0
"""Frames that ask for nothing (SETTINGS, PING, WINDOW_UPDATE, …) that a peer may send in one go."""
PER_SECOND: Final = 500.0
PER_REQUEST: Final = 10.0
PER_MESSAGE: Final = 1.0
"""And what a message of a request that goes on allows."""
BARREN_BYTES: Final = 32
"""So many bytes without a request or a body count as one frame: of PRIORITY and empty DATA nothing else is seen."""
FRAME_HEAD: Final = 9
FRAME_BYTES: Final = 16_384 + FRAME_HEAD
"""The largest frame, which may be on its way in pieces."""
SHORT_DATA: Final = 16
"""Less than this in a frame asks for nothing: the smallest event with its prefix is about twice as much."""
WINDOW_UPDATE: Final = 8

EVERY_STREAM: Final = 2**31 - 1
OPAQUE: Final = b"tidemark"
PING: Final = b"\0\0\x08\x06\0\0\0\0\0" + OPAQUE


STATUS_200: Final = b"\x88"
"""``:status: 200`` by its place in HPACK's static table."""
HEADERS_ALONE: Final = b"\1\5"
"""A frame of headers that are whole and end their stream."""

Alone = tuple[bytes, bytes]
"""A reply of headers alone: what stands before the stream's id in its frame, and after it."""
Shed = Callable[[], Alone | None]
"""The reply to a request that is not even looked at, None where it is welcome."""
NO_SHEDS: Final[Mapping[bytes, Shed]] = {}


class PeerError(Exception):
    """The peer broke the protocol or a limit: send what :meth:`Http2.to_send` still has, and close."""


class Stream:
    """A request as far as it has come: headers (names in lower case, the last of each), what is left of its body."""

    __slots__ = ("body", "ended", "headers", "id", "method", "path", "reset")

    def __init__(self, event: zttp.Request) -> None:
        self.id: Final = event.stream_id
        self.method: Final = event.method
        self.path: Final = event.path
        self.headers: Final = dict(event.headers)
        self.body: bytes | bytearray = b""
        self.ended = event.end_stream
        self.reset = False


class Http2:
    """The server's side of one connection.

    ``most_buffered``: bytes of bodies not yet consumed, and of replies not yet taken by the peer, each. ``sheds``: by
    path, what may answer a request as it comes in; then it never becomes a stream here.
    """

    def __init__(self, most_buffered: int, sheds: Mapping[bytes, Shed] = NO_SHEDS) -> None:
        self._h2 = zttp.Connection(zttp.SERVER, zttp.HTTP2)
        self._h2.initiate_connection()
        self._most_buffered: Final = most_buffered
        self.streams: Final[dict[int, Stream]] = {}
        """Requests that have no whole reply yet."""
        self.owes = False
        """Whether the peer waits for more than replies: an acknowledgement, or a window for the rest of a request."""
        self.behind = False
        """Whether bytes that were received wait for :meth:`advance`."""
        self.pongs = 0
        """Answers to pings of ours so far."""
        self._parked: dict[int, zttp.Stream] = {}
        self._own_frames = b""
        self._sheds: Final = sheds
        self.shed: Final[list[bytes]] = []
        """Replies to requests that were shed, in pieces."""
        self._held: Final[dict[int, bytes]] = {}
        """Streams that have to wait, and the frames that would let them go on."""
        self.buffered = 0
        """Bytes of bodies not yet consumed."""
        self._credit = BURST
        self._barren = 0
        self._requests = self._resets = self._last = 0
        self._final = False

    # --- what the peer sends ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> Collection[Stream]:
        """Take in bytes: the streams that got further by them. PeerError ends the connection."""
        self._barren += len(data)
        try:
            self._h2.receive_data(data)
        except zttp.ProtocolError as error:
            raise PeerError(str(error)) from error
        return self.advance()

    def advance(self) -> Collection[Stream]:  # noqa: C901, PLR0912  # one branch a kind of event, in the loop that all calls take
        """Go on with bytes received before, for one turn."""
        moved: dict[int, Stream] = {}
        streams, sheds, next_event = self.streams, self._sheds, self._h2.next_event
        shed: dict[int, Alone] = {}
        turn, idle, requests = TURN, 0, 0
        event: Any = None  # one of zttp's, told apart by its class: isinstance for each would cost more than parsing
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
                        self._barren -= len(data) if short else FRAME_HEAD + len(data)
                        if stream.body or self.buffered > self._most_buffered:
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
                        self._say_shed(event.stream_id, shed.pop(event.stream_id))
                else:
                    idle += 1
                    if kind is not zttp.WindowUpdate:
                        self._control(event, moved)
        except zttp.ProtocolError as error:
            raise PeerError(str(error)) from error
        for stream_id, reply in shed.items():
            self._say_shed(stream_id, reply)
        self.behind = event is not zttp.NEED_DATA
        self.owes = self.owes or any(not stream.ended for stream in moved.values())
        self._charge(idle, requests)
        return moved.values()

    def _grow(self, stream: Stream, data: bytes) -> None:
        """Put together a body that comes in pieces."""
        if self.buffered > self._most_buffered:
            self._flood("more bodies at once than a connection may hold")
        if isinstance(stream.body, bytes):
            stream.body = bytearray(stream.body)  # grows without being copied each time
        stream.body += data

    def _control(self, event: zttp.Event, moved: dict[int, Stream]) -> None:
        self.owes = True
        if isinstance(event, zttp.RstStream):
            if event.error_code == STREAM_CLOSED:  # zttp's own, for what was on its way when a request was refused
                self._barren = 0
            else:
                self._resets += 1
            if (stream := self.streams.get(event.stream_id)) is not None:
                self._close(stream)
                stream.reset = True
                moved[stream.id] = stream
        elif isinstance(event, zttp.Ping) and event.ack and event.data == OPAQUE:
            self.pongs += 1

    def _charge(self, idle: float, requests: int) -> None:
        """Count what asks for nothing against what the peer is allowed of it."""
        if requests:
            self._requests += requests
            self._barren = 0
        elif self._barren > FRAME_BYTES:
            idle += self._barren / BARREN_BYTES
            self._barren = 0
        self._credit = min(BURST, self._credit + PER_REQUEST * requests) - idle
        if self._credit < 0:
            self._flood("too many frames that ask for nothing")

    def _flood(self, why: str) -> NoReturn:
        self._h2.close(ENHANCE_YOUR_CALM)
        raise PeerError(why)

    def refill(self, seconds: float) -> None:
        """Allow the peer what it may send by ``seconds`` that have gone by."""
        self._credit = min(BURST, self._credit + PER_SECOND * seconds)

    def consume(self, stream: Stream, size: int) -> None:
        """Drop the first message of a body: it has been used."""
        stream.body = stream.body[size:]
        self.buffered -= size
        self._credit = min(BURST, self._credit + PER_MESSAGE)

    def hold(self, stream: Stream, *, wanted: bool) -> None:
        """Let the peer send no more of a body than it already may, until it is not wanted any more.

        zttp opens a window again as soon as bytes have come. Here its frames wait until the bytes have been used.
        """
        if wanted:
            self._held.setdefault(stream.id, b"")
        elif frames := self._held.pop(stream.id, b""):
            self._own_frames += frames
            self.owes = True

    def _held_back(self, data: bytes) -> bytes:
        """Frames to send, without those that would let a held stream go on."""
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

    # --- what the peer gets -------------------------------------------------------------------------------------

    def send(self, stream: Stream, head: Headers | None, body: bytes, trailers: Headers | None) -> None:
        """Send a part of the reply of an open stream, or all of it: trailers end it, and the stream with it."""
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
        """Answer with headers alone."""
        handle = self._h2.stream(stream.id)
        handle.send_response(status, headers, True)  # noqa: FBT003  # takes no keyword
        if not stream.ended:
            handle.reset(NO_ERROR)
        self._close(stream)

    def _say_shed(self, stream_id: int, reply: Alone) -> None:
        """Answer a request that was shed. What zttp adds, a reset, is ignored where the request is whole."""
        self.shed.extend((reply[0], stream_id.to_bytes(4), reply[1]))
        self._h2.stream(stream_id).reset(NO_ERROR)

    def _close(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self.buffered -= len(stream.body)
        self._held.pop(stream.id, None)

    def unsent(self) -> int:
        """Bytes of replies that wait because the peer has not opened its window."""
        if not self._parked:
            return 0
        waiting = {at: size for at, handle in self._parked.items() if (size := handle.pending_bytes)}
        self._parked = {at: self._parked[at] for at in waiting}
        return sum(waiting.values())

    def ping(self) -> None:
        """Ask the peer for a sign of life, which :attr:`pongs` counts."""
        self._own_frames += PING

    def go_away(self) -> None:
        """Ask the peer to open no more streams here; those that it opens before it has read this are answered."""
        self._h2.close(NO_ERROR, EVERY_STREAM)

    def go_away_at_last(self) -> None:
        """Say which stream was the last one; the peer may safely ask again elsewhere for any after it."""
        self._final = True
        self._h2.close(NO_ERROR, self._last)

    @property
    def worn(self) -> bool:
        """Whether the peer should come on a new connection soon."""
        return self._requests >= MOST_REQUESTS or self._resets >= MOST_RESETS

    def to_send(self) -> bytes:
        """Return and clear the bytes to send."""
        self.owes = False
        data = self._h2.data_to_send()
        if self._held:
            data = self._held_back(data)
        if self.shed:
            data = b"".join([*self.shed, data])
            self.shed.clear()
        if self._own_frames:
            data, self._own_frames = data + self._own_frames, b""
        return data


def headers_alone(headers: Headers) -> Alone:
    """A reply of headers alone that means the same on every connection: nothing in it goes by a table of HPACK."""
    block = STATUS_200 + b"".join(b"\0%b%b" % (_text(name), _text(value)) for name, value in headers)
    return len(block).to_bytes(3) + HEADERS_ALONE, block


def _text(value: bytes) -> bytes:
    """A text of HPACK: its length, seven bits at a time after the first, and the bytes as they are."""
    most = 0x7F
    if len(value) < most:
        return b"%c%b" % (len(value), value)
    length, rest = b"%c" % most, len(value) - most
    while rest > most:
        length += b"%c" % (rest & most | 0x80)
        rest >>= 7
    return b"%b%c%b" % (length, rest, value)
