"""Both fronts speak gRPC as it is written down, seen from a socket; and they say the same, to the byte."""

from __future__ import annotations

import base64
import math
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tidemark.rpc import status_pb2
from tidemark.v1 import customers_pb2, events_pb2, scoring_pb2

from feature_store.bundles import bundle
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateLayout
from tests.conftest import Trained
from tests.e2e.conftest import RedisProcess, load_small
from tests.e2e.raw_client import Headers, RawClient, Reply, framed
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import ScoringClient

SERVICE = "tidemark.v1.ScoringService"
SCORE, BATCH = f"/{SERVICE}/ScoreCustomer", f"/{SERVICE}/BatchScoreCustomers"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
KNOWN = "900"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 4, 5, 8, 12, 13
EVERY_STREAM = 2**31 - 1

ONE = scoring_pb2.ScoreCustomerRequest(customer_id=KNOWN).SerializeToString()
MANY = scoring_pb2.BatchScoreCustomersRequest(customer_ids=[str(n) for n in range(1, 1001)]).SerializeToString()
LONG = scoring_pb2.BatchScoreCustomersRequest(customer_ids=[f"{n:0256}" for n in range(1000)]).SerializeToString()
"""More than any window at the start."""
ALL = health_pb2.HealthCheckRequest().SerializeToString()

Start = Callable[..., ServerProcess]


pytestmark = pytest.mark.both_fronts


@pytest.fixture
def raw(server: ServerProcess) -> Iterator[RawClient]:
    with RawClient(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def stoppable(small: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A loaded Redis that tests may stop, and must let go on."""
    process = RedisProcess(tmp_path_factory.mktemp("s"))
    load_small(process.url, small)
    yield process
    process.resume()
    process.kill()


@pytest.fixture
def start(loaded_redis: str, small_registry: Path, tmp_path: Path) -> Iterator[Start]:
    """``start(*options, redis=url, environment={…})``: a server of the test's own."""
    with ExitStack() as stack:

        def start(*options: str, redis: str = loaded_redis, environment: dict[str, str] | None = None) -> ServerProcess:
            usual = ["--registry", str(small_registry), "--redis", redis, "--port", "0"]
            server = stack.enter_context(ServerProcess(tmp_path, *usual, *options, environment=environment))
            server.wait_for("health is ")
            return server

        yield start


@pytest.fixture
def patient(start: Start, stoppable: RedisProcess) -> Iterator[ServerProcess]:
    """A server that waits for its Redis, however long that takes, and asks it nothing of its own meanwhile."""
    yield start("--redis-timeout-s", "60", "--health-interval-s", "60", redis=stoppable.url)
    stoppable.resume()


def customer(reply: Reply) -> str:
    return scoring_pb2.ScoreCustomerResponse.FromString(reply.only).score.customer_id


def customers(reply: Reply) -> list[str]:
    results = scoring_pb2.BatchScoreCustomersResponse.FromString(reply.only).results
    return [result.score.customer_id for result in results]


def health(data: bytes) -> int:
    return int(health_pb2.HealthCheckResponse.FromString(data).status)


def keys_asked(url: str) -> int:
    """How many customers have been looked up in Redis so far: state and record of each."""
    with redis.Redis.from_url(url) as connection:
        stats: Any = connection.info("stats")
        return int(stats["keyspace_hits"] + stats["keyspace_misses"]) // 2


def details(reply: Reply) -> bytes:
    result = reply.told.get(b"grpc-status-details-bin", b"")
    return base64.b64decode(result + b"=" * (-len(result) % 4), validate=True)


# --- requests and replies -------------------------------------------------------------------------------------------


def test_a_reply_is_headers_a_message_and_trailers(raw: RawClient) -> None:
    reply = raw.ask(SCORE, ONE)
    assert reply.headers[b"content-type"] == b"application/grpc"
    assert b"grpc-status" not in reply.headers
    assert reply.trailers[b"grpc-status"] == b"0"
    assert customer(reply) == KNOWN
    assert reply.data[:5] == bytes(4) + bytes([len(reply.data) - 5])


def test_an_error_is_trailers_alone_that_say_all(raw: RawClient) -> None:
    reply = raw.ask(SCORE, scoring_pb2.ScoreCustomerRequest(customer_id="nobody").SerializeToString())
    assert (reply.status, reply.code, reply.data, reply.trailers) == (200, NOT_FOUND, b"", {})
    reported = status_pb2.Status.FromString(details(reply))
    assert (reported.code, reported.message) == (NOT_FOUND, reply.message)


def test_metadata_of_all_kinds_changes_nothing(raw: RawClient) -> None:
    headers: list[tuple[str, str | bytes]] = [
        ("x-text", "a b"),
        ("x-text", "again"),
        ("x-raw-bin", base64.b64encode(bytes(range(256)))),
    ]
    headers += [("x-unpadded-bin", b"AA"), ("x-empty-bin", b""), ("x-long", "l" * 4000)]
    headers += [("user-agent", "test/1"), ("grpc-accept-encoding", "identity"), ("grpc-previous-rpc-attempts", "1")]
    assert [customer(raw.ask(SCORE, ONE, headers)) for _ in range(3)] == [KNOWN] * 3


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
def test_every_content_type_of_grpc_is_welcome(raw: RawClient, kind: str) -> None:
    stream = raw.begin(SCORE, replaced={"content-type": kind})
    raw.send(stream, framed(ONE))
    assert customer(raw.end(stream)) == KNOWN


@pytest.mark.parametrize("path", [f"/{SERVICE}/Nothing", "/no.Service/ScoreCustomer", "/", SCORE.lower()])
def test_an_unknown_method_is_unimplemented(raw: RawClient, path: str) -> None:
    assert raw.ask(path, ONE).code == UNIMPLEMENTED
    assert customer(raw.ask(SCORE, ONE)) == KNOWN


def test_messages_are_compressed_both_ways(raw: RawClient, front: str) -> None:
    encodings = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity,gzip")]
    reply = raw.ask(BATCH, MANY, encodings, squeezed=True)
    assert len(customers(reply)) == 1000
    if front == "lean":
        assert reply.headers[b"grpc-encoding"] == b"gzip"
        assert len(reply.data) < len(reply.only) / 2
    # A caller may announce a compression and not use it, use it and not want it back, or have little to say.
    assert len(customers(raw.ask(BATCH, MANY, encodings))) == 1000
    plain = raw.ask(BATCH, MANY, encodings[:1], squeezed=True)
    assert (plain.data[0], len(customers(plain))) == (0, 1000)
    assert customer(raw.ask(SCORE, ONE, encodings, squeezed=True)) == KNOWN


def test_a_message_beyond_the_limit_is_refused_in_both_directions(start: Start) -> None:
    with RawClient(start("--max-message-bytes", "16384").target) as raw:
        assert raw.ask(BATCH, LONG).code == EXHAUSTED
        bomb = raw.ask(BATCH, bytes(10**6), [("grpc-encoding", "gzip")], squeezed=True)
        assert bomb.code == EXHAUSTED
        assert customer(raw.ask(SCORE, ONE)) == KNOWN
        assert raw.ask(BATCH, MANY).code == EXHAUSTED
        assert customer(raw.ask(SCORE, ONE)) == KNOWN


def test_calls_that_come_in_one_read_are_all_answered(raw: RawClient) -> None:
    streams = [raw.begin(SCORE) for _ in range(90)]
    for stream in streams:
        raw.h2.send_data(stream, framed(ONE), end_stream=True)
    raw.flush()
    assert {customer(raw.end(stream)) for stream in streams} == {KNOWN}


@pytest.mark.parametrize("frame_bytes", [1, 3, 64])
def test_a_message_may_come_in_many_frames(raw: RawClient, frame_bytes: int) -> None:
    few = scoring_pb2.BatchScoreCustomersRequest(customer_ids=[KNOWN] * 100).SerializeToString()
    stream = raw.begin(BATCH)
    raw.send(stream, framed(few), frame_bytes=frame_bytes)
    assert customers(raw.end(stream)) == [KNOWN] * 100


def test_a_frame_may_come_in_many_reads(raw: RawClient) -> None:
    stream = raw.begin(SCORE)
    raw.h2.send_data(stream, framed(ONE), end_stream=True)
    for byte in raw.h2.data_to_send():
        raw.write(bytes([byte]))
        time.sleep(0.001)
    assert customer(raw.end(stream)) == KNOWN


@pytest.mark.one_front
def test_padding_and_trailers_of_a_request_are_nothing_to_a_call(raw: RawClient) -> None:
    stream = raw.begin(SCORE)
    raw.h2.send_data(stream, framed(ONE), pad_length=200)
    raw.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
    raw.flush()
    assert customer(raw.end(stream)) == KNOWN


def test_a_broken_call_breaks_no_other(raw: RawClient) -> None:
    other = raw.begin(SCORE)
    raw.send(other, framed(ONE)[:7], end=False)
    for headers in ([("X-Upper", "no")], [("connection", "close")], [("content-length", "3")]):
        broken = raw.begin(SCORE, headers)
        raw.send(broken, framed(ONE))
        raw.end(broken)
    raw.send(other, framed(ONE)[7:])
    assert customer(raw.end(other)) == KNOWN


# --- flow control ---------------------------------------------------------------------------------------------------


def test_a_request_larger_than_the_window_arrives_whole(raw: RawClient) -> None:
    assert len(scoring_pb2.BatchScoreCustomersResponse.FromString(raw.ask(BATCH, LONG).only).results) == 1000


def test_a_reply_waits_for_the_window_to_the_byte(server: ServerProcess) -> None:
    with RawClient(server.target, window=1, takes=False) as raw:
        stream = raw.call(BATCH, MANY)
        reply = raw.replies[stream]
        for size in range(1, 20):
            raw.wait(lambda: len(reply.data) == size)  # noqa: B023  # called before the loop goes on
            assert not raw.look(lambda: len(reply.data) > size, 0.01)  # noqa: B023  # likewise
            raw.open(1, stream)
        raw.open(2**20, stream)
        raw.wait(lambda: len(reply.data) == 65_535)  # what is left of the connection's window
        assert not raw.look(lambda: reply.ended, 0.1)
        raw.open(2**20)
        assert len(customers(raw.end(stream))) == 1000


def test_replies_through_small_windows_come_whole_and_in_order(server: ServerProcess) -> None:
    with RawClient(server.target, window=4096) as raw:
        streams = [raw.call(BATCH, MANY) for _ in range(3)]
        assert {len(customers(raw.end(stream))) for stream in streams} == {1000}


def test_a_window_that_stays_shut_holds_up_no_other_call(server: ServerProcess) -> None:
    with RawClient(server.target, window=500, takes=False) as raw:
        shut = [raw.call(BATCH, MANY) for _ in range(10)]
        assert customer(raw.ask(SCORE, ONE)) == KNOWN
        for stream in shut:
            raw.open(2**20, stream)
        raw.open(2**24)
        assert {len(customers(raw.end(stream))) for stream in shut} == {1000}


def test_a_window_shrunk_below_nothing_is_made_up_for(server: ServerProcess) -> None:
    with RawClient(server.target, takes=False) as raw:
        stream = raw.call(BATCH, MANY)
        raw.wait(lambda: len(raw.replies[stream].data) == 65_535)
        raw.write(bytes.fromhex("000006040000000000000400000000"))  # SETTINGS_INITIAL_WINDOW_SIZE = 0
        raw.open(60_000)
        raw.open(60_000, stream)
        assert not raw.look(lambda: len(raw.replies[stream].data) > 65_535, 0.1)
        raw.open(10**6)
        raw.open(10**6, stream)
        assert len(customers(raw.end(stream))) == 1000


def test_a_client_that_reads_slowly_gets_all_and_keeps_nobody_waiting(server: ServerProcess) -> None:
    with (
        RawClient(server.target, window=2**30, socket_buffer=4096) as slow,
        RawClient(server.target) as other,
    ):
        slow.open(2**30)
        streams = [slow.call(BATCH, MANY) for _ in range(60)]
        for _ in range(20):
            assert customer(other.ask(SCORE, ONE)) == KNOWN  # though nobody reads the replies to the slow one meanwhile
        assert {len(customers(slow.end(stream))) for stream in streams} == {1000}


# --- deadlines and cancellation -------------------------------------------------------------------------------------


@pytest.mark.one_front  # grpcio's timer may come later than its answer
@pytest.mark.parametrize("timeout", ["0H", "0S", "0n"])
def test_a_call_that_is_late_as_it_comes_is_told_so(raw: RawClient, timeout: str) -> None:
    assert raw.ask(SCORE, ONE, [("grpc-timeout", timeout)]).code == DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout", ["1H", "9M", "99999999S", "5000m", "9999999u", "99999999n"])
def test_every_unit_of_time_is_understood(raw: RawClient, timeout: str) -> None:
    assert customer(raw.ask(SCORE, ONE, [("grpc-timeout", timeout)])) == KNOWN


@pytest.mark.parametrize("timeout", ["", "S", "5", "-1S", "1.5S", "5x"])
def test_a_deadline_that_makes_no_sense_is_refused(raw: RawClient, timeout: str) -> None:
    assert raw.ask(SCORE, ONE, [("grpc-timeout", timeout)]).code == INTERNAL


def test_expired_work_is_not_done(patient: ServerProcess, stoppable: RedisProcess) -> None:
    with RawClient(patient.target) as raw:
        customer(raw.ask(SCORE, ONE))
        before = keys_asked(stoppable.url)
        stoppable.pause()
        asked = [raw.call(SCORE, ONE)]  # at Redis already, as is a call of the other lane
        patient.await_idle()
        late = [raw.call(SCORE, ONE, [("grpc-timeout", "100m")]) for _ in range(20)]
        for stream in late:
            assert raw.end(stream).reset is not None or raw.replies[stream].code == DEADLINE_EXCEEDED
        stoppable.resume()
        asked.append(raw.call(SCORE, ONE, [("grpc-timeout", "300S")]))
        assert [customer(raw.end(stream)) for stream in asked] == [KNOWN] * 2
    assert keys_asked(stoppable.url) == before + 2


def test_cancelled_work_is_not_done(patient: ServerProcess, stoppable: RedisProcess) -> None:
    with RawClient(patient.target) as raw, RawClient(patient.target) as gone:
        customer(raw.ask(SCORE, ONE))
        before = keys_asked(stoppable.url)
        stoppable.pause()
        asked = [raw.call(SCORE, ONE)]
        patient.await_idle()
        for stream in [raw.call(SCORE, ONE) for _ in range(20)]:
            raw.cancel(stream)
        for _ in range(20):
            gone.call(SCORE, ONE)
        gone.ping()
        gone.socket.close()
        raw.ping()
        patient.await_idle()  # grpcio's loop hears of it later than its threads, which answered the ping
        stoppable.resume()
        asked.append(raw.call(SCORE, ONE))
        assert [customer(raw.end(stream)) for stream in asked] == [KNOWN] * 2
    assert keys_asked(stoppable.url) == before + 2


def test_a_channel_that_cancels_all_the_time_loses_no_other_call(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(SCORE)
        for _ in range(8):
            doomed = [call.future(ONE, timeout=PATIENCE_S) for _ in range(50)]
            kept = [call.future(ONE, timeout=PATIENCE_S) for _ in range(10)]
            for future in doomed:
                future.cancel()
            for future in kept:
                assert scoring_pb2.ScoreCustomerResponse.FromString(future.result()).score.customer_id == KNOWN


# --- streams --------------------------------------------------------------------------------------------------------


def test_reflection_answers_each_request_as_it_comes(raw: RawClient) -> None:
    stream = raw.begin(REFLECT)
    for count, name in enumerate([SERVICE, "grpc.health.v1.Health", "no.Such"], 1):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
        raw.send(stream, framed(request.SerializeToString()), end=False)
        reply = reflection_pb2.ServerReflectionResponse.FromString(raw.messages(stream, count)[-1])
        assert reply.HasField("file_descriptor_response") is (name != "no.Such")
    raw.send(stream, b"")
    reply_ = raw.end(stream)
    assert (reply_.code, len(reply_.messages)) == (OK, 3)


def test_requests_of_a_stream_that_come_together_are_answered_in_turn(raw: RawClient) -> None:
    names = [SERVICE, "grpc.health.v1.Health"] * 20
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    stream = raw.begin(REFLECT)
    raw.send(stream, b"".join(framed(request.SerializeToString()) for request in asked))
    replies = [reflection_pb2.ServerReflectionResponse.FromString(data) for data in raw.end(stream).messages]
    assert [reply.original_request.file_containing_symbol for reply in replies] == names


def test_a_watcher_hears_of_health_as_it_changes(start: Start, own_redis: RedisProcess) -> None:
    server = start("--health-interval-s", "0.05", redis=own_redis.url)
    with RawClient(server.target) as raw:
        services = [b"", SERVICE.encode(), b"unknown"]
        requests = [health_pb2.HealthCheckRequest(service=name.decode()).SerializeToString() for name in services]
        total, service, unknown = streams = [raw.call(WATCH, request) for request in requests]
        first = [health(raw.messages(stream, 1)[0]) for stream in streams]
        assert first == [SERVING, SERVING, SERVICE_UNKNOWN]
        raw.cancel(service)
        own_redis.kill()
        assert health(raw.messages(total, 2)[1]) == NOT_SERVING
        assert health(raw.ask(CHECK, ALL).only) == NOT_SERVING
        own_redis.start()
        assert health(raw.messages(total, 3)[2]) == SERVING
        assert [len(raw.replies[stream].messages) for stream in streams] == [3, 1, 1]
        assert raw.replies[unknown].ended is None


# --- the life of a connection ---------------------------------------------------------------------------------------


def test_a_ping_is_answered_also_while_calls_wait(patient: ServerProcess, stoppable: RedisProcess) -> None:
    with RawClient(patient.target) as raw:
        raw.ping()
        stoppable.pause()
        waiting = raw.call(SCORE, ONE)
        patient.await_idle()
        raw.ping()
        assert raw.replies[waiting].ended is None
        stoppable.resume()
        assert customer(raw.end(waiting)) == KNOWN


def test_a_request_comes_in_while_another_waits_for_redis(patient: ServerProcess, stoppable: RedisProcess) -> None:
    with RawClient(patient.target) as raw:
        stoppable.pause()
        waiting = raw.call(SCORE, ONE)
        patient.await_idle()
        late = raw.begin(BATCH, [("grpc-timeout", "300S")])
        raw.send(late, framed(LONG))  # needs the server's windows to be opened again and again
        stoppable.resume()
        assert (customer(raw.end(waiting)), raw.end(late).code) == (KNOWN, OK)


def test_a_client_without_a_sign_of_life_is_closed_and_another_is_kept(start: Start) -> None:
    server = start("--keepalive-interval-s", "0.5", "--keepalive-timeout-s", "4")
    with RawClient(server.target) as silent, RawClient(server.target) as alive:
        for client in (silent, alive):
            client.messages(client.call(WATCH, ALL), 1)
        silent.socket.settimeout(0)
        alive.wait(lambda: has_ended(silent.socket))  # answers pings meanwhile
        assert alive.pings >= 2
        assert customer(alive.ask(SCORE, ONE)) == KNOWN
        assert SERVING in [health(data) for data in alive.replies[1].messages]


def has_ended(connection: socket.socket) -> bool:
    """Whether the other end has closed; what has come from there is read and thrown away."""
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_connection_of_age_is_replaced_and_no_call_is_lost(start: Start) -> None:
    server = start("--max-connection-age-s", "0.5")
    with RawClient(server.target) as raw:
        customer(raw.ask(SCORE, ONE))
        with ScoringClient(server.target, timeout_s=PATIENCE_S) as client:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                assert client.score(KNOWN).customer_id == KNOWN
        raw.look(lambda: raw.closed, PATIENCE_S)
        assert [(code, last in (1, EVERY_STREAM)) for last, code in raw.goaways] == [(0, True)] * len(raw.goaways)
        assert raw.goaways
        assert raw.closed
    assert "Traceback" not in server.log


def test_seven_thousand_calls_on_one_channel_are_all_answered(server: ServerProcess) -> None:
    wave = threading.Semaphore(100)
    with grpc.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(SCORE)
        futures = []
        for _ in range(7000):
            wave.acquire()
            futures.append(call.future(ONE, timeout=PATIENCE_S))
            futures[-1].add_done_callback(lambda _: wave.release())
        assert {future.code() for future in futures} == {grpc.StatusCode.OK}


@pytest.mark.one_front
def test_a_worn_connection_is_left_in_good_order(server: ServerProcess) -> None:
    with RawClient(server.target) as raw:
        answered = 0
        while not raw.goaways and answered < 4000:
            assert customer(raw.ask(SCORE, ONE)) == KNOWN
            answered += 1
        assert (raw.goaways, raw.closed) == ([(EVERY_STREAM, 0)], False)
        raw.wait(lambda: raw.closed or len(raw.goaways) == 2)
        assert raw.goaways[1:] == [(2 * answered - 1, 0)]
        raw.look(lambda: raw.closed, PATIENCE_S)
        assert raw.closed
    assert 2500 < answered < 4000


def test_at_a_stop_calls_finish_clients_are_told_and_idle_connections_end(
    patient: ServerProcess, stoppable: RedisProcess
) -> None:
    with RawClient(patient.target) as busy, RawClient(patient.target) as idle, RawClient(patient.target) as watcher:
        watched = watcher.call(WATCH, ALL)
        watcher.messages(watched, 1)
        idle.ping()
        stoppable.pause()
        call = busy.call(SCORE, ONE)
        patient.await_idle()
        stopping = threading.Thread(target=patient.process.terminate)
        stopping.start()
        busy.wait(lambda: busy.goaways)
        stoppable.resume()
        assert customer(busy.end(call)) == KNOWN
        for client in (busy, idle, watcher):
            client.look(lambda client=client: client.closed, PATIENCE_S)  # type: ignore[misc]
            assert client.closed
            assert {code for _, code in client.goaways} == {0}
        stopping.join()
        assert patient.process.wait(PATIENCE_S) == 0
        assert health(watcher.replies[watched].messages[-1]) == NOT_SERVING
    assert "Traceback" not in patient.log


def test_a_stop_under_load_loses_no_call_that_was_taken(start: Start, front: str) -> None:
    server, codes = start(), []

    def load() -> None:
        with grpc.insecure_channel(server.target) as channel:
            call: Any = channel.unary_unary(SCORE)
            try:
                while True:
                    call(ONE, timeout=PATIENCE_S)
                    codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(codes) > 50)
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    gone = {grpc.StatusCode.UNAVAILABLE}  # nobody listens any more
    if front == "grpcio":
        gone.add(grpc.StatusCode.CANCELLED)  # what it says to a call that comes as it stops
    assert grpc.StatusCode.OK in codes
    assert set(codes) - {grpc.StatusCode.OK} <= gone
    assert "Traceback" not in server.log


@pytest.mark.parametrize("timeout_s", ["0.3", "60"])
def test_a_stop_ends_also_who_is_connecting_to_redis(
    stoppable: RedisProcess, small_registry: Path, tmp_path: Path, timeout_s: str
) -> None:
    options = ["--registry", str(small_registry), "--redis", stoppable.url, "--port", "0"]
    options += ["--health-interval-s", "0.01", "--redis-timeout-s", timeout_s]
    stoppable.pause()
    try:
        with ServerProcess(tmp_path, *options) as server:
            server.wait_for("serving on")
            time.sleep(0.2)
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 30  # half of the longer timeout
    finally:
        stoppable.resume()


# --- what only the lean front promises ------------------------------------------------------------------------------


@pytest.mark.one_front
@pytest.mark.parametrize(
    ("replaced", "status"),
    [
        ({"content-type": "application/json"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "application/grpc-web+proto"}, 415),
        ({":method": "GET"}, 405),
    ],
)
def test_a_request_that_is_not_grpc_gets_a_status_of_http(
    raw: RawClient, replaced: Mapping[str, str], status: int
) -> None:
    stream = raw.begin(SCORE, replaced=replaced)
    raw.send(stream, framed(ONE))
    reply = raw.end(stream)
    assert (reply.status, reply.data) == (status, b"")
    assert customer(raw.ask(SCORE, ONE)) == KNOWN


@pytest.mark.one_front
@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(10**6),
        b"HELO\r\n",
    ],
    ids=["GET", "POST", "something else"],
)
def test_another_protocol_is_answered_politely(server: ServerProcess, said: bytes) -> None:
    host, _, port = server.target.rpartition(":")
    with closing(socket.create_connection((host, int(port)), timeout=PATIENCE_S)) as connection:
        connection.sendall(said)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505 ")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"gRPC" in body


@pytest.mark.one_front
@pytest.mark.parametrize("path", [SCORE, CHECK, WATCH])
@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", UNIMPLEMENTED), (framed(ALL) * 2, UNIMPLEMENTED), (b"\0\0\0\0\x09half", INTERNAL), (b"\0\0", INTERNAL)],
    ids=["none", "two", "half", "less than a prefix"],
)
def test_a_request_must_be_exactly_one_message(raw: RawClient, path: str, body: bytes, code: int) -> None:
    stream = raw.begin(path)
    raw.send(stream, body)
    reply = raw.end(stream)
    assert (reply.code, reply.data) == (code, b"")


@pytest.mark.one_front
def test_a_stream_that_ends_within_a_message_has_failed(raw: RawClient) -> None:
    stream = raw.begin(REFLECT)
    raw.send(stream, b"\0\0\0\0\x09half")
    assert raw.end(stream).code == INTERNAL


@pytest.mark.one_front
def test_an_unknown_compression_is_refused_with_those_that_are_known(raw: RawClient) -> None:
    reply = raw.ask(SCORE, ONE, [("grpc-encoding", "snappy")])
    assert reply.code == UNIMPLEMENTED
    assert b"gzip" in reply.told[b"grpc-accept-encoding"]


@pytest.mark.one_front
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([], framed(ONE, squeezed=True)),
        ([("grpc-encoding", "gzip")], b"\1" + framed(ONE)[1:]),
        ([("grpc-encoding", "gzip")], b"\2" + framed(ONE)[1:]),
        ([("grpc-encoding", "gzip")], framed(ONE, squeezed=True)[:-4].replace(b"\0\0\0\x19", b"\0\0\0\x15", 1)),
    ],
    ids=["no encoding", "not gzip", "no such flag", "torn"],
)
def test_a_message_that_cannot_be_decompressed_is_an_internal_error(
    raw: RawClient, headers: Headers, body: bytes
) -> None:
    stream = raw.begin(SCORE, headers)
    raw.send(stream, body)
    assert raw.end(stream).code == INTERNAL
    assert customer(raw.ask(SCORE, ONE)) == KNOWN


@pytest.mark.one_front
def test_deflate_is_understood_too(raw: RawClient) -> None:
    data = zlib.compress(ONE)
    stream = raw.begin(SCORE, [("grpc-encoding", "deflate")])
    raw.send(stream, b"\1" + len(data).to_bytes(4, "big") + data)
    assert customer(raw.end(stream)) == KNOWN


# --- the two fronts beside each other -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request, by its bytes on the wire."""

    path: str
    body: bytes
    headers: Headers = ()


def single(**fields: Any) -> Asked:
    return Asked(SCORE, framed(scoring_pb2.ScoreCustomerRequest(**fields).SerializeToString()))


def batch(*ids: str, **fields: Any) -> Asked:
    return Asked(BATCH, framed(scoring_pb2.BatchScoreCustomersRequest(customer_ids=ids, **fields).SerializeToString()))


def economics(**churn: float) -> scoring_pb2.Economics:
    return scoring_pb2.Economics(churn=scoring_pb2.Offer(**churn))


def events(*customer_ids: str, method: str = "RecordEvents") -> Asked:
    """Events without a time, which change nothing."""
    request = events_pb2.RecordEventsRequest(events=[events_pb2.Event(customer_id=item) for item in customer_ids])
    return Asked(f"/tidemark.v1.EventService/{method}", framed(request.SerializeToString()))


def customer_call(method: str, request: Any) -> Asked:
    return Asked(f"/tidemark.v1.CustomerService/{method}", framed(request.SerializeToString()))


def check(service: str) -> Asked:
    return Asked(CHECK, framed(health_pb2.HealthCheckRequest(service=service).SerializeToString()))


GZIP = [("grpc-encoding", "gzip")]
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
TABLE = {
    "a score": single(customer_id=KNOWN),
    "a score for another offer": single(customer_id=KNOWN, economics=economics(contact_cost=5, success_rate=1)),
    "a score that is new enough": single(customer_id=KNOWN, max_feature_age=Duration(seconds=10**9)),
    "a batch": batch(*map(str, range(1, 200))),
    "an empty batch": batch(),
    "a batch with problems": batch(KNOWN, "nobody", "", "tab\t", "x" * 257, "torn", "foreign", KNOWN),
    "a batch of the old": batch(KNOWN, "nobody", max_feature_age=Duration(nanos=1)),
    "a batch as large as can be": batch(*[""] * 1000),
    "too many customers": batch(*[KNOWN] * 1001),
    "a score that is explained": single(customer_id=KNOWN, explain=True, max_reasons=2),
    "a batch that is explained": batch(KNOWN, "nobody", "", "torn", *map(str, range(1, 9)), explain=True),
    "too many to explain": batch(*[KNOWN] * 101, explain=True),
    "no id": single(),
    "a long id": single(customer_id="x" * 257),
    "a long id of few letters": single(customer_id="ü" * 129),
    "an id that cannot be printed": single(customer_id="tab\there"),
    "an unknown id beyond ASCII": single(customer_id="Zoë 🛒"),
    "an unknown customer": single(customer_id="nobody"),
    "a torn state": single(customer_id="torn"),
    "a state of others": single(customer_id="foreign"),
    "features too old": single(customer_id=KNOWN, max_feature_age=Duration(nanos=1)),
    "a negative age": single(customer_id=KNOWN, max_feature_age=Duration(seconds=-1)),
    "an age of too many nanos": single(customer_id=KNOWN, max_feature_age=Duration(nanos=10**9)),
    "a negative cost": single(customer_id=KNOWN, economics=economics(contact_cost=-1)),
    "a cost that is no number": single(customer_id=KNOWN, economics=economics(offer_cost=math.nan)),
    "a cost without end": batch(KNOWN, economics=economics(budget_price=math.inf)),
    "a share beyond all": batch(KNOWN, economics=scoring_pb2.Economics(margin=1.5)),
    "not a message": Asked(SCORE, framed(b"\xff\xff")),
    "not text": Asked(SCORE, framed(b"\x0a\x01\xff")),
    "unknown fields": Asked(SCORE, framed(ONE + b"\xfa\x01\x03abc")),
    "not a batch": Asked(BATCH, framed(b"\x0a")),
    "nothing for a batch": Asked(BATCH, framed(b"")),
    "an unknown method": Asked(f"/{SERVICE}/Nothing", framed(ONE)),
    "an unknown service": Asked("/tidemark.v2.ScoringService/ScoreCustomer", framed(ONE)),
    "a request too large": Asked(SCORE, framed(bytes(2**18))),  # grpcio refuses what is far larger by itself
    "a request too large by a byte": Asked(SCORE, framed(bytes(65_537))),
    "a reply too large": Asked(BATCH, framed(MANY)),
    "compressed": Asked(SCORE, framed(ONE, squeezed=True), GZIP),
    "announced and not compressed": Asked(SCORE, framed(ONE), GZIP),
    "compressed and too large": Asked(SCORE, framed(bytes(2**18), squeezed=True), GZIP),
    "not decompressible": Asked(SCORE, b"\1" + framed(ONE)[1:], GZIP),
    "late when, nobody knows": Asked(SCORE, framed(ONE), [("grpc-timeout", "soon")]),
    "events with problems": events("a", "", "tab\there"),
    "no events": events(),
    "too many events": events(*["x"] * 1001),
    "not events": Asked("/tidemark.v1.EventService/RecordEvents", framed(b"\xff\xff")),
    "a stream of events with problems": events("a", "", method="StreamEvents"),
    "a stream of two messages": Asked("/tidemark.v1.EventService/StreamEvents", events("a", "b").body * 2),
    "a stream without messages": Asked("/tidemark.v1.EventService/StreamEvents", b""),
    "a stream with a bad message": Asked("/tidemark.v1.EventService/StreamEvents", framed(b"") + framed(b"\xff")),
    "a stream with a message too large": Asked("/tidemark.v1.EventService/StreamEvents", framed(bytes(65_537))),
    "a compressed stream": Asked("/tidemark.v1.EventService/StreamEvents", framed(b"", squeezed=True) * 2, GZIP),
    "a customer unknown": customer_call("GetCustomer", customers_pb2.GetCustomerRequest(customer_id="nobody")),
    "a customer torn": customer_call("GetCustomer", customers_pb2.GetCustomerRequest(customer_id="torn")),
    "a customer": customer_call("GetCustomer", customers_pb2.GetCustomerRequest(customer_id=KNOWN)),
    "a merge with itself": customer_call(
        "MergeCustomers", customers_pb2.MergeCustomersRequest(source_customer_id="a", target_customer_id="a")
    ),
    "a merge into no id": customer_call("MergeCustomers", customers_pb2.MergeCustomersRequest(source_customer_id="a")),
    "a deletion of nobody": customer_call("DeleteCustomer", customers_pb2.DeleteCustomerRequest(customer_id="nobody")),
    "no consent": customer_call("SetConsent", customers_pb2.SetConsentRequest(customer_id="a")),
    "health": check(""),
    "health of the service": check(SERVICE),
    "health of another": check("another"),
    "reflection": Asked(REFLECT, framed(LIST_SERVICES)),
    "reflection of nothing": Asked(REFLECT, b""),
    "reflection of version 1": Asked(REFLECT.replace("v1alpha", "v1"), framed(LIST_SERVICES)),
}
STOPPED_CLOCK = "import time\ntime.time = lambda: {now}\n"
"""Scores depend on the time: for these servers it stands still."""


@dataclass(frozen=True)
class Said:
    """An answer, without what HTTP/2 leaves to taste."""

    status: int
    code: bytes
    message: bytes
    details: bytes
    kind: bytes
    replies: list[bytes] = field(default_factory=list)


def said(target: str, asked: Asked) -> Said:
    with RawClient(target) as raw:
        stream = raw.begin(asked.path, asked.headers)
        raw.send(stream, asked.body)
        reply, reported = raw.end(stream), raw.replies[stream].told
        message = reported.get(b"grpc-message", b"")
        return Said(
            reply.status, reported[b"grpc-status"], message, details(reply), reported[b"content-type"], reply.messages
        )


@pytest.fixture(scope="module")
def pair(
    small_registry: Path, stoppable: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[ServerProcess]]:
    """A server of each front, over the same customers, at the same time."""
    layout = StateLayout(bundle.read(small_registry).manifest.features)
    with StateWriter(stoppable.url, layout) as writer:
        (state,) = writer.read([KNOWN])
        assert state is not None
        writer.write(["torn", "foreign"], [state[:-1], state[:4] + bytes(4) + state[8:]])
    folder = tmp_path_factory.mktemp("pair")
    (folder / "sitecustomize.py").write_text(STOPPED_CLOCK.format(now=time.time()))
    options = ["--registry", str(small_registry), "--redis", stoppable.url, "--port", "0"]
    options += ["--max-message-bytes", "65536"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                ServerProcess(folder, *options, "--transport", name, environment={"PYTHONPATH": str(folder)})
            )
            for name in ("grpcio", "lean")
        ]
        for server in servers:
            server.wait_for("health is SERVING")
        yield servers


@pytest.mark.one_front  # once is enough
@pytest.mark.parametrize("name", TABLE)
def test_both_fronts_say_the_same_to_the_byte(pair: list[ServerProcess], name: str) -> None:
    by_grpcio, by_lean = (said(server.target, TABLE[name]) for server in pair)
    assert by_lean == by_grpcio


@pytest.mark.one_front
def test_both_fronts_say_the_same_of_a_redis_that_is_away(start: Start, tmp_path: Path) -> None:
    servers = [start("--transport", name, redis=f"unix://{tmp_path}/none") for name in ("grpcio", "lean")]
    for name in ("a score", "a batch", "health"):
        by_grpcio, by_lean = (said(server.target, TABLE[name]) for server in servers)
        assert by_lean == by_grpcio
        assert by_lean.code == (b"0" if name == "health" else b"14")
