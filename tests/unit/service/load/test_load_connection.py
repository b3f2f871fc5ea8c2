"""A connection against a server of the lean front's HTTP/2, byte for byte and without I/O."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf import any_pb2
from tidemark.rpc import error_details_pb2, status_pb2

from service.transport.lean.http2 import Http2
from tidemark.load.outcomes import CONNECTION_LOST, INCOMPLETE_MESSAGE, STREAM_RESET, Kind, Outcome, of_headers
from tidemark.load.sending.connection import Call, Connection

HEAD = [(b"content-type", b"application/grpc")]
MESSAGE = b"\0\0\0\0\3abc"


@dataclass
class Wire:
    """A connection, the server at its other end, and what became of calls."""

    server: Http2 = field(default_factory=lambda: Http2(2**20))
    ended: list[tuple[Call, Outcome | None]] = field(default_factory=list)
    returned: list[Call] = field(default_factory=list)
    sent: bytes = b""
    closed: bool = False

    def __post_init__(self) -> None:
        self.connection = Connection(
            b"/a/b", HEAD, lambda *what: self.ended.append(what), self.returned.append, lambda: None
        )
        transport: Any = self
        self.connection.connection_made(transport)
        self.turn()

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def turn(self) -> None:
        """Bytes go both ways until there are none."""
        while self.sent:
            data, self.sent = self.sent, b""
            self.server.receive(data)
            if back := self.server.to_send():
                self.connection.data_received(back)
        if back := self.server.to_send():
            self.connection.data_received(back)
            self.turn()

    def call(self, timeout_s: float = 1.0) -> Call:
        call = Call(0.0, 0.0, MESSAGE)
        self.connection.start(call, timeout_s)
        self.connection.flush()
        self.turn()
        return call

    def answer(self, call: Call, body: bytes = MESSAGE, **trailers: bytes) -> None:
        last = [(name.replace("_", "-").encode(), value) for name, value in trailers.items()]
        self.server.send(self.server.streams[call.stream], HEAD, body, last)
        self.turn()


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_a_request_is_what_grpc_asks_for_and_an_answer_is_its_message(wire: Wire) -> None:
    call = wire.call(timeout_s=0.25)
    request = wire.server.streams[call.stream]
    assert (request.method, request.path, bytes(request.body), request.ended) == (b"POST", b"/a/b", MESSAGE, True)
    assert request.headers[b"grpc-timeout"] == b"250m"
    wire.answer(call, grpc_status=b"0")
    assert wire.ended == [(call, None)]
    assert call.body == MESSAGE


def test_a_failure_tells_code_and_reason(wire: Wire) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="OVERLOADED"))
    status = status_pb2.Status(code=8, details=[detail]).SerializeToString()
    encoded = base64.b64encode(status).rstrip(b"=")
    wire.answer(call := wire.call(), b"", grpc_status=b"8", grpc_status_details_bin=encoded)
    assert wire.ended == [(call, Outcome("RESOURCE_EXHAUSTED", "OVERLOADED"))]
    assert Outcome("RESOURCE_EXHAUSTED").kind is Kind.REFUSED


def test_a_status_may_come_with_the_first_headers(wire: Wire) -> None:
    call = wire.call()
    wire.server.refuse(wire.server.streams[call.stream], 200, [*HEAD, (b"grpc-status", b"12")])
    wire.turn()
    assert wire.ended == [(call, Outcome("UNIMPLEMENTED"))]


@pytest.mark.parametrize("body", [b"", MESSAGE[:-1], MESSAGE + b"d"])
def test_an_answer_that_is_no_whole_message_is_none(wire: Wire, body: bytes) -> None:
    wire.answer(call := wire.call(), body, grpc_status=b"0")
    assert wire.ended == [(call, INCOMPLETE_MESSAGE)]


def test_calls_that_the_server_never_began_are_returned_and_the_others_finish(wire: Wire) -> None:
    first = wire.call()
    wire.server.go_away()
    wire.turn()
    assert not wire.connection.has_capacity
    late = Call(0.0, 0.0, MESSAGE)
    wire.server.go_away_finally()
    wire.connection.start(late, 1.0)
    wire.turn()
    assert wire.returned == [late]
    wire.answer(first, grpc_status=b"0")
    assert wire.ended == [(first, None)]
    assert wire.closed


def test_a_lost_connection_ends_its_calls(wire: Wire) -> None:
    calls = [wire.call(), wire.call()]
    wire.connection.connection_lost(None)
    assert sorted((call.stream, outcome) for call, outcome in wire.ended) == [
        (c.stream, CONNECTION_LOST) for c in calls
    ]


def test_a_call_that_is_given_up_is_reset_and_what_still_comes_is_not_counted(wire: Wire) -> None:
    call = wire.call()
    stream = wire.server.streams[call.stream]
    wire.connection.cancel(call)
    wire.turn()
    assert stream.reset
    assert wire.ended == []


def test_a_reset_by_the_server_is_a_failure(wire: Wire) -> None:
    call = wire.call()
    wire.server._h2.stream(call.stream).reset(2)
    wire.turn()
    assert wire.ended == [(call, STREAM_RESET)]


def test_there_is_room_for_as_many_calls_as_the_server_says(wire: Wire) -> None:
    while wire.connection.has_capacity:
        wire.call()
    assert len(wire.server.streams) == 128


def test_garbage_closes_the_connection(wire: Wire) -> None:
    wire.connection.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert wire.closed


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [(503, [], "UNAVAILABLE"), (415, [], "UNKNOWN"), (200, [(b"grpc-status", b"99")], "UNKNOWN"), (200, [], "UNKNOWN")],
)
def test_what_is_no_answer_of_grpcs_gets_a_code(status: int, headers: list[tuple[bytes, bytes]], code: str) -> None:
    assert of_headers(status, headers).code == code
