"""Mutated captures of real traffic through the whole lean connection: ``python -m tests.fuzz --cases 400000 --seed 1``.

Clients of grpcio and of h2 talk to a server in this process, and their bytes are recorded. Each case is made from such
a record by its seed and number: damaged in its bytes, frames, header blocks or messages, cut at random, and given to a
connection on a transport as strict as uvloop's, with a peer that reads well, badly or not at all, and goes so too.
After each case the connection must have closed or answered, with nothing of it left. Workers are processes, so that a
crash of the parser is a finding too; the chunks of a bad case are left in build/fuzz/, a line for each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Final

import grpc
import h2.connection
import h2.events
import hpack
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hyperframe import frame as frames
from tidemark.v1 import customers_pb2, events_pb2, scoring_pb2

from feature_store.bundles.bundle import OUTPUTS
from feature_store.errors import StoreUnavailableError
from feature_store.state.events import Event, Rules
from feature_store.state.folding import ACCEPTED, Outcome
from service.api import customers as convert_customers
from service.api import events as convert_events
from service.api.events import EventStream
from service.api.methods import Handlers
from service.batching.event_batcher import EventBatcher
from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.errors import Reason, RequestError
from service.scoring.types import ScoreRequest, Scores, rows_of
from service.settings import Settings
from service.transport.interface import Backend
from service.transport.lean import call_types as calls
from service.transport.lean import connection
from service.transport.lean import server as lean_server
from service.transport.lean.http2 import PREFACE
from service.transport.lean.lifetime import Phase
from service.transport.lean.server import LeanServer

Header = tuple[bytes, bytes]
SERVICE: Final = "/tidemark.v1.ScoringService"
RECORD: Final = f"/{convert_events.SERVICE}/RecordEvents"
STREAM: Final = f"/{convert_events.SERVICE}/StreamEvents"
GET: Final = f"/{convert_customers.SERVICE}/GetCustomer"
FOUND: Final = Path("build/fuzz")
MOST_CPU_S: Final = 1.0
MOST_OUT: Final = 16 * 2**20
MOST_GROWTH: Final = 64 * 2**20
HIGH_WATER: Final = 64 * 1024
CHECK_EACH: Final = 8
MOST_VIOLATIONS: Final = 10
HEALTHY_EACH: Final = 100
STEPS_S: Final = (0.2, 6.0, 11.0, 31.0, 31.0, 61.0, 21.0, 2100.0, 6.0, 2.0, 31.0, 31.0, 2.0, 2.0)
"""More time than any connection may take that does nothing any more."""
SILENT_S: Final = (61.0, 61.0, 21.0, 2.0)
"""And one with a stream that goes on, of a peer that gives no sign of life."""
HEADER_FRAMES: Final = (0x1, 0x9)
ODD_HEADERS: Final[Sequence[Header]] = (
    (b"Upper-Case", b"x"),
    (b":path", b"/again"),
    (b":unknown", b"x"),
    (b"", b"empty"),
    (b"a b", b"x"),
    (b"x", b"nul\0"),
    (b"x", b"new\r\nline"),
    (b"x", b"y" * 20_000),
    (b"connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"te", b"gzip"),
    (b"content-length", b"7"),
    (b"content-length", b"-1"),
    (b"content-type", b"text/html"),
    (b"grpc-timeout", b"0n"),
    (b"grpc-timeout", b"1m"),
    (b"grpc-timeout", b"99999999999H"),
    (b"grpc-timeout", b""),
    (b"grpc-encoding", b"gzip"),
    (b"grpc-encoding", b"deflate"),
    (b"grpc-encoding", b"snappy"),
    (b"grpc-accept-encoding", b"gzip"),
    (b"expect", b"100-continue"),
)


class ViolationError(Exception):
    """Something that must never happen."""


# --- what is fuzzed -------------------------------------------------------------------------------------------------


class Clock:
    """The server's clock, which can be set ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Like time's."""
        return time.monotonic() + self.ahead


class Scorer:
    """Scores at once, later, or not at all; the number of an id is its row."""

    def __init__(self) -> None:
        self.mood: Callable[[], float] = lambda: 1.0

    async def score(self, parts: Sequence[ScoreRequest]) -> list[Scores]:
        """As a scorer does."""
        mood = self.mood()
        for _ in range(int(mood * 6) if mood < 0.5 else 0):
            await asyncio.sleep(0)
        if 0.5 <= mood < 0.55:
            raise RequestError(Reason.FEATURE_STORE_UNAVAILABLE, "away")
        if 0.55 <= mood < 0.57:
            raise ValueError("a fault")
        return [self._scores(part) for part in parts]

    def _scores(self, part: ScoreRequest) -> Scores:
        rows = [float(i) if i.isascii() and i.isdigit() and len(i) < 9 else -1.0 for i in part.customer_ids]
        return Scores(rows_of(np.tile(np.array(rows).reshape(-1, 1), (1, len(OUTPUTS) + 1))), dict(part.refused), "v1")


class Store:
    """Records events at once, later, or not at all, as the scorer is in the mood for."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.recorder = EventBatcher(self.record, Rules(max_lateness_s=1e12))

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        """As a store of customers does."""
        await self._wait()
        return [ACCEPTED] * len(events)

    async def get(self, request: bytes, _context: CallContext) -> bytes:
        """GetCustomer."""
        customer_id = convert_customers.decode_get(request)
        await self._wait()
        return bytes(customers_pb2.GetCustomerResponse(customer_id=customer_id).SerializeToString())

    async def _wait(self) -> None:
        mood = self._scorer.mood()
        for _ in range(int(mood * 6) if mood < 0.5 else 0):
            await asyncio.sleep(0)
        if 0.5 <= mood < 0.55:
            raise StoreUnavailableError("away")
        if 0.55 <= mood < 0.57:
            raise ValueError("a fault")

    async def _record(self, request: bytes, context: CallContext) -> bytes:
        events = await convert_events.decoded(convert_events.recorded_messages(request))
        return convert_events.encode_recorded(await self.recorder.record(events, context))

    def handlers(self) -> Handlers:
        """Calls that a task answers, and streams."""
        return Handlers({RECORD: self._record, GET: self.get}, {STREAM: partial(EventStream, self.recorder)})


class Transport(asyncio.Transport):
    """As strict as uvloop's: nothing may be written after its end. What a peer has not read stays in it."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.protocol: Any = None
        self.reads, self.paused, self.lost = reads, False, False
        self._closing = self._eof = self._full = False
        self.written = bytearray()
        self.unread = 0

    def write(self, data: Any) -> None:
        """Take it; tell the protocol when it is too much."""
        if self.lost or self._eof:
            raise ViolationError(f"written after {'the loss of the connection' if self.lost else 'its end'}")
        self.written += data
        self.unread += 0 if self.reads else len(data)
        if self.unread > HIGH_WATER and not self._full:
            self._full = True
            self.protocol.pause_writing()

    def read_all(self) -> None:
        """The peer reads."""
        self.unread = 0
        if self._full:
            self._full = False
            self.protocol.resume_writing()
        if self._closing and not self.lost:
            self.lose(None)

    def write_eof(self) -> None:
        """Half of a close."""
        if self.lost:
            raise ViolationError("its end written after the loss of the connection")
        self._eof = True

    def can_write_eof(self) -> bool:
        """As TCP can."""
        return True

    def close(self) -> None:
        """Close when all has been read."""
        self._closing = True
        if not self.unread:
            asyncio.get_running_loop().call_soon(self.lose, None)

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        asyncio.get_running_loop().call_soon(self.lose, None)

    def lose(self, error: Exception | None) -> None:
        """The end, once."""
        if not self.lost:
            self._closing = self.lost = True
            self.protocol.connection_lost(error)

    def is_closing(self) -> bool:
        """Whether its end is near."""
        return self._closing

    def pause_reading(self) -> None:
        """Take no more."""
        self.paused = True

    def resume_reading(self) -> None:
        """Go on."""
        self.paused = False

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        """Nothing."""
        return default


# --- captures -------------------------------------------------------------------------------------------------------


def capture() -> list[bytes]:
    """What real clients send, a record for each connection."""
    by_h2 = [_h2_client(b"x"), _h2_client(b"x" * 17_000), _h2_events()]
    return [*asyncio.run(asyncio.wait_for(_capture_grpcio(), 60)), *by_h2]


async def _capture_grpcio() -> list[bytes]:
    records: list[bytearray] = []
    scorer = Scorer()
    lean = _lean_server(ScoreBatcher(scorer.score), Store(scorer))

    class Recorded(connection.Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            records.append(bytearray())
            self.record = records[-1]
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            self.record += data
            super().data_received(data)

    server = await asyncio.get_running_loop().create_server(lambda: Recorded(lean), "127.0.0.1", 0)
    await lean.set_serving(serving=True)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for session in (_scores, _bodies, _standard, _events, _cancelled):
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            await asyncio.to_thread(_with_channel, target, compression, session)
    server.close()
    return [bytes(record) for record in records if len(record) > len(PREFACE)]


def _with_channel(target: str, compression: grpc.Compression, session: Callable[[Any], None]) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options=options, compression=compression) as channel:
        session(channel)


def _ask(channel: Any, method: str, request: bytes, **options: Any) -> None:
    with contextlib.suppress(grpc.RpcError):
        channel.unary_unary(f"{SERVICE}/{method}")(request, timeout=60, **options)


def _scores(channel: Any) -> None:
    for number in range(4):
        request = scoring_pb2.ScoreCustomerRequest(customer_id=str(number)).SerializeToString()
        _ask(channel, "ScoreCustomer", request, metadata=[("x-trace", f"trace-{number}"), ("x-bin", bytes(range(40)))])
    futures = [channel.unary_unary(f"{SERVICE}/ScoreCustomer").future(b"\n\x019", timeout=60) for _ in range(4)]
    for future in futures:
        future.result()


def _bodies(channel: Any) -> None:
    for size in (3, 300, 1001):
        ids = [str(number) for number in range(size)]
        _ask(
            channel, "BatchScoreCustomers", scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids).SerializeToString()
        )
    _ask(channel, "ScoreCustomer", b"\xff\xff")
    _ask(channel, "Nothing", b"x" * 5_000)


def _standard(channel: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "nothing"):
        with contextlib.suppress(grpc.RpcError):
            health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
        next(watch)
        watch.cancel()
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tidemark.v1.ScoringService"),
    ]
    list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked), timeout=60))


def _some_events(count: int) -> bytes:
    events = [
        events_pb2.Event(customer_id=str(n), event_type="view", item_id="i", event_id=str(n)) for n in range(count)
    ]
    for event in events:
        event.event_time.FromSeconds(1_700_000_000)
    return bytes(events_pb2.RecordEventsRequest(events=events).SerializeToString())


def _events(channel: Any) -> None:
    """Calls of the other services; a StreamEventsRequest is a RecordEventsRequest on the wire."""
    for request in (_some_events(3), _some_events(1001), b"\xff", b""):
        with contextlib.suppress(grpc.RpcError):
            channel.unary_unary(RECORD)(request, timeout=60)
        with contextlib.suppress(grpc.RpcError):
            list(channel.stream_stream(STREAM)(iter([_some_events(2), b"", request, _some_events(400)]), timeout=60))
    channel.unary_unary(GET)(customers_pb2.GetCustomerRequest(customer_id="9").SerializeToString(), timeout=60)
    waiting = threading.Event()
    call = channel.stream_stream(STREAM)(iter(lambda: waiting.wait(0.02) or _some_events(1), None), timeout=60)
    time.sleep(0.1)
    call.cancel()


def _cancelled(channel: Any) -> None:
    request = scoring_pb2.BatchScoreCustomersRequest(customer_ids=["1"] * 1000).SerializeToString()
    for _ in range(4):
        call = channel.unary_unary(f"{SERVICE}/BatchScoreCustomers").future(request, timeout=60)
        call.cancel()
    _ask(channel, "ScoreCustomer", b"\n\x017", metadata=[("x-long", "y" * 9000)])


def _h2_client(padding: bytes) -> bytes:
    """Another client: padded DATA, CONTINUATION, PRIORITY, PING, trailers, bodies in pieces."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for stream in (1, 3) if len(padding) == 1 else (1,):
        client.send_headers(stream, [*_request_headers("ScoreCustomer"), (b"x-padding", padding)])
        for piece in (b"\0\0", b"\0\0\x03", b"\n\x01", b"5"):
            client.send_data(stream, piece, pad_length=stream)
        client.ping(b"12345678")
        client.prioritize(stream, weight=3)
        client.increment_flow_control_window(1000)
        client.send_headers(stream, [(b"x-trailer", b"z")], end_stream=True)
    client.reset_stream(1)
    return client.data_to_send()


def _h2_events() -> bytes:
    """Several streams of events at once, in pieces that end anywhere, some of which never end."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    message = _some_events(5)
    data = (b"\0%b%b" % (len(message).to_bytes(4), message)) * 6
    for stream in (1, 3, 5):
        client.send_headers(stream, _request_headers(STREAM))
    for at in range(0, len(data), 70):
        for stream in (1, 3, 5):
            client.send_data(stream, data[at : at + 70], pad_length=1 if stream == 3 else None)
    client.end_stream(1)
    client.reset_stream(5)
    return client.data_to_send()


def _request_headers(method: str) -> list[Header]:
    path = method if method.startswith("/") else f"{SERVICE}/{method}"
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    return [*pseudo, (b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")]


# --- mutations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A capture, its frames, and the header lists that stand in them by position."""

    data: bytes
    frames: list[bytes]
    headers: dict[int, list[Header]]

    @staticmethod
    def of(data: bytes) -> Record:
        """With its header blocks decoded where each is in one frame."""
        cut = list(_cut(data[len(PREFACE) :]))
        decoder, headers = hpack.Decoder(max_header_list_size=2**20), {}
        for at, raw in enumerate(cut):
            if raw[3] == 0x1 and raw[4] & 0x4:
                fields = decoder.decode(bytes(_parsed(raw).data), raw=True)
                headers[at] = [(bytes(name), bytes(value)) for name, value in fields]
            elif raw[3] in HEADER_FRAMES:
                break  # from here on the table would be another one
        return Record(data, cut, headers)


def _cut(data: bytes) -> Iterator[bytes]:
    while data:
        size = 9 + int.from_bytes(data[:3])
        yield data[:size]
        data = data[size:]


def _parsed(raw: bytes) -> Any:
    result, _ = frames.Frame.parse_frame_header(memoryview(raw[:9]))
    result.parse_body(memoryview(raw[9:]))
    return result


def mutated(pick: random.Random, records: Sequence[Record]) -> bytes:
    """One case's bytes."""
    record = pick.choice(records)
    kind = pick.random()
    if kind < 0.3:
        return _bytes_mutated(pick, record.data)
    raw = list(record.frames)
    if kind < 0.5 and record.headers:
        _headers_mutated(pick, record, raw)
    elif kind < 0.6:
        _bodies_mutated(pick, raw)
    if kind > 0.55 or pick.random() < 0.2:
        for _ in range(pick.choice((1, 1, 2, 3, 8))):
            _frames_mutated(pick, raw, pick.choice(records).frames)
    data = PREFACE + b"".join(raw)
    return _bytes_mutated(pick, data) if pick.random() < 0.1 else data


def _bytes_mutated(pick: random.Random, data: bytes) -> bytes:
    result = bytearray(data)
    for _ in range(pick.choice((1, 1, 2, 4, 16))):
        at = pick.randrange(len(result) + 1) if pick.random() < 0.7 else pick.randrange(min(200, len(result) + 1))
        span = pick.choice((1, 1, 2, 9, 40))
        match pick.randrange(5):
            case 0:
                result[at : at + span] = pick.randbytes(span)
            case 1:
                result[at:at] = pick.randbytes(span)
            case 2:
                del result[at : at + span]
            case 3:
                result[at:at] = result[at : at + span] * pick.choice((1, 2, 50))
            case _:
                if at < len(result):
                    result[at] ^= 1 << pick.randrange(8)
    if pick.random() < 0.1:
        del result[pick.randrange(len(result) + 1) :]
    return bytes(result)


def _frames_mutated(pick: random.Random, raw: list[bytes], others: Sequence[bytes]) -> None:
    at = pick.randrange(len(raw)) if raw else 0
    here = raw[at] if raw else bytes(9)
    match pick.randrange(7):
        case 0:
            del raw[at : at + 1]
        case 1:
            raw[at:at] = [here] * pick.choice((1, 2, 200))
        case 2:
            pick.shuffle(raw)
        case 3:
            raw.insert(at, pick.choice(others))
        case 4:
            raw[at:at] = [_random_frame(pick)] * pick.choice((1, 1, 5, 300))
        case 5:
            raw.insert(at + 1, _reset(int.from_bytes(here[5:9])))
        case _:
            raw[at : at + 1] = [_frame_mutated(pick, bytearray(here))]


def _frame_mutated(pick: random.Random, here: bytearray) -> bytes:
    match pick.randrange(5):
        case 0:
            here[3] = pick.randrange(12)
        case 1:
            here[4] ^= 1 << pick.randrange(8)
        case 2:
            here[5:9] = _stream(pick).to_bytes(4)
        case 3:
            here[:3] = pick.choice((0, 1, 8, 16_384, 16_385, 2**24 - 1, pick.randrange(20_000))).to_bytes(3)
        case _:
            here[9:] = here[9 : 9 + pick.randrange(40)]
            here[:3] = (len(here) - 9).to_bytes(3)
    return bytes(here)


def _stream(pick: random.Random) -> int:
    return pick.choice((0, 1, 1, 2, 3, 5, 7, 9, 255, 2**31 - 1, 2**32 - 1, pick.randrange(40)))


def _reset(stream: int) -> bytes:
    return b"\0\0\4\3\0%b\0\0\0\x08" % stream.to_bytes(4)


def _random_frame(pick: random.Random) -> bytes:
    kind = pick.randrange(11)
    sizes = {2: 5, 3: 4, 4: pick.choice((0, 6, 12, 60)), 6: 8, 7: 8, 8: 4}
    size = sizes.get(kind, pick.choice((0, 0, 1, 5, 64, 1000)))
    size = pick.randrange(20) if pick.random() < 0.1 else size
    payload = pick.choice((bytes(size), pick.randbytes(size), b"\xff" * size))
    if kind == 4 and pick.random() < 0.7:
        pairs = (pick.randrange(10).to_bytes(2) + pick.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4) for _ in "123")
        payload = b"".join(pairs)
    flags = pick.choice((0, 1, 4, 5, 8, 0x20, 0xFF))
    stream = 0 if kind in (4, 6, 7) and pick.random() < 0.9 else _stream(pick)
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers_mutated(pick: random.Random, record: Record, raw: list[bytes]) -> None:
    """Write all header blocks anew, some of them damaged: with HPACK's state in order, or not."""
    encoder = hpack.Encoder()
    for at, fields in record.headers.items():
        headers = list(fields)
        if pick.random() < 0.4:
            _header_list_mutated(pick, headers)
        if pick.random() < 0.05:
            encoder.header_table_size = pick.choice((0, 10, 4096, 5000, 2**20))
        short = sum(len(value) for _, value in headers) < 500  # hpack's Huffman coding takes long
        block = encoder.encode(headers, huffman=short and pick.random() < 0.5)
        if pick.random() < 0.1:
            block = _bytes_mutated(pick, block)
        if pick.random() < 0.05:
            block += bytes((0x80 | pick.randrange(128),)) * pick.choice((1, 50, 9000))
        pieces = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
        if pick.random() < 0.1 and len(block) > 2:
            edge = pick.randrange(1, len(block))
            pieces = [block[:edge], b"", block[edge:]]
        raw[at] = _blocks(raw[at], pieces or [b""])


def _blocks(first: bytes, pieces: Sequence[bytes]) -> bytes:
    flags, stream = first[4] & 0x1, first[5:9]
    out = []
    for at, piece in enumerate(pieces):
        ends = 0x4 if at == len(pieces) - 1 else 0
        kind_flags = bytes((0x9, ends)) if at else bytes((0x1, flags | ends))
        out.append(len(piece).to_bytes(3) + kind_flags + stream + piece)
    return b"".join(out)


def _header_list_mutated(pick: random.Random, headers: list[Header]) -> None:
    for _ in range(pick.choice((1, 1, 3))):
        at = pick.randrange(len(headers) + 1)
        match pick.randrange(6):
            case 0:
                del headers[at : at + 1]
            case 1:
                headers.insert(at, pick.choice(ODD_HEADERS))
            case 2:
                headers.append(pick.choice(ODD_HEADERS))
            case 3:
                headers[at:at] = headers[at : at + 1] * pick.choice((1, 2, 300))
            case 4:
                headers[at : at + 1] = [(n, _bytes_mutated(pick, v)) for n, v in headers[at : at + 1]]
            case _:
                pick.shuffle(headers)


def _bodies_mutated(pick: random.Random, raw: list[bytes]) -> None:
    """Damage messages, and leave the frames around them in order."""
    bodies = [at for at, frame in enumerate(raw) if frame[3] == 0x0 and not frame[4] & 0x8 and len(frame) > 9]
    for at in pick.sample(bodies, min(len(bodies), pick.choice((1, 2, 8)))):
        body = raw[at][9:]
        match pick.randrange(6):
            case 0:
                body = bytes((pick.choice((0, 1, 2, 255)),)) + body[1:]
            case 1:
                body = body[:1] + pick.choice((0, 1, len(body), 2**22, 2**22 + 1, 2**32 - 1)).to_bytes(4) + body[5:]
            case 2:
                body += pick.choice((body, bytes(5), b"\0" * 500))
            case 3:
                body = body[: pick.randrange(len(body))]
            case 4:
                packed = pick.choice((_zeros(2**22), _zeros(2**22 + 1), _gzip(b"\n\x019" * 2000), _gzip(body[5:])))
                body = b"\1%b%b" % (len(packed).to_bytes(4), packed)
            case _:
                body = _bytes_mutated(pick, body)
        raw[at] = b"".join(_data(raw[at], body[start : start + 16_000]) for start in range(0, len(body) or 1, 16_000))


@lru_cache(maxsize=8)
def _zeros(size: int) -> bytes:
    return _gzip(bytes(size))


def _gzip(data: bytes) -> bytes:
    squeeze = zlib.compressobj(1, wbits=31)
    return squeeze.compress(data) + squeeze.flush()


def _data(first: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(3) + first[3:9] + body


def chunked(pick: random.Random, data: bytes) -> list[bytes]:
    """Cut as a network may."""
    size = pick.choice((len(data), len(data), 16_384, 1000, 100, 9))
    if size == len(data):
        return [data]
    if size == 9 and len(data) > 4000:
        return [*(data[at : at + 1] for at in range(400)), data[400:]]
    chunks, at = [], 0
    size = max(size, len(data) // 100)
    while at < len(data):
        end = at + pick.randint(1, size)
        chunks.append(data[at:end])
        at = end
    return chunks


# --- a case ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the cases of a worker."""

    cases: int = 0
    answered: int = 0
    replies: int = 0
    checked: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    most_out: int = 0
    grown: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """All of another one too."""
        self.cases, self.answered = self.cases + other.cases, self.answered + other.answered
        self.replies, self.checked = self.replies + other.replies, self.checked + other.checked
        self.ends += other.ends
        self.worst_s, self.most_out = max(self.worst_s, other.worst_s), max(self.most_out, other.most_out)
        self.grown = max(self.grown, other.grown)
        self.violations += other.violations


def _lean_server(batcher: ScoreBatcher, store: Store) -> LeanServer:
    settings = Settings(registry=Path("none"), redis="none")
    return LeanServer(Backend(settings, batcher, store.handlers()))


class Bench:
    """A server in an event loop, for one case after the other."""

    def __init__(self) -> None:
        self.clock = Clock()
        for module in (calls, connection, lean_server):
            vars(module)["time"] = self.clock
        self.scorer = Scorer()
        self.store = Store(self.scorer)
        self.batcher = ScoreBatcher(self.scorer.score)
        self.server = _lean_server(self.batcher, self.store)
        self.faults: list[str] = []
        asyncio.get_running_loop().set_exception_handler(self._fault)
        self._healthy: tuple[h2.connection.H2Connection, Transport] | None = None

    async def anew(self) -> Bench:
        """Another bench, after a violation: nothing of this one goes on."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return Bench()

    def _fault(self, _loop: Any, context: dict[str, Any]) -> None:
        self.faults.append(f"{context['message']}: {context.get('exception')!r}")

    def connect(self, *, reads: bool) -> Transport:
        """A new connection."""
        transport = Transport(reads)
        transport.protocol = connection.Connection(self.server)
        transport.protocol.connection_made(transport)
        return transport

    async def run(self, pick: random.Random, chunks: Sequence[bytes], tally: Tally) -> None:
        """One case: ViolationError, or whatever else went wrong, where it did."""
        began = time.process_time()
        self.scorer.mood = pick.random
        transport = self.connect(reads=pick.random() < 0.8)
        await self._feed(pick, chunks, transport)
        end = await self._end(pick, transport)
        out = bytes(transport.written)
        self._check_rest(transport)
        spent = time.process_time() - began
        tally.cases += 1
        tally.ends[end] += 1
        tally.worst_s, tally.most_out = max(tally.worst_s, spent), max(tally.most_out, len(out))
        tally.answered += b"\0\0\0\1\x01\x04" in out or len(out) > 100
        if spent > MOST_CPU_S or len(out) > MOST_OUT:
            raise ViolationError(f"{spent:.2f} s and {len(out):,} bytes of replies")
        if tally.cases % CHECK_EACH == 0:
            tally.checked += 1
            tally.replies += check_output(out)
        if tally.cases % HEALTHY_EACH == 0:
            await self.check_healthy()

    async def _feed(self, pick: random.Random, chunks: Sequence[bytes], transport: Transport) -> None:
        for chunk in chunks:
            for _ in range(2000):
                if not transport.paused or transport.is_closing():
                    break
                if not transport.reads and pick.random() < 0.2:
                    transport.read_all()
                await asyncio.sleep(0)
            if transport.is_closing() or transport.paused:
                break
            transport.protocol.data_received(chunk)
            if pick.random() < 0.3:
                await asyncio.sleep(0)
            if pick.random() < 0.01:
                transport.protocol.tick(self.clock.monotonic())

    async def _end(self, pick: random.Random, transport: Transport) -> str:
        """Let the connection end: by itself in time, by its peer's close, or by a loss at any moment."""
        for _ in range(pick.choice((0, 2, 12))):
            await asyncio.sleep(0)
        if transport.lost:
            end = "closed by the server"
        elif transport.is_closing() and pick.random() < 0.5:
            transport.read_all()
            end = "closed by the server"
        elif (way := pick.random()) < 0.5:
            transport.lose(ConnectionResetError() if way < 0.25 else None)
            end = "lost"
        elif way < 0.7:
            transport.protocol.eof_received()
            transport.close()
            transport.read_all()
            end = "closed by the peer"
        else:
            end = "closed in time" if not transport.is_closing() else "closed by the server"
            await self._pass_time(pick, transport)
        for _ in range(200):
            await asyncio.sleep(0)
            if transport.lost and not self._at_work() and not transport.protocol._flush_scheduled:
                break
        return end

    async def _pass_time(self, pick: random.Random, transport: Transport) -> None:
        for at, step in enumerate((*STEPS_S, *SILENT_S)):
            if transport.lost:
                return
            self.clock.ahead += step
            transport.protocol.tick(self.clock.monotonic())
            await asyncio.sleep(0)
            if at < len(STEPS_S) and pick.random() < 0.1 and not transport.is_closing() and not transport.paused:
                transport.protocol.data_received(b"\0\0\x08\6\0\0\0\0\x0012345678")
        await asyncio.sleep(0)
        if not transport.lost:
            raise ViolationError(f"a connection that does nothing stays ({transport.protocol._lifetime.phase})")

    def _at_work(self) -> bool:
        lanes = (self.batcher._small, self.batcher._large)
        scoring = any(lane.queue or len(lane.idle) < len(lane.tasks) for lane in lanes)
        return scoring or bool(self.store.recorder._workers or self.store.recorder._queue)

    def _check_rest(self, transport: Transport) -> None:
        connection, server = transport.protocol, self.server
        healthy = {self._healthy[1].protocol} if self._healthy else set()
        rest = {
            "faults": self.faults,
            "connections": server.connections - healthy,
            "calls": connection._calls,
            "watchers": server.health._watchers,
            "unflushed": connection._flush_scheduled,
            "work": self._at_work(),
            "calls in batches": connection._calls_in_batches,
            "held": set(connection._h2._held) - set(connection._h2.streams),
            "buffered": connection._h2.buffered and not connection._h2.streams,
        }
        if left := {name: what for name, what in rest.items() if what}:
            raise ViolationError(f"left behind: {left}")

    @staticmethod
    def _stays_open(transport: Transport) -> bool:
        return not transport.is_closing() and transport.protocol._lifetime.phase is Phase.OPEN

    async def check_healthy(self) -> None:
        """Another connection, a well-behaved one, gets right answers meanwhile."""
        self.scorer.mood = lambda: 1.0
        if self._healthy is None or not self._stays_open(self._healthy[1]):
            if self._healthy is not None:
                self._healthy[1].lose(None)
            client, transport = h2.connection.H2Connection(), self.connect(reads=True)
            client.initiate_connection()
            self._healthy = client, transport
        client, transport = self._healthy
        lifetime = transport.protocol._lifetime
        lifetime._accepted_at = lifetime._heard_at = self.clock.monotonic()
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, _request_headers("ScoreCustomer"))
        message = scoring_pb2.ScoreCustomerRequest(customer_id="7").SerializeToString()
        client.send_data(stream, b"\0%b%b" % (len(message).to_bytes(4), message), end_stream=True)
        transport.protocol.data_received(client.data_to_send())
        reply = b""
        for _ in range(50):
            await asyncio.sleep(0)
            events, transport.written = client.receive_data(bytes(transport.written)), bytearray()
            for event in events:
                if isinstance(event, h2.events.DataReceived):
                    reply += event.data
                    client.acknowledge_received_data(event.flow_controlled_length, stream)
                if isinstance(event, h2.events.StreamEnded):
                    result = scoring_pb2.ScoreCustomerResponse.FromString(reply[5:]).score
                    if (result.customer_id, result.churn.probability) != ("7", 7.0):
                        raise ViolationError("a wrong answer on another connection")
                    return
        raise ViolationError("no answer on another connection")


def check_output(out: bytes) -> int:
    """Read all replies as a strict client does, and count them."""
    if not out or out.startswith(b"HTTP/1.1 505"):
        return 0
    decoder = hpack.Decoder(max_header_list_size=2**20)
    begun: set[int] = set()
    ended: set[int] = set()
    for at, raw in enumerate(_cut(out)):
        if len(raw) < 9 or len(raw) != 9 + int.from_bytes(raw[:3]) or len(raw) > 9 + 16_384:
            raise ViolationError(f"frame {at} of the replies is {len(raw)} bytes")
        result = _parsed(raw)
        if (at == 0) is not (result.type == 0x4 and "ACK" not in result.flags):
            raise ViolationError(f"frame {at} of the replies is {result}")
        if result.type == 0x1:
            names = [bytes(name) for name, _ in decoder.decode(bytes(result.data), raw=True)]
            if (result.stream_id in begun) is (b":status" in names) or names != [name.lower() for name in names]:
                raise ViolationError(f"headers {names}")
            begun.add(result.stream_id)
        if result.type in (0x0, 0x1) and (result.stream_id in ended or result.stream_id not in begun):
            raise ViolationError(f"{result} in the wrong place")
        if result.type == 0x3 or "END_STREAM" in result.flags:
            ended.add(result.stream_id)
    return len(begun)


# --- workers --------------------------------------------------------------------------------------------------------


def case(seed: int, number: int, records: Sequence[Record]) -> tuple[random.Random, list[bytes]]:
    """A case's bytes in pieces, and the dice for the rest of it."""
    pick = random.Random(f"{seed}/{number}")
    return pick, chunked(pick, mutated(pick, records))


def work(seed: int, numbers: range, captures: Sequence[bytes], at: Synchronized[int], results: Any) -> None:
    """Cases of one worker; ``at`` tells the parent which one it was when it ended without a result."""
    logging.disable()
    records = [Record.of(data) for data in captures]
    results.put(asyncio.run(_work(seed, numbers, records, at)))


async def _work(seed: int, numbers: range, records: Sequence[Record], at: Synchronized[int]) -> Tally:
    tally, bench, process, begun = Tally(), Bench(), psutil.Process(), 0
    for number in numbers:
        at.value = number
        pick, chunks = case(seed, number, records)
        try:
            await bench.run(pick, chunks, tally)
        except Exception as error:  # whatever it is, it is a finding
            tally.violations.append(f"case {number}: {type(error).__name__}: {error} ({_saved(seed, number, chunks)})")
            if len(tally.violations) >= MOST_VIOLATIONS:
                break
            bench = await bench.anew()
        if tally.cases == min(2000, len(numbers) // 2):
            gc.collect()
            begun = process.memory_info().rss
    gc.collect()
    tally.grown = process.memory_info().rss - begun
    if tally.grown > MOST_GROWTH:
        tally.violations.append(f"memory grew by {tally.grown:,} bytes")
    return tally


def _saved(seed: int, number: int, chunks: Sequence[bytes]) -> Path:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"case-{seed}-{number}.txt"
    path.write_text("\n".join(chunk.hex() for chunk in chunks) + "\n")
    return path


def supervise(seed: int, numbers: range, captures: Sequence[bytes], total: Tally, lock: threading.Lock) -> None:
    """Run cases in a process of their own, and in another one where that has crashed."""
    context = multiprocessing.get_context("spawn")
    while numbers:
        at, results = context.Value("q", numbers.start), context.Queue()
        worker = context.Process(target=work, args=(seed, numbers, captures, at, results), daemon=True)
        worker.start()
        tally = None
        last, since = -1, time.monotonic()
        while tally is None and worker.is_alive() and time.monotonic() < since + 60:
            with contextlib.suppress(Exception):
                tally = results.get(timeout=0.5)
            if at.value != last:
                last, since = at.value, time.monotonic()
        if tally is None:
            with contextlib.suppress(Exception):
                tally = results.get(timeout=1)
        stop, numbers = numbers.stop, range(0)
        if tally is None:
            how = "hangs" if worker.is_alive() else f"killed the process ({worker.exitcode})"
            _, chunks = case(seed, last, [Record.of(data) for data in captures])
            tally = Tally(violations=[f"case {last} {how} ({_saved(seed, last, chunks)})"])
            numbers = range(last + 1, stop)
        worker.kill()
        worker.join()
        with lock:
            total.add(tally)


def main() -> int:
    """Run all cases and say what came of them; 1 where something did that must not."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    began, captures, total, lock = time.monotonic(), capture(), Tally(), threading.Lock()
    share = -(-arguments.cases // arguments.workers)
    parts = [range(start, min(start + share, arguments.cases)) for start in range(0, arguments.cases, share)]
    threads = [
        threading.Thread(target=partial(supervise, arguments.seed, part, captures, total, lock)) for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        f"{total.cases:,} cases of seed {arguments.seed} from {len(captures)} captures "
        f"in {time.monotonic() - began:.0f} s"
    )
    print(f"{total.answered:,} answered; " + ", ".join(f"{n:,} {end}" for end, n in total.ends.most_common()))
    print(f"{total.replies:,} replies of {total.checked:,} cases read as a strict client does")
    print(f"worst case: {total.worst_s:.3f} s of CPU, {total.most_out:,} bytes of replies")
    print(f"memory: {total.grown / 2**20:+.1f} MiB in the worst worker")
    print("\n".join(total.violations) or "no violation")
    return 1 if total.violations or total.cases < arguments.cases else 0


if __name__ == "__main__":
    sys.exit(main())
