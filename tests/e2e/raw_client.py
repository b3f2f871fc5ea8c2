"""A gRPC client that does as it is told: raw HTTP/2 over a socket; windows, frames and silence are the test's choice.

Nothing happens in the background: what has come is looked at, and pings are answered, only while a test waits here.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from tests.waiting import PATIENCE_S

TIMEOUT_S = PATIENCE_S
HEAD = 9
"""Bytes before the payload of a frame."""

Headers = Sequence[tuple[str, str | bytes]]


def framed(message: bytes, *, squeezed: bool = False) -> bytes:
    """A message with its prefix, compressed by gzip or not."""
    data = gzip.compress(message) if squeezed else message
    return bytes([squeezed]) + len(data).to_bytes(4, "big") + data


@dataclass
class Reply:
    """What has come on a stream so far; ``ended`` is the time at which nothing more can come."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: float | None = None

    @property
    def told(self) -> dict[bytes, bytes]:
        """Headers and trailers, wherever they stood."""
        return self.headers | self.trailers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.headers[b":status"])

    @property
    def code(self) -> int:
        """The grpc-status."""
        return int(self.told[b"grpc-status"])

    @property
    def message(self) -> str:
        """The grpc-message, read as it is meant."""
        return unquote(self.told.get(b"grpc-message", b"").decode("ascii"), errors="strict")

    @property
    def messages(self) -> list[bytes]:
        """The messages that have come whole."""
        result, data = [], self.data
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            result.append(gzip.decompress(data[5:end]) if data[0] else data[5:end])
            data = data[end:]
        return result

    @property
    def only(self) -> bytes:
        """The one message of a call that went well."""
        assert (self.status, self.code, self.reset) in ((200, 0, None), (200, 0, ErrorCodes.NO_ERROR)), self
        (result,) = self.messages
        return result


class RawClient:
    """One connection.

    ``window``: bytes that the server may send on a stream at first; ``takes``: whether what comes opens windows again.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: ssl.SSLContext | None = None,
        window: int = 65_535,
        takes: bool = True,
        socket_buffer: int | None = None,
    ) -> None:
        host, _, port = target.rpartition(":")
        plain = socket.socket()
        if socket_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, socket_buffer)
        plain.settimeout(TIMEOUT_S)
        plain.connect((host, int(port)))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        self.h2 = H2Connection(
            H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
        )
        initial = {SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.ENABLE_PUSH: 0}
        self.h2.local_settings = Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.replies: dict[int, Reply] = {}
        self.goaways: list[tuple[int, int]] = []
        """Last stream and error code of each GOAWAY."""
        self.pings = self.pongs = 0
        self.closed = False
        self._takes = takes
        self._unread = b""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.socket.close()

    # --- sending ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what h2 has to say."""
        self.write(self.h2.data_to_send())

    def write(self, data: bytes) -> None:
        """Write bytes as they are; that nobody reads them any more shows when the answer is read."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, ssl.SSLError):
            self.closed = True

    def write_frames(self, *frames: Frame) -> None:
        """Write frames of which h2 need not know."""
        self.write(b"".join(frame.serialize() for frame in frames))

    def begin(self, path: str, headers: Headers = (), *, replaced: Mapping[str, str] | None = None) -> int:
        """Headers of a request, not yet flushed, and the id of its stream; ``replaced`` by ``""`` leaves one out."""
        usual = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
        usual |= {"te": "trailers", "content-type": "application/grpc"} | dict(replaced or {})
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [*((name, value) for name, value in usual.items() if value), *headers])
        self.replies[stream_id] = Reply()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, frame_bytes: int = 16_384, end: bool = True) -> None:
        """A body or a part of it, as the server's windows allow it, and as long as the server wants it."""
        reply = self.replies[stream_id]
        parts = deque(data[at : at + frame_bytes] for at in range(0, len(data), frame_bytes))
        while parts:
            self.wait(lambda: reply.ended or self.h2.local_flow_control_window(stream_id) > 0)
            if reply.ended:
                return
            room = self.h2.local_flow_control_window(stream_id)
            part = parts.popleft()
            self.h2.send_data(stream_id, part[:room])
            self.flush()
            if part[room:]:
                parts.appendleft(part[room:])
        if end and not reply.ended:
            self.h2.end_stream(stream_id)
            self.flush()

    def call(self, path: str, message: bytes, headers: Headers = (), *, squeezed: bool = False) -> int:
        """A whole request in one write; the id of its stream."""
        stream_id = self.begin(path, headers)
        body = framed(message, squeezed=squeezed)
        if len(body) <= min(16_384, self.h2.local_flow_control_window(stream_id)):
            self.h2.send_data(stream_id, body, end_stream=True)
            self.flush()
        else:
            self.send(stream_id, body)
        return stream_id

    def cancel(self, stream_id: int) -> None:
        """RST_STREAM."""
        self.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        self.flush()

    def open(self, size: int, *stream_ids: int) -> None:
        """Let the server send more: on the streams, or else on the connection as a whole."""
        for stream_id in stream_ids or [None]:
            self.h2.increment_flow_control_window(size, stream_id)
        self.flush()

    def ping(self) -> None:
        """Wait for an answer to a ping."""
        before = self.pongs
        self.h2.ping(b"whatever")
        self.flush()
        self.wait(lambda: self.pongs > before)

    # --- receiving ----------------------------------------------------------------------------------------------

    def end(self, stream_id: int, seconds: float = TIMEOUT_S) -> Reply:
        """The whole reply, awaited."""
        reply = self.replies[stream_id]
        self.wait(lambda: reply.ended is not None, seconds)
        return reply

    def ask(self, path: str, message: bytes, headers: Headers = (), *, squeezed: bool = False) -> Reply:
        """A call and its whole reply."""
        return self.end(self.call(path, message, headers, squeezed=squeezed))

    def messages(self, stream_id: int, count: int, seconds: float = TIMEOUT_S) -> list[bytes]:
        """So many messages of a reply that goes on, awaited."""
        reply = self.replies[stream_id]
        self.wait(lambda: len(reply.messages) >= count, seconds)
        return reply.messages

    def wait(self, until: Callable[[], object], seconds: float = TIMEOUT_S) -> None:
        """Read until something is so; AssertionError where it is not in time, or the server has closed."""
        assert self.look(until, seconds), self

    def look(self, until: Callable[[], object] = lambda: False, seconds: float = TIMEOUT_S) -> bool:
        """Read until something is so, and whether it is, at the end of the time or of the connection."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if self.closed or left <= 0:
                return False
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65_536)
            except TimeoutError:
                return False
            except (ConnectionError, ssl.SSLError):
                data = b""
            finally:
                if self.socket.fileno() >= 0:
                    self.socket.settimeout(TIMEOUT_S)
            self.closed = not data
            for frame in self._frames(data):
                self._take(self.h2.receive_data(frame))
            self.flush()
        return True

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """Whole frames of what has come, without GOAWAY: h2 would end there, while streams go on."""
        self._unread += data
        while len(self._unread) >= HEAD and len(self._unread) >= (
            end := HEAD + int.from_bytes(self._unread[:3], "big")
        ):
            frame, self._unread = self._unread[:end], self._unread[end:]
            if frame[3] == GoAwayFrame.type:
                last, code = struct.unpack(">II", frame[HEAD : HEAD + 8])
                self.goaways.append((last, code))
            else:
                yield frame

    def _take(self, happened: Iterable[events.Event]) -> None:
        for event in happened:
            match event:
                case events.ResponseReceived():
                    self.replies[event.stream_id].headers |= dict(event.headers)
                case events.TrailersReceived():
                    self.replies[event.stream_id].trailers |= dict(event.headers)
                case events.DataReceived():
                    self.replies[event.stream_id].data += event.data
                    if self._takes and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case events.StreamReset():
                    self.replies[event.stream_id].reset = event.error_code
                    self._ended(event.stream_id)
                case events.StreamEnded():
                    self._ended(event.stream_id)
                case events.PingReceived():
                    self.pings += 1
                case events.PingAckReceived():
                    self.pongs += 1
                case _:
                    pass

    def _ended(self, stream_id: int) -> None:
        if self.replies[stream_id].ended is None:
            self.replies[stream_id].ended = time.monotonic()

    def __repr__(self) -> str:
        return f"RawClient(closed={self.closed}, goaways={self.goaways}, pings={self.pings}, replies={self.replies})"
