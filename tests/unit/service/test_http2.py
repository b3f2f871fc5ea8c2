"""HTTP/2 without I/O: requests come out whatever the cut, replies go as far as windows let them, and floods end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import zttp
from hypothesis import given
from hypothesis import strategies as st

from service.transport.lean import http2
from service.transport.lean.http2 import Headers, Http2, LoadShedder, PeerError, Stream, headers_only_reply

REQUEST: Headers = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/m"),
    (b":authority", b"a"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
HEAD: Headers = [(b"content-type", b"application/grpc")]
OK: Headers = [(b"grpc-status", b"0")]
MOST = 1_000_000
CALM = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
DATA, PRIORITY, RST, SETTINGS, PING, WINDOW, UNKNOWN = 0, 2, 3, 4, 6, 8, 0x42


def raw(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


class Pair:
    """A client of h2, which is strict, and our side."""

    def __init__(
        self, most: int = MOST, *, window: int = 65_535, sheds: Mapping[bytes, LoadShedder] = http2.NO_SHEDDERS
    ) -> None:
        self.client = h2.connection.H2Connection()
        self.client.initiate_connection()
        self.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.server = Http2(most, sheds)
        self.events: list[h2.events.Event] = []
        self.to_server()
        self.to_client()

    def to_server(self) -> Collection[Stream]:
        return self.server.receive(self.client.data_to_send())

    def to_client(self) -> list[h2.events.Event]:
        result = self.client.receive_data(self.server.to_send())
        self.events += result
        return result

    def ask(self, body: bytes = b"body", *more: tuple[bytes, bytes], end: bool = True) -> Stream:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, [*REQUEST, *more])
        self.client.send_data(stream, body, end_stream=end)
        self.to_server()
        return self.server.streams[stream]

    def body(self, stream: Stream) -> bytes:
        got = [e for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream.id]
        return b"".join(e.data or b"" for e in got)

    def ended(self, stream: Stream) -> bool:
        return any(isinstance(e, h2.events.StreamEnded) and e.stream_id == stream.id for e in self.events)

    def goodbyes(self) -> list[tuple[int, int]]:
        """Code and last stream of each GOAWAY."""
        result = [e for e in self.events if isinstance(e, h2.events.ConnectionTerminated)]
        return [(int(e.error_code or 0), e.last_stream_id or 0) for e in result]


def wire(bodies: Sequence[bytes]) -> bytes:
    """What a client sends for these requests, from the first byte on."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    for number, body in enumerate(bodies):
        client.send_headers(2 * number + 1, [*REQUEST, (b"number", b"%d" % number)])
        for at in range(0, len(body), 100):
            client.send_data(2 * number + 1, body[at : at + 100])
        client.end_stream(2 * number + 1)
    return client.data_to_send()


def idle(server: Http2, data: bytes, times: int) -> None:
    for _ in range(times):
        server.receive(data)
        server.to_send()


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_request_comes_out_with_its_headers_and_body() -> None:
    pair = Pair()
    stream = pair.ask(b"abc", (b"x", b"1"), (b"x", b"2"))
    assert (stream.method, stream.path, stream.body, stream.ended) == (b"POST", b"/s/m", b"abc", True)
    assert (stream.headers[b"te"], stream.headers[b"x"], stream.reset) == (b"trailers", b"2", False)


def test_requests_in_one_read_come_out_together() -> None:
    server = Http2(MOST)
    moved = server.receive(wire([b"a", b"b", b"c" * 500]))
    assert [(s.id, s.headers[b"number"], bytes(s.body), s.ended) for s in moved] == [
        (1, b"0", b"a", True),
        (3, b"1", b"b", True),
        (5, b"2", b"c" * 500, True),
    ]


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=5), st.data())
def test_requests_come_out_wherever_the_bytes_were_cut(bodies: list[bytes], data: st.DataObject) -> None:
    whole, server = wire(bodies), Http2(MOST)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        server.receive(whole[start:stop])
    assert [(bytes(s.body), s.ended) for s in server.streams.values()] == [(body, True) for body in bodies]


def test_a_request_may_come_byte_by_byte() -> None:
    server = Http2(MOST)
    moved = [stream.id for byte in wire([b"abc"]) for stream in server.receive(bytes((byte,)))]
    assert set(moved) == {1}
    assert (server.streams[1].body, server.streams[1].ended) == (b"abc", True)


def test_a_body_grows_and_is_consumed_from_its_front() -> None:
    pair = Pair()
    stream = pair.ask(b"abc", end=False)
    pair.client.send_data(stream.id, b"def")
    assert list(pair.to_server()) == [stream]
    pair.server.consume(stream, 4)
    assert (stream.body, stream.ended) == (b"ef", False)
    pair.client.end_stream(stream.id)
    assert list(pair.to_server()) == [stream]
    assert (stream.body, stream.ended) == (b"ef", True)


def test_trailers_end_a_request() -> None:
    pair = Pair()
    stream = pair.ask(b"abc", end=False)
    pair.client.send_headers(stream.id, [(b"x-trailer", b"1")], end_stream=True)
    pair.to_server()
    assert (stream.body, stream.ended) == (b"abc", True)


def test_a_reset_ends_a_stream_and_frees_its_body() -> None:
    pair = Pair(most=50_000)
    for _ in range(10):
        stream = pair.ask(bytes(15_000), end=False)
        pair.client.reset_stream(stream.id)
        assert list(pair.to_server()) == [stream]
        assert stream.reset
        assert not pair.server.streams
        pair.to_client()


def test_more_bodies_than_the_bound_end_the_connection() -> None:
    pair = Pair(most=50_000)
    for _ in range(3):
        pair.ask(bytes(15_000), end=False)
    with pytest.raises(PeerError, match="bodies"):
        pair.ask(bytes(15_000), end=False)
    pair.to_client()
    assert [code for code, _ in pair.goodbyes()] == [CALM]


def test_bodies_that_were_answered_or_consumed_no_longer_count() -> None:
    pair = Pair(most=50_000)
    for number in range(20):
        stream = pair.ask(bytes(15_000), end=False)
        if number % 2:
            pair.server.send(stream, HEAD, b"", OK)
        else:
            pair.server.consume(stream, 15_000)
        pair.to_client()


# --- replies --------------------------------------------------------------------------------------------------------


def test_a_reply_goes_out_whole_and_ends_its_stream() -> None:
    pair = Pair()
    stream = pair.ask()
    pair.server.send(stream, HEAD, b"reply", OK)
    pair.to_client()
    assert pair.body(stream) == b"reply"
    assert pair.ended(stream)
    assert not pair.server.streams
    assert pair.server.unsent() == 0
    assert pair.server.to_send() == b""


def test_a_reply_may_come_in_parts() -> None:
    pair = Pair()
    stream = pair.ask(end=False)
    for part in (b"one", b"two"):
        pair.server.send(stream, HEAD if part == b"one" else None, part, None)
        pair.to_client()
        assert not pair.ended(stream)
    pair.server.send(stream, None, b"", OK)
    pair.to_client()
    assert pair.body(stream) == b"onetwo"
    assert pair.ended(stream)


def test_a_reply_before_the_end_of_its_request_asks_for_no_more_of_it() -> None:
    pair = Pair()
    streams = [pair.ask(end=False), pair.ask(end=False)]
    pair.server.refuse(streams[0], 200, [*HEAD, *OK])
    pair.server.send(streams[1], HEAD, b"reply", OK)
    resets = [e for e in pair.to_client() if isinstance(e, h2.events.StreamReset)]
    assert [(e.stream_id, e.error_code) for e in resets] == [(s.id, 0) for s in streams]
    assert all(map(pair.ended, streams))


def test_what_the_window_holds_back_is_counted_until_it_has_gone() -> None:
    pair = Pair(window=100)
    streams = [pair.ask() for _ in range(3)]
    for stream in streams:
        pair.server.send(stream, HEAD, bytes(1000), OK)
    pair.to_client()
    assert pair.server.unsent() == 3 * 900
    pair.client.increment_flow_control_window(500, streams[0].id)
    pair.to_server()
    pair.to_client()
    assert pair.server.unsent() == 2 * 900 + 400
    pair.client.reset_stream(streams[1].id)
    pair.to_server()
    assert pair.server.unsent() == 900 + 400
    for stream in (streams[0], streams[2]):
        pair.client.increment_flow_control_window(900, stream.id)
    pair.to_server()
    pair.to_client()
    assert pair.server.unsent() == 0
    assert [len(pair.body(stream)) for stream in streams] == [1000, 100, 1000]
    assert [pair.ended(stream) for stream in streams] == [True, False, True]


def test_a_held_stream_may_send_no_more_than_its_window_and_goes_on_when_it_is_wanted_again() -> None:
    pair = Pair()
    held, other = pair.ask(end=False), pair.ask(end=False)
    pair.server.hold(held, wanted=True)
    for _ in range(4):
        pair.client.send_data(held.id, bytes(15_000))
    pair.to_server()
    pair.to_client()
    for _ in range(10):  # the frames of another stream, and of the connection, go out meanwhile
        pair.client.send_data(other.id, bytes(16_000))
        pair.to_server()
        pair.to_client()
    assert pair.client.local_flow_control_window(held.id) == 5531
    pair.server.hold(held, wanted=False)
    assert pair.server.has_pending_output
    pair.to_client()
    assert pair.client.local_flow_control_window(held.id) > 32_768
    pair.server.hold(held, wanted=True)
    pair.client.reset_stream(held.id)
    pair.to_server()
    assert not pair.server._held


# --- floods ---------------------------------------------------------------------------------------------------------

IDLE = {
    "PING": raw(PING, b"12345678"),
    "PING's answer": raw(PING, b"12345678", flags=1),
    "SETTINGS": raw(SETTINGS),
    "WINDOW_UPDATE": raw(WINDOW, b"\0\0\0\1"),
    "DATA of a byte": raw(DATA, b"\0", stream=1),
}


@pytest.mark.parametrize("name", IDLE)
def test_frames_that_ask_for_nothing_use_up_a_credit_that_time_refills(name: str) -> None:
    pair = Pair()
    pair.ask(end=False)
    idle(pair.server, IDLE[name], int(http2.BURST * 0.6))  # their bytes count a little as well
    pair.server.refill(1.0)
    idle(pair.server, IDLE[name], int(http2.PER_SECOND * 0.6))
    with pytest.raises(PeerError, match="ask for nothing"):
        idle(pair.server, IDLE[name], int(http2.BURST * 0.4 + http2.PER_SECOND * 0.4))
    pair.to_client()
    assert [code for code, _ in pair.goodbyes()] == [CALM]


@pytest.mark.parametrize(
    "data",
    [raw(PRIORITY, b"\0\0\0\0\1", stream=1), raw(UNKNOWN, b"x"), raw(DATA, stream=1), raw(SETTINGS, flags=1)],
    ids=["PRIORITY", "unknown", "empty DATA", "SETTINGS's answer"],
)
def test_bytes_without_an_event_use_up_the_credit_too(data: bytes) -> None:
    pair = Pair()
    pair.ask(end=False)
    idle(pair.server, data, 300)
    with pytest.raises(PeerError, match="ask for nothing"):
        idle(pair.server, data * 100, 200)


def test_small_events_are_no_flood_however_many_and_empty_ones_are_as_fast_as_they_are_used() -> None:
    pair = Pair()
    stream = pair.ask(b"", end=False)
    for _ in range(5000):
        pair.server.receive(raw(DATA, bytes(http2.SHORT_DATA), stream=stream.id))
    pair.server.consume(stream, len(stream.body))
    for _ in range(5000):
        pair.server.receive(raw(DATA, bytes(5), stream=stream.id))
        pair.server.consume(stream, 5)
        pair.server.to_send()


def test_requests_bring_credit_of_their_own() -> None:
    pair = Pair()
    for _ in range(600):
        idle(pair.server, IDLE["PING"], int(http2.PER_REQUEST) - 2)
        pair.server.send(pair.ask(), HEAD, b"", OK)
        pair.to_client()


def test_what_was_on_its_way_when_a_request_was_refused_is_forgiven() -> None:
    pair = Pair()
    for _ in range(30):
        stream = pair.ask(b"x", end=False)
        pair.server.refuse(stream, 200, [*HEAD, *OK])
        pair.server.receive(raw(DATA, bytes(16_000), stream=stream.id) * 4)
        pair.server.to_send()
        pair.server.refill(0.1)
    assert not pair.server.should_reconnect


def test_a_turn_takes_so_many_events_and_the_rest_waits() -> None:
    server = Http2(MOST)
    server.receive(wire([]))
    server.to_send()
    server.receive(IDLE["PING"] * (http2.TURN_EVENTS + 200))
    assert server.has_unparsed_input
    assert server.to_send().count(b"12345678") == http2.TURN_EVENTS
    assert list(server.advance()) == []
    assert (server.has_unparsed_input, server.pongs) == (False, 0)
    assert server.to_send().count(b"12345678") == 200


def test_requests_with_many_headers_make_a_turn_shorter() -> None:
    pair = Pair()
    for _ in range(100):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, [*REQUEST, *((b"x%d" % n, b"y") for n in range(200))], end_stream=True)
    first = len(pair.to_server())
    assert 0 < first < 100
    assert pair.server.has_unparsed_input
    while len(pair.server.streams) < 100:
        assert pair.server.advance()


@pytest.mark.parametrize(
    "data",
    [raw(WINDOW, bytes(4)), raw(RST, bytes(4), stream=99), raw(SETTINGS, b"x"), b"\xff" * 100],
    ids=["window by 0", "reset of nothing", "SETTINGS cut", "garbage"],
)
def test_what_the_standard_forbids_ends_the_connection_with_a_reason(data: bytes) -> None:
    pair = Pair()
    with pytest.raises(PeerError):
        pair.server.receive(data)
    pair.to_client()
    assert [code > 0 for code, _ in pair.goodbyes()] == [True]


def test_an_hpack_bomb_is_refused() -> None:
    pair = Pair()
    large = (b"x-large", b"v" * 3900)
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, [*REQUEST, *[large] * 4000], end_stream=True)
    with pytest.raises(PeerError, match="size limit"):
        pair.to_server()


# --- its end --------------------------------------------------------------------------------------------------------


def test_many_requests_or_resets_wear_a_connection() -> None:
    pair = Pair()
    for _ in range(http2.MAX_REQUESTS):
        assert not pair.server.should_reconnect
        pair.server.send(pair.ask(), HEAD, b"", OK)
        pair.to_client()
    assert pair.server.should_reconnect
    pair = Pair()
    for _ in range(http2.MAX_RESETS):
        assert not pair.server.should_reconnect
        pair.client.reset_stream(pair.ask().id)
        pair.to_server()
        pair.to_client()
    assert pair.server.should_reconnect


def test_going_away_in_two_steps_loses_no_request() -> None:
    pair = Pair()
    early = pair.ask()
    pair.server.go_away()
    pair.server.ping()
    data = pair.server.to_send()
    assert data.endswith(http2.PING)
    late = pair.ask()  # it was on its way
    pair.client.receive_data(data[: -len(http2.PING)])
    assert pair.server.pongs == 0
    pair.server.receive(raw(PING, http2.OPAQUE, flags=1))
    assert pair.server.pongs == 1
    pair.server.go_away_finally()
    for stream in (early, late):
        pair.server.send(stream, HEAD, b"reply", OK)
    assert late.id.to_bytes(4) in pair.server.to_send()
    assert not pair.server.streams


def test_after_the_last_goodbye_new_requests_are_not_taken() -> None:
    pair = Pair()
    pair.ask()
    pair.server.go_away_finally()
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, REQUEST, end_stream=True)
    assert list(pair.to_server()) == []
    assert list(pair.server.streams) == [1]
    pair.to_client()
    assert pair.goodbyes() == [(0, 1)]


def test_a_foreign_answer_to_a_ping_is_no_sign_of_life() -> None:
    pair = Pair()
    pair.server.ping()
    pair.server.receive(raw(PING, b"12345678", flags=1))
    assert pair.server.pongs == 0
    pair.to_client()
    pair.to_server()
    assert pair.server.pongs == 1


def test_the_parser_is_the_one_that_was_examined() -> None:
    """Another version has other limits of its own: run the fuzz and look at those in http2.py again."""
    own = zttp.Connection(zttp.SERVER, zttp.HTTP2)
    own.initiate_connection()
    settings = own.data_to_send()[9:]
    result = {
        int.from_bytes(settings[at : at + 2]): int.from_bytes(settings[at + 2 : at + 6]) for at in range(0, 30, 6)
    }
    codes = h2.settings.SettingCodes
    assert result[codes.MAX_CONCURRENT_STREAMS] == 128
    assert result[codes.MAX_HEADER_LIST_SIZE] == 65_536
    assert result[codes.HEADER_TABLE_SIZE] == 4096
    assert result[codes.MAX_FRAME_SIZE] == 16_384


SHED: Headers = [(b"content-type", b"application/grpc"), (b"grpc-status", b"8"), (b"details", b"x" * 300)]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 400))
def test_who_is_shed_gets_headers_alone_and_is_never_seen(welcome: list[bool], cut: int) -> None:
    turns = iter(welcome)
    pair = Pair(sheds={b"/s/m": lambda: None if next(turns) else headers_only_reply(SHED)})
    asked, seen = [], set()
    for _ in welcome:
        asked.append(stream := pair.client.get_next_available_stream_id())
        pair.client.send_headers(stream, REQUEST)
        pair.client.send_data(stream, b"body", end_stream=True)
    data = pair.client.data_to_send()
    for at in range(0, len(data), cut):
        for item in list(pair.server.receive(data[at : at + cut])):
            seen.add(item.id)
            if item.ended:
                pair.server.send(item, HEAD, b"reply", OK)
        pair.to_client()
    assert seen == {stream for stream, let in zip(asked, welcome, strict=True) if let}
    reported = {e.stream_id: dict(e.headers or []) for e in pair.events if isinstance(e, h2.events.ResponseReceived)}
    assert set(reported) == set(asked)
    ended = [e.stream_id for e in pair.events if isinstance(e, h2.events.StreamEnded)]
    assert sorted(ended) == asked
    for stream, let in zip(asked, welcome, strict=True):
        assert reported[stream] == {b":status": b"200", **dict(HEAD if let else SHED)}
    assert not pair.server.streams


def test_more_may_be_shed_on_a_connection_than_may_be_open_at_once() -> None:
    pair = Pair(sheds={b"/s/m": lambda: headers_only_reply(SHED)})
    for _ in range(1000):
        stream = pair.client.get_next_available_stream_id()
        pair.client.send_headers(stream, REQUEST)
        pair.client.send_data(stream, b"body", end_stream=True)
        pair.to_server()
        pair.to_client()
    assert sum(isinstance(event, h2.events.StreamEnded) for event in pair.events) == 1000
