"""RFC 9113 as a table, on the lean transport: raw frames, and the error code that they must be answered with.

All cases run over one server without a socket. Sections are those of RFC 9113, and of RFC 7541 for header blocks.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Final

import hpack
import pytest

from service.api.methods import Handlers
from service.batching.score_batcher import ScoreBatcher
from service.call_context import CallContext
from service.settings import Settings
from service.transport.interface import Backend
from service.transport.lean.connection import Connection
from service.transport.lean.http2 import PREFACE
from service.transport.lean.server import LeanServer
from tests.fuzz import Scorer, Transport
from tests.waiting import settle

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, COMPRESSION_ERROR = 1, 3, 5, 6, 9
ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 2, 4, 5
PATH: Final = "/tidemark.v1.EventService/RecordEvents"
Header = tuple[str, str]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def settings(name: int, value: int) -> bytes:
    return frame(SETTINGS, payload=struct.pack(">HI", name, value))


def block(*more: Header, without: str = "") -> bytes:
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "a")]
    usual = [*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *more]
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode([header for header in usual if header[0] != without], huffman=False)[1:]


def headers(stream: int = 1, *more: Header, flags: int = END_HEADERS, without: str = "") -> bytes:
    return frame(HEADERS, flags, stream, block(*more, without=without))


REQUEST: Final = headers() + frame(DATA, END_STREAM, 1, bytes(5))
PRIORITY_OF_1: Final = b"\0\0\0\0\x10"

CONNECTION_ERRORS: Final[dict[str, tuple[bytes, set[int]]]] = {
    "4.1: a length beyond SETTINGS_MAX_FRAME_SIZE": (frame(DATA, 0, 1, bytes(16_385)), {FRAME_SIZE_ERROR}),
    "4.3: a header block that cannot be decoded": (frame(HEADERS, END_HEADERS, 1, b"\x80"), {COMPRESSION_ERROR}),
    "4.3: another frame within a header block": (headers(flags=0) + frame(PING, payload=bytes(8)), {PROTOCOL_ERROR}),
    "5.1: DATA on an idle stream": (frame(DATA, 0, 1, b"x"), {PROTOCOL_ERROR}),
    "5.1: RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 1, bytes(4)), {PROTOCOL_ERROR}),
    "5.1: WINDOW_UPDATE on an idle stream": (frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), {PROTOCOL_ERROR}),
    "5.1: CONTINUATION on an idle stream": (frame(CONTINUATION, END_HEADERS, 1, block()), {PROTOCOL_ERROR}),
    "5.1.1: an even stream": (headers(2), {PROTOCOL_ERROR}),
    "5.1.1: a stream below an earlier one": (headers(5) + headers(3), {PROTOCOL_ERROR, STREAM_CLOSED}),
    "6.1: DATA on stream 0": (frame(DATA, 0, 0, b"x"), {PROTOCOL_ERROR}),
    "6.1: DATA with padding as long as the payload": (headers() + frame(DATA, PADDED, 1, b"\5test"), {PROTOCOL_ERROR}),
    "6.2: HEADERS on stream 0": (headers(0), {PROTOCOL_ERROR}),
    "6.2: HEADERS with padding that is too long": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block()),
        {PROTOCOL_ERROR},
    ),
    "6.3: PRIORITY on stream 0": (frame(PRIORITY, 0, 0, PRIORITY_OF_1), {PROTOCOL_ERROR}),
    "6.3: PRIORITY on stream 0 after a request": (REQUEST + frame(PRIORITY, 0, 0, PRIORITY_OF_1), {PROTOCOL_ERROR}),
    # An error of the stream, which 5.4 allows to treat as one of the connection.
    "6.3: PRIORITY of a wrong size": (headers() + frame(PRIORITY, 0, 1, bytes(4)), {FRAME_SIZE_ERROR}),
    "6.4: RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), {PROTOCOL_ERROR}),
    "6.4: RST_STREAM of a wrong size": (headers() + frame(RST_STREAM, 0, 1, bytes(3)), {FRAME_SIZE_ERROR}),
    "6.5: SETTINGS on a stream": (frame(SETTINGS, 0, 1), {PROTOCOL_ERROR}),
    "6.5: SETTINGS of a wrong size": (frame(SETTINGS, payload=bytes(5)), {FRAME_SIZE_ERROR}),
    "6.5: an acknowledgement with a payload": (frame(SETTINGS, ACK, payload=bytes(6)), {FRAME_SIZE_ERROR}),
    "6.5.2: SETTINGS_ENABLE_PUSH of 2": (settings(ENABLE_PUSH, 2), {PROTOCOL_ERROR}),
    "6.5.2: SETTINGS_INITIAL_WINDOW_SIZE too large": (settings(INITIAL_WINDOW_SIZE, 2**31), {FLOW_CONTROL_ERROR}),
    "6.5.2: SETTINGS_MAX_FRAME_SIZE too small": (settings(MAX_FRAME_SIZE, 16_383), {PROTOCOL_ERROR}),
    "6.5.2: SETTINGS_MAX_FRAME_SIZE too large": (settings(MAX_FRAME_SIZE, 2**24), {PROTOCOL_ERROR}),
    "6.6: PUSH_PROMISE from a client": (headers() + frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), {PROTOCOL_ERROR}),
    "6.7: PING on a stream": (frame(PING, 0, 1, bytes(8)), {PROTOCOL_ERROR}),
    "6.7: PING of a wrong size": (frame(PING, payload=bytes(6)), {FRAME_SIZE_ERROR}),
    "6.8: GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), {PROTOCOL_ERROR}),
    "6.9: WINDOW_UPDATE of a wrong size": (frame(WINDOW_UPDATE, payload=bytes(3)), {FRAME_SIZE_ERROR}),
    "6.9: WINDOW_UPDATE of 0 for the connection": (frame(WINDOW_UPDATE, payload=bytes(4)), {PROTOCOL_ERROR}),
    "6.9.1: a window of the connection beyond 2^31-1": (
        frame(WINDOW_UPDATE, payload=b"\x7f\xff\xff\xff"),
        {FLOW_CONTROL_ERROR},
    ),
    "6.9.2: settings that open a stream's window beyond 2^31-1": (
        headers() + frame(WINDOW_UPDATE, 0, 1, b"\x40\0\0\0") + settings(INITIAL_WINDOW_SIZE, 2**31 - 1),
        {FLOW_CONTROL_ERROR},
    ),
    "6.10: CONTINUATION on stream 0": (headers(flags=0) + frame(CONTINUATION, END_HEADERS, 0, b""), {PROTOCOL_ERROR}),
    "6.10: CONTINUATION of another stream": (
        headers(flags=0) + frame(CONTINUATION, END_HEADERS, 3, b""),
        {PROTOCOL_ERROR},
    ),
    "6.10: CONTINUATION after the end of a header block": (
        headers() + frame(CONTINUATION, END_HEADERS, 1, b""),
        {PROTOCOL_ERROR},
    ),
    "RFC 7541, 2.3.3: an index out of the tables": (
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x0f"),
        {COMPRESSION_ERROR},
    ),
    "RFC 7541, 4.2: a table larger than allowed": (
        frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03" + block()),
        {COMPRESSION_ERROR},
    ),
    "RFC 7541, 5.2: Huffman padding longer than 7 bits": (
        frame(HEADERS, END_HEADERS, 1, b"\x40\x81\xff\x81\xff"),
        {COMPRESSION_ERROR},
    ),
}

STREAM_ERRORS: Final[dict[str, tuple[bytes, int]]] = {
    "5.1: DATA after END_STREAM": (REQUEST + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
    "6.9: WINDOW_UPDATE of 0 for a stream": (headers() + frame(WINDOW_UPDATE, 0, 1, bytes(4)), PROTOCOL_ERROR),
    "6.9.1: a window of a stream beyond 2^31-1": (
        headers() + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
        FLOW_CONTROL_ERROR,
    ),
    "8.2.1: a name in upper case": (headers(1, ("X-Upper", "x")), PROTOCOL_ERROR),
    "8.2.1: a value with a line feed": (headers(1, ("x", "a\nb")), PROTOCOL_ERROR),
    "8.2.2: a header of a connection": (headers(1, ("connection", "keep-alive")), PROTOCOL_ERROR),
    "8.2.2: te other than trailers": (headers(1, ("te", "gzip")), PROTOCOL_ERROR),
    "8.3: an unknown pseudo-header": (headers(1, (":unknown", "x")), PROTOCOL_ERROR),
    "8.3: a response's pseudo-header": (headers(1, (":status", "200")), PROTOCOL_ERROR),
    "8.3: a pseudo-header after others": (headers(1, (":path", "/late"), without=":path"), PROTOCOL_ERROR),
    "8.3.1: no :method": (headers(without=":method"), PROTOCOL_ERROR),
    "8.3.1: no :scheme": (headers(without=":scheme"), PROTOCOL_ERROR),
    "8.3.1: no :path": (headers(without=":path"), PROTOCOL_ERROR),
    "8.1.1: a content-length that is not that of the DATA": (
        headers(1, ("content-length", "1")) + frame(DATA, END_STREAM, 1, bytes(5)),
        PROTOCOL_ERROR,
    ),
}

ALLOWED: Final = {
    "4.1: flags and a reserved bit that mean nothing": frame(PING, 0xFE, 2**31, bytes(8)) + REQUEST,
    "5.5: a frame of an unknown type": frame(0xEE, 0xFF, 1, b"x") + REQUEST,
    "5.5: an unknown setting": settings(0xEEEE, 7) + REQUEST,
    "6.1: padding": headers() + frame(DATA, END_STREAM | PADDED, 1, b"\3" + bytes(5 + 3)),
    "6.2: a header block with priority": frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, PRIORITY_OF_1 + block())
    + frame(DATA, END_STREAM, 1, bytes(5)),
    "6.2: a header block in pieces": frame(HEADERS, 0, 1, block()[:9])
    + frame(CONTINUATION, END_HEADERS, 1, block()[9:])
    + frame(DATA, END_STREAM, 1, bytes(5)),
    "6.3: PRIORITY of a stream that is not open": frame(PRIORITY, 0, 1, PRIORITY_OF_1) + REQUEST,
    "6.3: PRIORITY within the payload of another frame": headers()
    + frame(DATA, 0, 1, b"\0" + len(frame(PRIORITY, 0, 0, PRIORITY_OF_1)).to_bytes(4))
    + frame(DATA, END_STREAM, 1, frame(PRIORITY, 0, 0, PRIORITY_OF_1)),
    "6.5: an acknowledgement": frame(SETTINGS, ACK) + REQUEST,
    "6.7: an answer to no PING": frame(PING, ACK, payload=bytes(8)) + REQUEST,
    "6.8: GOAWAY": frame(GOAWAY, payload=bytes(8)) + REQUEST,
    "8.1: empty DATA with END_STREAM": headers() + frame(DATA, 0, 1, bytes(5)) + frame(DATA, END_STREAM, 1),
}


async def _answer(_request: bytes, _context: CallContext) -> bytes:
    return b"done"


class Answered:
    """What the server has answered: codes of GOAWAY and RST_STREAM, and the streams whose replies are complete."""

    def __init__(self, written: bytes) -> None:
        self.goaways: list[int] = []
        self.resets: list[int] = []
        self.replied: list[int] = []
        at = 0
        while at < len(written):
            end = at + 9 + int.from_bytes(written[at : at + 3])
            kind, flags, stream = written[at + 3], written[at + 4], int.from_bytes(written[at + 5 : at + 9])
            if kind == GOAWAY:
                self.goaways.append(int.from_bytes(written[at + 13 : at + 17]))
            elif kind == RST_STREAM:
                self.resets.append(int.from_bytes(written[at + 9 : end]))
            elif kind == HEADERS and flags & END_STREAM:
                self.replied.append(stream)
            at = end


@pytest.fixture(scope="module")
def server() -> LeanServer:
    backend_settings = Settings(registry=Path("none"), redis="none")
    return LeanServer(Backend(backend_settings, ScoreBatcher(Scorer().score), Handlers({PATH: _answer})))


def answers(server: LeanServer, data: bytes) -> list[Answered]:
    """What the server answers on a new connection to bytes that come at once, and to the same bytes one by one."""

    async def run(size: int) -> Answered:
        transport = Transport(reads=True)
        connection = transport.protocol = Connection(server)
        connection.connection_made(transport)
        whole = PREFACE + frame(SETTINGS) + data
        for at in range(0, len(whole), size):
            if not transport.is_closing():
                connection.data_received(whole[at : at + size])
        await settle()
        transport.lose(None)
        return Answered(bytes(transport.written))

    return [asyncio.run(run(size)) for size in (len(PREFACE) + len(data) + 9, 1)]


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_a_connection_error_has_the_code_of_the_standard(server: LeanServer, name: str) -> None:
    data, codes = CONNECTION_ERRORS[name]
    for answered in answers(server, data):
        assert answered.goaways
        assert answered.goaways[-1] in codes


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_a_stream_error_has_the_code_of_the_standard_and_ends_its_stream_alone(server: LeanServer, name: str) -> None:
    data, code = STREAM_ERRORS[name]
    for answered in answers(server, data + headers(3) + frame(DATA, END_STREAM, 3, bytes(5))):
        assert (answered.resets, answered.goaways) == ([code], [])
        assert 3 in answered.replied


@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_standard_allows_is_answered(server: LeanServer, name: str) -> None:
    for answered in answers(server, ALLOWED[name]):
        assert (answered.replied, answered.resets, answered.goaways) == ([1], [], [])
