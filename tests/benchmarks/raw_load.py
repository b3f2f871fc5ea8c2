"""Load that costs next to nothing: gRPC calls as ready-made HTTP/2 bytes over plain sockets, whole groups at a time.

::

    pool of requests ─► stream ids patched in ─► one send for a group ─► server ─► one read for many replies ─► counted

A request is what a grpcio client sends on a connection in use: nine bytes of headers, all in the compression table that
the connection's first request has filled, and the message. A reply counts if its trailers say ``grpc-status: 0``.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Protocol

import click
import numpy as np

from tests.benchmarks.setting import CUSTOMERS, UNARY, customer_id

PATIENCE_S: Final = 5.0
"""For connecting, for sending, and at the end for what is still in flight."""
GLANCE_S: Final = 0.01
"""A socket wakes its reader only when much has come; what stays below that is looked for this often."""
READ_BYTES: Final = 1 << 16

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
TABLE_SIZE, MAX_STREAMS = 1, 3
STATIC_ENTRIES: Final = 61
TABLE_BYTES: Final = 4096
LEAST_ENTRIES: Final = 32
"""As many entries of up to 96 bytes fit into the table."""
FIRST_WINDOW: Final = 65535
OUR_WINDOW: Final = 1 << 22
HEAD: Final = 9
"""Bytes of a frame before its payload."""


@dataclass(frozen=True)
class RawLoad:
    """What a slice of load saw: calls answered well, calls that failed, seconds, and what the load itself cost."""

    calls: int
    failed: int
    seconds: float
    cpu_s: float


def run(port: int, *, connections: int, in_flight: int, seconds: float) -> RawLoad:
    """Load ``127.0.0.1:port`` from this thread, with up to ``in_flight`` calls on each connection."""
    requests = Requests(port)
    return drive([partial(Calls, port, in_flight, requests)] * connections, seconds)


def run_apart(port: int, *, connections: int, in_flight: int, seconds: float, core: int | None = None) -> RawLoad:
    """The same from a process of its own, on that core where one is given."""
    options = {"port": port, "connections": connections, "in-flight": in_flight, "seconds": seconds, "core": core}
    provided = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-m", "tests.benchmarks.raw_load", *provided]
    limit = seconds + 4 * PATIENCE_S
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=limit)
    return RawLoad(**json.loads(result.stdout))


# --- the loop -------------------------------------------------------------------------------------------------------


class Line(Protocol):
    """A connection with calls on it."""

    socket: socket.socket
    pending: int
    calls: int
    failed: int
    open: bool

    def read(self) -> None:
        """Take in what has come."""

    def send(self) -> None:
        """Send calls, as far as there is room for them."""

    def last(self) -> None:
        """No more calls will follow: let every reply wake the reader."""


Opener = Callable[[], Line]


class Lines:
    """Lines and who wants to be read; sums up those that have ended."""

    def __init__(self) -> None:
        self.calls = self.failed = 0
        self._selector = selectors.DefaultSelector()
        self._glance = 0.0

    def __len__(self) -> int:
        return len(self._selector.get_map())

    def open(self, opener: Opener) -> None:
        """Open a line and send its first calls."""
        line = opener()
        self._selector.register(line.socket, selectors.EVENT_READ, (line, opener))
        line.send()

    def close(self, line: Line) -> None:
        """Close a line; what has not been answered has failed."""
        self._selector.unregister(line.socket)
        line.socket.close()
        self.calls += line.calls
        self.failed += line.failed + line.pending

    def all(self) -> list[tuple[Line, Opener]]:
        """Every line that is open."""
        return [key.data for key in self._selector.get_map().values()]

    def ready(self) -> list[tuple[Line, Opener]]:
        """Lines that have enough to read; all of them every now and then."""
        result = [key.data for key, _ in self._selector.select(GLANCE_S)]
        if (now := time.perf_counter()) > self._glance:
            self._glance, result = now + GLANCE_S, self.all()
        return result


def drive(openers: Sequence[Opener], seconds: float) -> RawLoad:
    """Keep lines busy for so long, opening those anew that end; then wait for what is still in flight."""
    lines = Lines()
    cpu, start = time.thread_time(), time.perf_counter()
    try:
        for opener in openers:
            lines.open(opener)
        while time.perf_counter() < start + seconds:
            for line, opener in lines.ready():
                line.read()
                if line.open:
                    line.send()
                else:
                    lines.close(line)
                    lines.open(opener)
        for line, _ in lines.all():
            line.last()
        while lines and time.perf_counter() < start + seconds + PATIENCE_S:
            for line, _ in lines.ready():
                line.read()
                if not (line.open and line.pending):
                    lines.close(line)
    finally:
        for line, _ in lines.all():
            lines.close(line)
    return RawLoad(lines.calls, lines.failed, time.perf_counter() - start, time.thread_time() - cpu)


def connected(port: int) -> socket.socket:
    """A socket that sends at once, blocks in sending for a bounded time, and is read with MSG_DONTWAIT."""
    line = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    line.settimeout(None)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
    return line


def received(line: socket.socket) -> bytes | None:
    """What has come: None if nothing has, no bytes where the other side has closed."""
    try:
        return line.recv(READ_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


# --- requests -------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def first_headers(port: int, path: str) -> bytes:
    """The headers of a connection's first call, in grpcio's order; all but two are put into the table."""
    literals = (
        (b":path", path.encode()),
        (b":authority", b"127.0.0.1:%d" % port),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"grpc-timeout", b"10S"),
        (b"user-agent", b"grpc-python-asyncio/1.81.1 grpc-c/54.0.0 (linux; chttp2)"),
    )
    blocks = [b"\x40%c%b%c%b" % (len(name), name, len(value), value) for name, value in literals]
    return frame(HEADERS, END_HEADERS, 1, b"".join([*blocks[:2], STATIC_HEADERS, *blocks[2:]]))


PREFACE: Final = b"".join(
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        frame(SETTINGS, 0, 0, b""),
        frame(WINDOW, 0, 0, struct.pack(">I", OUR_WINDOW - FIRST_WINDOW)),
    ]
)
STATIC_HEADERS: Final = b"\x83\x86"
"""``:method: POST`` and ``:scheme: http``."""
LATER_HEADERS: Final = b"\xc4\xc3" + STATIC_HEADERS + b"\xc2\xc1\xc0\xbf\xbe"
"""The same headers by their places in the table."""
ID_BYTES: Final = len(customer_id(0))
MESSAGE: Final = struct.pack(">BI2s", 0, 2 + ID_BYTES, b"\n%c" % ID_BYTES) + bytes(ID_BYTES)
REQUEST: Final = frame(HEADERS, END_HEADERS, 0, LATER_HEADERS) + frame(DATA, END_STREAM, 0, MESSAGE)
DATA_AT: Final = HEAD + len(LATER_HEADERS)


class Pool(Protocol):
    """Ready-made requests of one method, all with the same headers and messages of the same size."""

    @property
    def first_headers(self) -> bytes:
        """The frame that replaces the headers of a connection's first request, of ``DATA_AT`` bytes."""

    @property
    def message_bytes(self) -> int:
        """Size of a message, as flow control counts it."""

    @property
    def left(self) -> int:
        """Requests that are still to come."""

    def group(self, stream: int, count: int) -> bytes | memoryview:
        """The next requests, as streams from that one on; valid until the next call."""


class Requests:
    """A pool of score requests for customers drawn evenly from all, again and again; only stream ids are missing."""

    SIZE: Final = 1 << 16
    message_bytes: Final = len(MESSAGE)
    left: Final = sys.maxsize

    def __init__(self, port: int, customers: int = CUSTOMERS) -> None:
        self.first_headers: Final = first_headers(port, UNARY)
        fields: Any = {
            "names": ["headers", "data", "customer"],
            "formats": [">u4", ">u4", f"S{ID_BYTES}"],
            "offsets": [5, DATA_AT + 5, len(REQUEST) - ID_BYTES],
            "itemsize": len(REQUEST),
        }
        buffer = bytearray(REQUEST * self.SIZE)
        rows = np.frombuffer(buffer, np.dtype(fields))
        drawn = random.Random(os.getpid()).choices(range(customers), k=self.SIZE)
        rows["customer"] = [customer_id(number).encode() for number in drawn]
        self._bytes, self._headers, self._data = memoryview(buffer), rows["headers"], rows["data"]
        self._odd = 2 * np.arange(self.SIZE, dtype=np.uint32)
        self._at = 0

    def group(self, stream: int, count: int) -> memoryview:
        """The next requests, as streams from that one on; valid until the next call."""
        start = self._at if self._at + count <= self.SIZE else 0
        self._at = stop = start + count
        self._headers[start:stop] = self._data[start:stop] = self._odd[:count] + stream
        return self._bytes[start * len(REQUEST) : stop * len(REQUEST)]


# --- replies --------------------------------------------------------------------------------------------------------

Text = tuple[bool, bytes]
"""Whether it is in HPACK's Huffman code, and the bytes as they came."""
STATUS: Final[Sequence[Text | int]] = ((False, b"grpc-status"), (True, bytes.fromhex("9acac8b21234da8f")))
ZERO: Final[Sequence[Text]] = ((False, b"0"), (True, b"\x07"))


class HeaderTable:
    """As much of HPACK as it takes to know whether headers say ``grpc-status: 0``; texts are kept as they came."""

    def __init__(self) -> None:
        self._entries: list[tuple[Text | int, Text]] = []
        self._known: dict[bytes, bool] = {}

    def ok(self, block: bytes) -> bool:
        """Take in a block of headers."""
        known = self._known.get(block)
        if known is None:
            self._block, self._at, entries = block, 0, len(self._entries)
            known = False
            while self._at < len(block):
                known |= self._header()
            if len(self._entries) != entries:
                self._known.clear()
            else:
                self._known[block] = known
        return known

    def settled(self, block: bytes) -> bool:
        """Whether this block has been seen and leaves the table as it is."""
        return block in self._known

    def _header(self) -> bool:
        kind = self._block[self._at]
        if kind & 0x80:
            index = self._number(7)
            return index > STATIC_ENTRIES and _says_ok(*self._entries[-(index - STATIC_ENTRIES)])
        if kind & 0xE0 == 0x20:
            raise RuntimeError("the server changes the size of its header table, which is not provided for")
        index = self._number(6 if kind & 0x40 else 4)
        name = self._entries[-(index - STATIC_ENTRIES)][0] if index > STATIC_ENTRIES else index or self._text()
        value = self._text()
        if kind & 0x40:
            self._entries.append((name, value))
            if len(self._entries) > LEAST_ENTRIES:
                raise RuntimeError("the server may have filled its header table, which is not provided for")
        return _says_ok(name, value)

    def _number(self, bits: int) -> int:
        most = (1 << bits) - 1
        number = self._block[self._at] & most
        self._at += 1
        if number == most:
            shift, more = 0, True
            while more:
                byte = self._block[self._at]
                number, shift, more = number + ((byte & 0x7F) << shift), shift + 7, byte >= 0x80
                self._at += 1
        return number

    def _text(self) -> Text:
        huffman = self._block[self._at] >= 0x80
        size = self._number(7)
        self._at += size
        return huffman, self._block[self._at - size : self._at]


def _says_ok(name: Text | int, value: Text) -> bool:
    return name in STATUS and value in ZERO


class Reply:
    """How replies look while the header table stays as it is: all that is fixed, around stream ids and a message."""

    def __init__(self, headers: bytes, data: bytes, trailers: bytes) -> None:
        self.start: Final = headers[:5]
        self.eaten: Final = len(data) - HEAD
        self.size: Final = len(headers) + len(data) + len(trailers)
        form = f"5s4x{len(headers) - HEAD}s5s4x{self.eaten}x5s4x{len(trailers) - HEAD}s"
        self._fixed: Final = struct.Struct(form)
        self._wanted: Final = self._fixed.unpack(headers + data + trailers)

    def count(self, view: memoryview) -> int:
        """How many replies at the start of this look just so."""
        count, wanted = 0, self._wanted
        for result in self._fixed.iter_unpack(view[: len(view) // self.size * self.size]):
            if result != wanted:
                break
            count += 1
        return count


# --- a connection ---------------------------------------------------------------------------------------------------


class Calls:
    """A gRPC connection with up to ``in_flight`` calls on it; when half of them are back, as many follow."""

    def __init__(self, port: int, in_flight: int, requests: Pool) -> None:
        self.socket = connected(port)
        self.pending = self.calls = self.failed = 0
        self.open = True
        self._in_flight, self._requests = in_flight, requests
        self._group = (in_flight + 1) // 2
        self._least = self._group - self._group // 4  # other frames than replies may have woken the reader
        self._stream = 1
        self._room, self._eaten = FIRST_WINDOW, 0
        self._going_away = False
        self._rest = b""
        self._table = HeaderTable()
        self._reply: Reply | None = None
        self._reply_start = -1

    def send(self) -> None:
        """Send a group, if half of the calls are back; the very first one brings the connection up."""
        size = self._requests.message_bytes
        count = min(self._in_flight - self.pending, self._room // size, self._requests.left)
        if count < self._least or self._going_away:
            return
        group: bytes | memoryview = self._requests.group(self._stream, count)
        if self._stream == 1:
            group = b"".join([PREFACE, self._requests.first_headers, group[DATA_AT:]])
        self._stream += 2 * count
        self._room -= size * count
        self.pending += count
        self._say(group)

    def last(self) -> None:
        """No group will follow: every reply counts now."""
        self._group = 1
        self._wake_at(1)

    def read(self) -> None:
        """Take in replies, and answer what HTTP/2 wants answered."""
        data = received(self.socket)
        if data is None:
            return
        self.open = bool(data)
        data = self._rest + data
        view, at, self._reply_start = memoryview(data), 0, -1
        while len(data) - at >= HEAD:
            if self._reply and data.startswith(self._reply.start, at) and (count := self._reply.count(view[at:])):
                self.calls += count
                self.pending -= count
                self._eaten += count * self._reply.eaten
                at += count * self._reply.size
                continue
            stop = at + HEAD + int.from_bytes(data[at : at + 3])
            if stop > len(data):
                break
            self._frame(data, at, stop)
            at = stop
        self._rest = data[at:]
        if self._eaten >= OUR_WINDOW // 2:
            self._say(frame(WINDOW, 0, 0, struct.pack(">I", self._eaten)))
            self._eaten = 0
        if self._going_away and not self.pending:
            self.open = False

    def _frame(self, data: bytes, at: int, stop: int) -> None:
        kind, flags, stream = struct.unpack_from(">BBI", data, at + 3)
        payload = data[at + HEAD : stop]
        if kind == HEADERS:
            self._headers(data, at, stop)
        elif kind == DATA:
            self._eaten += len(payload)
            if flags & END_STREAM:
                self._answered(ok=False)
        elif kind == RESET and payload != bytes(4):
            self._answered(ok=False)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(dict(struct.iter_unpack(">HI", payload)))
        elif kind == PING and not flags & ACK:
            self._say(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._goaway(payload)
        elif kind == WINDOW and stream == 0:
            self._room += int.from_bytes(payload)

    def _headers(self, data: bytes, at: int, stop: int) -> None:
        flags, block = data[at + 4], data[at + HEAD : stop]
        if flags & (END_HEADERS | PADDED | PRIORITY) != END_HEADERS:
            raise RuntimeError("the server splits or pads its headers, which is not provided for")
        if not self._table.settled(block):
            self._reply = None
        ok = self._table.ok(block)
        if not flags & END_STREAM:
            self._reply_start = at
            return
        self._answered(ok=ok)
        if ok and self._reply_start >= 0:
            self._learn(data[self._reply_start : at], data[at:stop])
        self._reply_start = -1

    def _learn(self, begun: bytes, trailers: bytes) -> None:
        """Take a reply as the form of those that follow, if it is whole and leaves the header table as it is."""
        size = HEAD + int.from_bytes(begun[:3])
        headers, data = begun[:size], begun[size:]
        blocks = headers[HEAD:], trailers[HEAD:]
        if (
            all(map(self._table.settled, blocks))
            and data[3:5] == b"\0\0"
            and len(data) == HEAD + int.from_bytes(data[:3])
        ):
            self._reply = Reply(headers, data, trailers)
            self._wake_at((self._group - 1) * self._reply.size + 1)

    def _answered(self, *, ok: bool) -> None:
        self.pending -= 1
        self.calls += ok
        self.failed += not ok

    def _settings(self, settings: dict[int, int]) -> None:
        if settings.get(TABLE_SIZE, TABLE_BYTES) < TABLE_BYTES:
            raise RuntimeError("the server wants a smaller header table, which is not provided for")
        if (most := settings.get(MAX_STREAMS, self._in_flight)) < self._in_flight:
            raise RuntimeError(f"the server takes only {most} calls at once on a connection")
        self._say(frame(SETTINGS, ACK, 0, b""))

    def _goaway(self, payload: bytes) -> None:
        """Send no more here, and wait only for what the server has taken."""
        last, code = struct.unpack_from(">II", payload)
        if code:
            raise RuntimeError(f"the server ends the connection with error {code}: {payload[8:]!r}")
        lost = max(0, (self._stream - 1 - last) // 2)
        self.pending -= lost
        self._stream -= 2 * lost
        self._going_away = True
        self._wake_at(1)

    def _wake_at(self, size: int) -> None:
        """Wake the reader only when so many bytes have come."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _say(self, data: bytes | memoryview) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            self.open = False


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=int, required=True)
@click.option("--connections", type=int, default=16, show_default=True)
@click.option("--in-flight", type=int, default=32, show_default=True, help="Calls on each connection.")
@click.option("--seconds", type=float, default=2.0, show_default=True)
@click.option("--core", type=int, help="Stay on this core.")
def main(port: int, connections: int, in_flight: int, seconds: float, core: int | None) -> None:
    """Load a server on 127.0.0.1 and print what came of it as JSON."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    print(json.dumps(asdict(run(port, connections=connections, in_flight=in_flight, seconds=seconds))))


if __name__ == "__main__":
    main()
