"""Hostile peers on real sockets: their own connection ends or starves, and nobody else notices.

While each of them is at it, a well-behaved client calls on a connection of its own: its answers stay right and come in
time, and the server's memory stays where it was.
"""

from __future__ import annotations

import gzip
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import hpack
import psutil
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from hyperframe import frame as frames
from tidemark.v1 import events_pb2, scoring_pb2

from service.batching.event_batcher import BATCH_ROWS_BESIDE_SCORES
from tests.e2e.live import calling, event, someone
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/tidemark.v1.ScoringService"
STREAM = "/tidemark.v1.EventService/StreamEvents"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
KNOWN = "900"
MEGABYTE = 2**20
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION, UNKNOWN = *range(10), 0x42
END_STREAM, END_HEADERS = 0x1, 0x4
INITIAL_WINDOW = 4
CALM = 11
MOST_CPU_S = 5.0
"""So much at most, of the server's own time, may go to others during a call of a few milliseconds."""

# Grpcio's server has its own tests of this.
pytestmark = pytest.mark.one_front

Header = tuple[str, str]


# --- peers ----------------------------------------------------------------------------------------------------------


def raw(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(headers: Iterable[Header], *, indexed: bool = False) -> bytes:
    encoder = hpack.Encoder()
    if not indexed:
        encoder.header_table_size = 0
    return encoder.encode(list(headers), huffman=False)


def request_headers(path: str = f"{SERVICE}/ScoreCustomer", *more: Header) -> list[Header]:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a")]
    return [*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *more]


def begin(stream: int, path: str = f"{SERVICE}/ScoreCustomer", *more: Header, end: bool = False) -> bytes:
    return raw(HEADERS, END_HEADERS | end, stream, block(request_headers(path, *more)))


def message(data: bytes, *, compressed: int = 0) -> bytes:
    return bytes((compressed,)) + len(data).to_bytes(4) + data


def body(stream: int, data: bytes, *, end: bool = True) -> bytes:
    pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
    return b"".join(raw(DATA, end and piece is pieces[-1], stream, piece) for piece in pieces)


def score(stream: int, customer_id: str = KNOWN) -> bytes:
    request = scoring_pb2.ScoreCustomerRequest(customer_id=customer_id).SerializeToString()
    return begin(stream) + body(stream, message(request))


def batch(stream: int, ids: Sequence[str]) -> bytes:
    request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids).SerializeToString()
    return begin(stream, f"{SERVICE}/BatchScoreCustomers") + body(stream, message(request))


def some_events(customer_id: str, count: int = 1, **more: Any) -> bytes:
    """A message of StreamEvents with its prefix."""
    events = [event(customer_id, "visit", channel="web", **more) for _ in range(count)]
    return message(events_pb2.StreamEventsRequest(events=events).SerializeToString())


class Peer:
    """A raw connection: frames out, frames in, and whether it is still there."""

    def __init__(self, target: str, greeting: bytes | None = None, *, window: int = 65_535, buffer: int = 0) -> None:
        host, port = target.rsplit(":", 1)
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got = b""
        self.closed = False
        if greeting is None:
            greeting = PREFACE + raw(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW, window))
        self.send(greeting)

    def send(self, data: bytes, *, reading: bool = True, seconds: float = PATIENCE_S) -> bool:
        """Whether all of it went out: not where the server has closed, or reads no more."""
        view, deadline = memoryview(data), time.monotonic() + seconds
        self.socket.settimeout(0)
        while view and not self.closed and time.monotonic() < deadline:
            readable, writable, _ = select.select([self.socket] if reading else [], [self.socket], [], 0.1)
            if readable:
                self._receive()
            if writable and not self.closed:
                try:
                    view = view[self.socket.send(view[:65_536]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.closed = True
        return not view

    def _receive(self) -> None:
        try:
            data = self.socket.recv(MEGABYTE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.got += data
        self.closed |= not data

    def read(self, until: Callable[[Self], Any], seconds: float = PATIENCE_S) -> bool:
        """Read until that is so, or the server has closed; whether it is so."""
        deadline = time.monotonic() + seconds
        self.socket.settimeout(0)
        while not (result := bool(until(self))) and not self.closed and time.monotonic() < deadline:
            if select.select([self.socket], [], [], 0.1)[0]:
                self._receive()
        return result or bool(until(self))

    @property
    def frames(self) -> list[Any]:
        """All whole frames so far."""
        result, data = [], self.got
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3])):
            item, _ = frames.Frame.parse_frame_header(memoryview(data[:9]))
            item.parse_body(memoryview(data[9:size]))
            result.append(item)
            data = data[size:]
        return result

    def ended(self, stream: int) -> bool:
        """Whether the server has ended the stream."""
        return any(f.stream_id == stream and ("END_STREAM" in f.flags or f.type == RST) for f in self.frames)

    def status(self, stream: int) -> int:
        """The grpc-status of a stream, -1 without one."""
        decoder, result = hpack.Decoder(), -1
        for item in self.frames:
            if item.type == HEADERS:
                fields: dict[str, str] = dict(decoder.decode(bytes(item.data)))  # type: ignore[arg-type]
                if item.stream_id == stream:
                    result = int(fields.get("grpc-status", result))
        return result

    def goodbyes(self) -> list[int]:
        """Codes of GOAWAY so far."""
        return [item.error_code for item in self.frames if item.type == GOAWAY]

    def gone(self, seconds: float) -> bool:
        """Whether the server closes in that time."""
        return self.read(lambda peer: peer.closed, seconds)

    def ping(self) -> None:
        """Wait for an answer to a PING: all that was sent before has been read."""
        before = len(self._pongs())
        self.send(raw(PING, payload=b"whatever"))
        assert self.read(lambda peer: len(peer._pongs()) > before)

    def _pongs(self) -> list[Any]:
        return [item for item in self.frames if item.type == PING and "ACK" in item.flags]

    def open_window(self) -> None:
        """Let the server send as much on the connection as it wants: responses that nobody reads would fill it."""
        self.send(raw(WINDOW, payload=(2**30).to_bytes(4)))

    def answers(self, stream: int) -> bool:
        """Whether a good request is answered on this very connection."""
        return self.send(score(stream)) and self.read(lambda peer: peer.ended(stream)) and self.status(stream) == 0

    def hang_up(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __del__(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Healthy(threading.Thread):
    """A client that minds its own business, one call after the other."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.times: list[float] = []
        self.problems: list[str] = []

    def run(self) -> None:
        request = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN).SerializeToString()
        with grpc.insecure_channel(self._server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(f"{SERVICE}/ScoreCustomer")
            while not self._over.wait(0.01):
                began = self._server.cpu_s()
                try:
                    reply = scoring_pb2.ScoreCustomerResponse.FromString(call(request, timeout=PATIENCE_S)).score
                    if reply.customer_id != KNOWN or not 0 < reply.churn.probability < 1:
                        self.problems.append(f"a wrong answer: {reply}")
                except grpc.RpcError as error:
                    self.problems.append(str(error))
                self.times.append(self._server.cpu_s() - began)

    def end(self) -> None:
        self._over.set()
        self.join(PATIENCE_S)


def rss(server: ServerProcess) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss) / MEGABYTE


@contextmanager
def unharmed(server: ServerProcess, *, megabytes: float = 64) -> Iterator[Healthy]:
    """What happens inside does not touch others, and leaves no more than so much memory behind, even at its worst."""
    before = rss(server)
    healthy = Healthy(server)
    healthy.start()
    try:
        yield healthy
        assert rss(server) < before + megabytes
        until(lambda: healthy.times)
    finally:
        healthy.end()
    assert healthy.times
    assert not healthy.problems
    assert max(healthy.times) < MOST_CPU_S
    assert server.process.poll() is None
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def options(small_registry: Path, loaded_redis: str) -> list[str]:
    # Peers answer no PING, however long a slow machine takes.
    return ["--registry", str(small_registry), "--redis", loaded_redis, "--port", "0", "--keepalive-interval-s", "3600"]


@pytest.fixture(scope="module")
def server(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all attacks: what one of them leaves behind would harm the next."""
    environment = {"TIDEMARK_TRANSPORT": "lean"}
    with ServerProcess(tmp_path_factory.mktemp("hostile"), *options, environment=environment) as process:
        process.wait_for("health is SERVING")
        with Peer(process.target) as peer:
            assert peer.answers(1)  # whatever is loaded at a first call is no growth
        yield process


# --- floods ---------------------------------------------------------------------------------------------------------


def forever(data: bytes) -> Iterator[bytes]:
    return itertools.repeat(data * 200)


def streams() -> Iterator[int]:
    return itertools.count(3, 2)


def broken_streams() -> Iterator[bytes]:
    for stream in streams():
        yield begin(stream, STREAM) + raw(DATA, 0, stream, some_events("x")[:-1]) + raw(RST, 0, stream, b"\0\0\0\x08")


BOMB = block([*request_headers(), ("x", "v" * 3900)], indexed=True) + b"\xbe" * 4000
LARGE = block([*request_headers(), *((f"x{number}", "v" * 1000) for number in range(80))])

FLOODS: dict[str, tuple[bytes, Iterable[bytes]]] = {
    "rapid reset": (b"", (score(s) + raw(RST, 0, s, b"\0\0\0\x08") for s in streams())),
    "resets of requests without a body": (b"", (begin(s) + raw(RST, 0, s, b"\0\0\0\x08") for s in streams())),
    "streams beyond what may be open": (b"", map(begin, streams())),
    "resets of streams within a message": (b"", broken_streams()),
    "DATA of one byte in a stream": (begin(1, STREAM), forever(raw(DATA, 0, 1, b"\0"))),
    "streams of events beyond what may be open": (b"", (begin(stream, STREAM) for stream in streams())),
    "CONTINUATION, empty": (raw(HEADERS, 0, 1, b"\x82"), forever(raw(CONTINUATION, 0, 1))),
    "CONTINUATION, full": (raw(HEADERS, 0, 1, b"\x82"), itertools.repeat(raw(CONTINUATION, 0, 1, b"\0\1a\1b" * 3000))),
    "an HPACK bomb": (raw(HEADERS, END_HEADERS, 1, BOMB), ()),
    "a large header list": (
        raw(HEADERS, 0, 1, LARGE[:16_384])
        + b"".join(raw(CONTINUATION, 0, 1, LARGE[at : at + 16_384]) for at in range(16_384, len(LARGE), 16_384)),
        (),
    ),
    "PING": (b"", forever(raw(PING, payload=b"12345678"))),
    "answers to no PING": (b"", forever(raw(PING, 1, payload=b"12345678"))),
    "SETTINGS": (b"", forever(raw(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW, 1)))),
    "answers to no SETTINGS": (b"", forever(raw(SETTINGS, 1))),
    "GOAWAY": (b"", forever(raw(GOAWAY, payload=bytes(8)))),
    "PRIORITY": (b"", forever(raw(PRIORITY, 0, 1, b"\0\0\0\0\1"))),
    "unknown frames": (b"", forever(raw(UNKNOWN, 0, 1, b"x"))),
    "WINDOW_UPDATE": (b"", forever(raw(WINDOW, payload=b"\0\0\0\1"))),
    "empty DATA": (begin(1), forever(raw(DATA, 0, 1))),
    "DATA of one byte": (begin(1), forever(raw(DATA, 0, 1, b"\0"))),
    "padding around no DATA": (begin(1), forever(raw(DATA, 0x8, 1, b"\x20" + bytes(32)))),
    "DATA for a stream that has ended": (score(1), forever(raw(DATA, 0, 1))),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_own_connection_alone(server: ServerProcess, name: str) -> None:
    first, rest = FLOODS[name]
    with unharmed(server), Peer(server.target) as peer:
        began = time.monotonic()
        peer.send(first)
        for data in itertools.islice(rest, 100_000):
            if not peer.send(data) or time.monotonic() > began + PATIENCE_S:
                break
        assert peer.gone(PATIENCE_S), "the server still listens"
        assert set(peer.goodbyes()) <= {0, CALM}
    with Peer(server.target) as peer:
        assert peer.answers(1)


def test_many_floods_at_once_leave_no_memory_behind(server: ServerProcess) -> None:
    with unharmed(server, megabytes=32):
        for _ in range(40):
            peers = [Peer(server.target) for _ in range(5)]
            for peer in peers:
                resets = b"".join(begin(s) + raw(RST, 0, s, b"\0\0\0\x08") for s in range(1, 400, 2))
                peer.send(resets + raw(PING, payload=b"12345678") * 2000, seconds=2)
            for peer in peers:
                peer.hang_up()


def test_acknowledgements_that_nobody_reads_pile_up_nowhere(server: ServerProcess) -> None:
    with unharmed(server, megabytes=16):
        peers = [Peer(server.target, buffer=4096) for _ in range(5)]
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for peer in peers:
                peer.send(raw(PING, payload=b"12345678") * 50, reading=False, seconds=0.1)
            time.sleep(0.05)
        for peer in peers:
            peer.hang_up()


# --- broken protocol ------------------------------------------------------------------------------------------------

BROKEN = {
    "an index out of the table": raw(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x0f"),
    "an index of 0": raw(HEADERS, END_HEADERS, 1, b"\x80"),
    "a header block cut short": raw(HEADERS, END_HEADERS, 1, block(request_headers())[:-3]),
    "Huffman padding too long": raw(HEADERS, END_HEADERS, 1, b"\x40\x81\xff\x81\xff"),
    "a table larger than allowed": raw(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\xff\x0f"),
    "a stream of the server's": begin(2),
    "a stream below the last one": begin(5) + begin(3),
    "a request on stream 0": begin(0),
    "DATA on stream 0": raw(DATA, 0, 0, b"x"),
    "DATA on a stream not yet open": raw(DATA, 0, 99, b"x"),
    "RST_STREAM of a stream not yet open": raw(RST, 0, 99, b"\0\0\0\x08"),
    "padding longer than its frame": begin(1) + raw(DATA, 0x8, 1, b"\xffx"),
    "a frame too large": b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1000),
    "PUSH_PROMISE from a client": raw(PUSH, END_HEADERS, 1, b"\0\0\0\2"),
    "CONTINUATION of nothing": raw(CONTINUATION, END_HEADERS, 1, b"\x82"),
    "PING amid a header block": raw(HEADERS, 0, 1, b"\x82") + raw(PING, payload=b"12345678"),
    "PING of a wrong size": raw(PING, payload=b"1234"),
    "SETTINGS of a wrong size": raw(SETTINGS, payload=b"12345"),
    "a window setting too large": raw(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW, 2**31)),
    "a window opened too wide": raw(WINDOW, payload=b"\x7f\xff\xff\xff"),
    "a window opened by 0": raw(WINDOW, payload=bytes(4)),
    "more DATA than the window": begin(1) + body(1, message(bytes(MEGABYTE))),
    "garbage": os.urandom(100_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_ends_its_own_connection_alone(server: ServerProcess, name: str) -> None:
    with unharmed(server):
        for _ in range(5):
            with Peer(server.target) as peer:
                peer.send(BROKEN[name])
                # What is too short to be judged is never judged; the next bytes then are.
                peer.send(bytes(20_000))
                assert peer.gone(PATIENCE_S)


@pytest.mark.parametrize(
    "headers",
    [
        [*request_headers(), ("Upper-Case", "x")],
        [*request_headers(), (":path", "/late")],
        [(":path", "/twice"), *request_headers()],
        [(":unknown", "x"), *request_headers()],
        [*request_headers()[:2], *request_headers()[3:]],
        [*request_headers(), ("connection", "close")],
        [*request_headers(), ("te", "gzip")],
        [*request_headers(), ("x", "nul\0")],
        [*request_headers(), ("x", "new\r\nline")],
    ],
    ids=["upper case", "late", "twice", "unknown", "no path", "connection", "te", "nul", "newline"],
)
def test_a_malformed_request_ends_only_its_stream(server: ServerProcess, headers: list[Header]) -> None:
    with unharmed(server), Peer(server.target) as peer:
        for stream in range(1, 41, 2):
            peer.send(raw(HEADERS, END_HEADERS | END_STREAM, stream, block(headers)))
            assert peer.read(lambda peer, stream=stream: peer.ended(stream))  # type: ignore[misc]
            assert peer.status(stream) == -1
        assert peer.answers(41)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/1.1\r\n\r\n" + bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        b"\0" * 100_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000,
        PREFACE + b"\0" * 100,
    ],
    ids=["HTTP/1.1", "another preface", "TLS", "nothing but zeros", "an upload", "no SETTINGS"],
)
def test_anything_but_http2_is_turned_away(server: ServerProcess, greeting: bytes) -> None:
    with unharmed(server):
        for _ in range(10):
            with Peer(server.target, greeting) as peer:
                assert peer.gone(PATIENCE_S)
                assert not peer.got or peer.got.startswith((b"HTTP/1.1 505", b"\0\0"))


# --- slow, silent and many ------------------------------------------------------------------------------------------


def test_who_does_not_speak_is_shown_out(server: ServerProcess) -> None:
    silent = [b"", b"P", b"PRI", PREFACE[:10], PREFACE[:-1]]
    with unharmed(server):
        peers = [Peer(server.target, greeting) for greeting in silent for _ in range(20)]
        for peer in peers:
            assert peer.gone(PATIENCE_S)
            peer.socket.close()


def test_a_dribble_is_served_in_the_end(server: ServerProcess) -> None:
    with unharmed(server), Peer(server.target, b"") as peer:
        for byte in PREFACE + raw(SETTINGS) + score(1):
            peer.send(bytes((byte,)))
            time.sleep(0.001)
        assert peer.read(lambda peer: peer.ended(1))
        assert peer.status(1) == 0


def test_silent_connections_give_way_to_new_ones_and_clients_keep_theirs(options: list[str], tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, *options, "--max-connections", "20", environment={"TIDEMARK_TRANSPORT": "lean"}
    ) as server:
        server.wait_for("health is SERVING")
        with unharmed(server) as healthy:
            until(lambda: healthy.times)
            kept = [Peer(server.target) for _ in range(10)]
            assert all(peer.answers(1) for peer in kept)
            silent = []
            for round_ in range(3):
                silent += [Peer(server.target) for _ in range(50)]
                with Peer(server.target) as newcomer:
                    assert newcomer.answers(1)
                assert all(peer.answers(3 + 2 * round_) for peer in kept)
            assert all(peer.gone(PATIENCE_S) for peer in silent[:100])
            for peer in (*kept, *silent):
                peer.hang_up()
        assert server.stop() == 0


# --- peers that take nothing ----------------------------------------------------------------------------------------

IDS = [str(number) for number in range(1, 1001)]


def test_replies_that_a_closed_window_holds_back_are_bounded(server: ServerProcess) -> None:
    with unharmed(server, megabytes=4 * 24):
        for _ in range(3):
            peers = [Peer(server.target, window=0) for _ in range(4)]
            for peer in peers:
                for stream in range(1, 801, 2):
                    peer.send(batch(stream, IDS), seconds=1)
                    if peer.closed:
                        break
            time.sleep(0.5)
            for peer in peers:
                peer.hang_up()


def test_replies_that_are_never_read_are_bounded(server: ServerProcess) -> None:
    with unharmed(server, megabytes=4 * 24):
        for _ in range(3):
            peers = [Peer(server.target, window=2**31 - 1, buffer=4096) for _ in range(4)]
            for peer in peers:
                peer.send(raw(WINDOW, payload=(2**31 - 1 - 65_535).to_bytes(4)), reading=False)
                for stream in range(1, 801, 2):
                    if not peer.send(batch(stream, IDS), reading=False, seconds=0.2):
                        break
            for peer in peers:
                peer.hang_up()


def test_a_stream_of_requests_whose_replies_wait_is_bounded(server: ServerProcess) -> None:
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE[1:]).SerializeToString()
    with unharmed(server), Peer(server.target, window=0) as peer:
        peer.send(begin(1, REFLECTION))
        end, sent = time.monotonic() + 5, 0
        piece = message(asked) * (8000 // len(message(asked)))
        while not peer.closed and time.monotonic() < end and not peer.ended(1):
            if sent + len(piece) < min(opened(peer, 1), opened(peer, 0)):
                peer.send(raw(DATA, 0, 1, piece))
                sent += len(piece)
            else:
                peer.read(lambda _: False, 0.02)


def test_tiny_requests_in_one_stream_do_not_hold_the_others_up(server: ServerProcess) -> None:
    """Each peer reads what it gets; only healthy's time counts."""
    with unharmed(server):
        peers = [Peer(server.target, window=2**30) for _ in range(4)]
        for peer in peers:
            peer.send(raw(WINDOW, payload=(2**30).to_bytes(4)) + begin(1, REFLECTION))
            peer.send(body(1, message(b"") * 12_000, end=False))
        time.sleep(2)
        for peer in peers:
            peer.hang_up()


def test_clients_that_go_while_they_are_answered_harm_nobody(server: ServerProcess) -> None:
    with unharmed(server):
        for number in range(60):
            peer = Peer(server.target)
            peer.send(b"".join(batch(stream, IDS[: 1 + number * 16]) for stream in (1, 3, 5)))
            time.sleep(0.002 * (number % 10))
            peer.hang_up()


def test_a_client_that_speaks_after_the_end_is_not_heard(options: list[str], tmp_path: Path) -> None:
    settings = ["--max-connection-age-s", "0.5"]
    with ServerProcess(tmp_path, *options, *settings, environment={"TIDEMARK_TRANSPORT": "lean"}) as server:
        server.wait_for("health is SERVING")
        with Peer(server.target) as peer:
            assert peer.read(lambda peer: [f for f in peer.frames if f.type == PING])
            peer.send(raw(PING, 1, payload=b"tidemark"))
            assert peer.gone(PATIENCE_S)
            assert peer.goodbyes() == [0, 0]
            peer.closed = False  # the server has ended its side, and this one goes on for a while
            for stream in range(1, 21, 2):
                peer.send(raw(PING, payload=b"12345678") + score(stream))
                time.sleep(0.01)
        with Peer(server.target) as peer:
            assert peer.answers(1)
        assert "Traceback" not in server.log


# --- streams of events ----------------------------------------------------------------------------------------------


def opened(peer: Peer, stream: int) -> int:
    """How much the server has let the peer send so far: on a stream, or on all of them (stream 0)."""
    return 65_535 + sum(int(f.window_increment) for f in peer.frames if f.type == WINDOW and f.stream_id == stream)


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.full)])
def test_many_streams_that_wait_in_the_middle_harm_nobody_and_end_well(server: ServerProcess, count: int) -> None:
    customer = someone()
    whole = some_events(customer)
    with unharmed(server), calling(server.target) as live:
        peers = [Peer(server.target) for _ in range(count)]
        numbers = range(1, 201, 2)
        for peer in peers:
            peer.send(b"".join(begin(s, STREAM) + raw(DATA, 0, s, whole + whole[:7]) for s in numbers))
        live.record(event(customer, "visit", channel="web"))
        until(lambda: live.counted(customer) >= 300)  # the rest is beyond the cap
        for peer in peers[::2]:
            peer.hang_up()
        for peer in peers[1::2]:
            peer.send(b"".join(raw(DATA, END_STREAM, s, whole[7:]) for s in numbers))
            assert peer.read(lambda peer: all(map(peer.ended, numbers)))
            assert {peer.status(s) for s in numbers} == {0}


def test_a_stream_that_never_stops_gets_no_more_room_than_it_uses(server: ServerProcess) -> None:
    piece = some_events(someone(), 1000, item_id="x" * 200)
    with unharmed(server, megabytes=32), Peer(server.target) as peer:
        peer.send(begin(1, STREAM))
        sent, end = 0, time.monotonic() + 1.5
        data = memoryview(piece * 40)
        while sent < len(data) and (time.monotonic() < end or sent <= len(piece)) and not peer.ended(1):
            room = min(opened(peer, 1) - sent, opened(peer, 0) - sent, 16_384)
            if room > 0:
                peer.send(raw(DATA, 0, 1, bytes(data[sent : sent + room])))
                sent += room
            else:
                peer.read(lambda _: False, 0.01)
        assert sent > len(piece)
        assert not peer.closed
        peer.send(raw(RST, 0, 1, b"\0\0\0\x08"))
        peer.open_window()
        assert peer.answers(3)


def test_empty_messages_without_end_do_not_hold_the_others_up(server: ServerProcess) -> None:
    with unharmed(server):
        peers = [Peer(server.target) for _ in range(4)]
        for peer in peers:
            peer.send(begin(1, STREAM) + body(1, message(b"") * 12_000, end=False))
        time.sleep(1.5)
        for peer in peers:
            peer.open_window()
            assert peer.answers(3)
            peer.hang_up()


def test_who_goes_in_the_middle_of_a_stream_leaves_whole_events_only(server: ServerProcess) -> None:
    customers = [someone() for _ in range(30)]
    with unharmed(server), calling(server.target) as live:
        for number, customer in enumerate(customers):
            live.record(event(customer, "visit", channel="web"))
            peer, sent = Peer(server.target), some_events(customer, 64) * 3
            peer.send(begin(1, STREAM) + body(1, sent[: len(sent) * (number + 1) // 31], end=False))
            time.sleep(0.002 * (number % 7))
            peer.hang_up()
        until(lambda: any(live.counted(customer) > 1 for customer in customers))
        counts = [live.counted(customer) - 1 for customer in customers]
        # Batches are whole, of whatever size they are.
        assert set(counts) <= set(range(0, 193, BATCH_ROWS_BESIDE_SCORES))
        assert sum(counts) > 0


def test_more_after_the_end_of_a_stream_is_an_error_of_the_connection(server: ServerProcess) -> None:
    with unharmed(server), Peer(server.target) as peer:
        customer = someone()
        peer.send(begin(1, STREAM) + body(1, some_events(customer)) + raw(DATA, 0, 1, some_events(customer)))
        peer.read(lambda peer: peer.ended(1))
        with calling(server.target) as live:
            assert live.record(event(customer, channel="web")).accepted == 1
            assert live.counted(customer) in (1, 2)  # once at the most


# --- gRPC -----------------------------------------------------------------------------------------------------------

ZEROS = gzip.compress(bytes(5 * MEGABYTE))
MANY_IDS = gzip.compress(b"\n\0" * (MEGABYTE // 2 - 1))
PACKED = ("grpc-encoding", "gzip")
UNIMPLEMENTED, INTERNAL, EXHAUSTED, INVALID, LATE = 12, 13, 8, 3, 4
BATCH = f"{SERVICE}/BatchScoreCustomers"
SCORE = f"{SERVICE}/ScoreCustomer"

MESSAGES: dict[str, tuple[str, Sequence[Header], bytes, int]] = {
    "no message": (SCORE, [], b"", UNIMPLEMENTED),
    "half a prefix": (SCORE, [], b"\0\0\0", INTERNAL),
    "half a message": (SCORE, [], b"\0\0\0\0\x09abc", INTERNAL),
    "two messages": (SCORE, [], message(b"\n\x03900") * 2, UNIMPLEMENTED),
    "a message of 4 GiB": (SCORE, [], b"\0\xff\xff\xff\xff", EXHAUSTED),
    "a message just too large": (SCORE, [], b"\0" + (4 * MEGABYTE + 1).to_bytes(4) + b"x" * 1000, EXHAUSTED),
    "a flag that is unknown": (SCORE, [PACKED], message(b"\n\x03900", compressed=2), INTERNAL),
    "compressed, and nobody says how": (SCORE, [], message(ZEROS, compressed=1), INTERNAL),
    "an unknown compression": (SCORE, [("grpc-encoding", "br")], message(b"", compressed=1), UNIMPLEMENTED),
    "no gzip at all": (SCORE, [PACKED], message(b"not gzip", compressed=1), INTERNAL),
    "gzip cut short": (SCORE, [PACKED], message(ZEROS[:-9], compressed=1), EXHAUSTED),
    "gzip with more behind it": (SCORE, [PACKED], message(gzip.compress(b"") + b"x", compressed=1), INTERNAL),
    "a gzip bomb": (SCORE, [PACKED], message(ZEROS, compressed=1), EXHAUSTED),
    "half a million ids": (BATCH, [PACKED], message(MANY_IDS, compressed=1), INVALID),
    "no protobuf": (SCORE, [], message(b"\xff" * 100), INVALID),
    "garbage in a stream": (STREAM, [], message(b"") + message(b"\xff" * 100), INVALID),
    "half a message in a stream": (STREAM, [], some_events("x") + some_events("x")[:-1], INTERNAL),
    "half a prefix in a stream": (STREAM, [], message(b"") + b"\0\0", INTERNAL),
    "a message of 4 GiB in a stream": (STREAM, [], message(b"") + b"\0\xff\xff\xff\xff", EXHAUSTED),
    "a message just too large in a stream": (STREAM, [], b"\0" + (MEGABYTE + 1).to_bytes(4) + b"x" * 999, EXHAUSTED),
    "a gzip bomb in a stream": (STREAM, [PACKED], message(b"") + message(ZEROS, compressed=1), EXHAUSTED),
    "no gzip at all in a stream": (STREAM, [PACKED], message(b"not gzip", compressed=1), INTERNAL),
    "half a million events": (STREAM, [PACKED], message(MANY_IDS, compressed=1), INVALID),
    "a deadline that is over in a stream": (STREAM, [("grpc-timeout", "0n")], message(b""), LATE),
    "a deadline that is none": (SCORE, [("grpc-timeout", "soon")], message(b"\n\x03900"), INTERNAL),
    "a deadline that is over": (SCORE, [("grpc-timeout", "0n")], message(b"\n\x03900"), LATE),
    "an unknown method": (f"{SERVICE}/Nothing", [], b"x" * 60_000, UNIMPLEMENTED),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_message_fails_its_call_and_nothing_else(server: ServerProcess, name: str) -> None:
    path, headers, data, code = MESSAGES[name]
    with unharmed(server), Peer(server.target) as peer:
        for stream in range(1, 41, 2):
            assert peer.send(begin(stream, path, *headers) + body(stream, data))
            assert peer.read(lambda peer, stream=stream: peer.ended(stream))  # type: ignore[misc]
            assert peer.status(stream) == code
        assert peer.answers(41)


def test_bombs_in_many_streams_at_once_do_not_hold_the_others_up(server: ServerProcess) -> None:
    with unharmed(server), Peer(server.target) as peer:
        for name in ("a gzip bomb", "half a million ids"):
            path, headers, data, _ = MESSAGES[name]
            first = 1 if name == "a gzip bomb" else 101
            sent = range(first, first + 100, 2)
            peer.send(b"".join(begin(stream, path, *headers) + body(stream, data) for stream in sent))
            assert peer.read(lambda peer, sent=sent: all(map(peer.ended, sent)))  # type: ignore[misc]


def test_a_message_is_not_decompressed_again_for_each_byte_after_it(server: ServerProcess) -> None:
    packed = message(gzip.compress(bytes(4 * MEGABYTE)), compressed=1)
    with unharmed(server), Peer(server.target) as peer:
        before = server.cpu_s()
        for stream in range(1, 101, 2):
            peer.send(begin(stream, SCORE, PACKED) + body(stream, packed, end=False))
        peer.ping()
        once = server.cpu_s() - before
        for _ in range(20):
            peer.send(b"".join(raw(DATA, 0, stream, bytes(64)) for stream in range(1, 101, 2)))
            time.sleep(0.01)
        peer.ping()
        assert server.cpu_s() - before < 5 * max(once, 0.2)  # not 20 times more
        peer.hang_up()


@pytest.mark.parametrize("first", [begin(1, f"{SERVICE}/Nothing"), begin(1) + raw(DATA, 0, 1, b"\0\xff\xff\xff\xff")])
def test_what_was_on_its_way_when_an_upload_was_refused_is_forgiven(server: ServerProcess, first: bytes) -> None:
    with unharmed(server), Peer(server.target) as peer:
        peer.send(first)
        assert peer.read(lambda peer: peer.ended(1))
        peer.send(raw(DATA, 0, 1, bytes(16_000)) * 4)
        assert peer.answers(3)


def test_uploads_without_end_to_no_method_end_their_connection(server: ServerProcess) -> None:
    with unharmed(server), Peer(server.target) as peer:
        peer.send(begin(1, f"{SERVICE}/Nothing"))
        for _ in range(20_000):
            if not peer.send(raw(DATA, 0, 1, bytes(16_000))):
                break
        assert peer.gone(PATIENCE_S)
