"""A stop in order, and workers replaced one by one under load: who watches is told first, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tidemark.rpc import status_pb2
from tidemark.v1 import events_pb2, scoring_pb2

from feature_store.bundles import bundle
from tests.benchmarks.rolling import KEPT, Load
from tests.e2e.live import ALONE, calling, event, info_of, someone, starter, summed
from tests.e2e.raw_client import RawClient
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import CustomerClient, Event, EventClient, ScoringClient

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
WATCH = "/grpc.health.v1.Health/Watch"
SCORE = "/tidemark.v1.ScoringService/ScoreCustomer"
ONE = scoring_pb2.ScoreCustomerRequest(customer_id="900").SerializeToString()
KNOWN = "900"
Start = Callable[..., ServerProcess]

pytestmark = pytest.mark.both_fronts


@pytest.fixture
def start(small_registry: Path, loaded_redis: str, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield starter(stack, small_registry, tmp_path, loaded_redis)


class Noting(list[tuple[int, int]]):
    """GOAWAYs, and how many messages a stream had at each."""

    def __init__(self, messages: Callable[[], int]) -> None:
        self._messages = messages
        self.at: list[int] = []

    def append(self, goaway: tuple[int, int]) -> None:
        self.at.append(self._messages())
        super().append(goaway)


def said(message: bytes) -> int:
    return int(health_pb2.HealthCheckResponse.FromString(message).status)


def check(channel: grpc.Channel) -> int:
    return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status)


def reason(error: Any) -> str:
    trailers = dict(error.trailing_metadata())
    return str(info_of(status_pb2.Status.FromString(trailers["grpc-status-details-bin"])).reason)


def free_port() -> int:
    with socket.socket() as result:
        result.bind(("127.0.0.1", 0))
        return int(result.getsockname()[1])


def workers(server: ServerProcess) -> set[int]:
    children = psutil.Process(server.process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return {child.pid for child in alive if any("spawn_main" in word for word in child.cmdline())}


# --- a stop ---------------------------------------------------------------------------------------------------------


def test_who_watches_health_is_told_before_goaway_and_then_ended(start: Start) -> None:
    server = start()
    with RawClient(server.target) as watcher:
        watched = watcher.call(WATCH, b"")
        watcher.messages(watched, 1)
        watcher.goaways = Noting(lambda: len(watcher.replies[watched].messages))
        server.process.terminate()
        reply = watcher.end(watched)
        assert [said(message) for message in reply.messages] == [SERVING, NOT_SERVING]
        assert watcher.goaways.at[0] == 2
        assert reply.trailers[b"grpc-status"] == b"%d" % grpc.StatusCode.UNAVAILABLE.value[0]
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log


def test_calls_are_taken_while_a_load_balancer_finds_out(start: Start) -> None:
    server = start("--drain-s", str(PATIENCE_S))
    target = server.target
    with grpc.insecure_channel(target, ALONE) as asked, ScoringClient(target, timeout_s=PATIENCE_S) as client:
        assert check(asked) == SERVING
        server.process.terminate()
        server.wait_for("stopping: health is NOT_SERVING")
        assert check(asked) == NOT_SERVING
        with grpc.insecure_channel(target, ALONE) as another:
            assert check(another) == NOT_SERVING
        assert client.score(KNOWN).customer_id == KNOWN
        with RawClient(target) as late:
            assert late.ask(SCORE, ONE).only
            assert not late.goaways


def test_when_the_time_for_load_balancers_is_over_the_server_stops(start: Start) -> None:
    server = start("--drain-s", "1.5")
    target = server.target
    with RawClient(target) as asking:
        began = time.monotonic()
        server.process.terminate()
        asking.wait(lambda: asking.goaways)
        assert time.monotonic() - began > 1.2
    assert server.process.wait(PATIENCE_S) == 0
    with pytest.raises(ConnectionRefusedError), socket.socket() as refused:
        refused.connect(("127.0.0.1", int(target.rpartition(":")[2])))


def test_a_stream_that_does_not_end_is_told_to_come_again(start: Start) -> None:
    server = start("--grace-s", "0.5")
    over, customer = threading.Event(), someone()

    def drip() -> Iterator[Any]:
        at = 0
        while not over.wait(0.02):
            at += 1
            item = event(customer, event_id=str(at), channel="web")
            yield events_pb2.StreamEventsRequest(events=[item])

    with calling(server.target) as live:
        call = live.streaming(drip())
        until(lambda: live.counted(customer) >= 3, passing=grpc.RpcError)
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            summed(call)
        over.set()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "SERVER_STOPPING"
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log
    with calling(start().target) as live:
        assert live.counted(customer) >= 3


def test_a_client_sends_a_stream_again_that_broke_and_all_is_counted_once(start: Start) -> None:
    port = str(free_port())
    first, customer = start("--grace-s", "0.2", "--port", port), someone()
    begun, stopped = threading.Event(), threading.Event()

    def events() -> Iterator[Event]:
        for at in range(2_500):
            if at == 1_500:
                begun.set()
                stopped.wait(PATIENCE_S)
            yield Event(f"{customer}-{at % 25}", "visit", channel="web")

    def restart() -> None:
        begun.wait(PATIENCE_S)
        first.stop()
        stopped.set()
        start("--port", port)

    with ExitStack() as stack:
        restarting = threading.Thread(target=restart)
        restarting.start()
        stack.callback(restarting.join)
        recorded = stack.enter_context(EventClient(first.target, timeout_s=PATIENCE_S)).stream(
            events(), timeout_s=PATIENCE_S
        )
    assert recorded.accepted + recorded.duplicates == 2_500
    with CustomerClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as customers:
        assert {customers.get(f"{customer}-{n}").channels["web"] for n in range(25)} == {100}


def test_who_waits_to_be_accepted_at_a_stop_is_not_reset(start: Start, front: str) -> None:
    if front != "lean":
        pytest.skip("grpcio closes its listener as it likes")
    server = start()
    host, _, port = server.target.rpartition(":")
    server.process.send_signal(signal.SIGSTOP)  # nobody is accepted meanwhile
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_S)) for _ in range(20)]
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert all(item.recv(1) for item in waiting)  # what HTTP/2 begins with
    assert server.process.wait(PATIENCE_S) == 0


def test_alone_a_hangup_is_a_stop(start: Start) -> None:
    server = start()
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(PATIENCE_S) == 0
    assert "stopped" in server.log


# --- workers, one by one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.full), 2])
def test_workers_are_replaced_under_load_and_nothing_is_lost(start: Start, count: int) -> None:
    server = start("--workers", str(count), "--supervised")
    before, load = workers(server), Load(server.target, count, ["20", "887", KNOWN])
    assert len(before) == count
    kinds = [load.score, load.record, load.stream, load.come]
    threads = [threading.Thread(target=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(f"restarted: {count} new workers")
    after = workers(server)
    calls = load.found["calls"]
    until(lambda: load.found["calls"] > calls + 20)  # they go on after it
    load.over.set()
    for thread in threads:
        thread.join()
    load.check()
    assert len(after) == count
    assert not before & after
    assert {what: n for what, n in load.found.items() if n and what not in KEPT} == {}
    assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.mark.any_front
def test_where_a_new_worker_cannot_start_the_old_ones_go_on(
    small_registry: Path, loaded_redis: str, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(small_registry, registry, symlinks=True)
    with ExitStack() as stack:
        server = starter(stack, registry, tmp_path, loaded_redis)("--workers", "2")
        server.wait_for("serving on")  # all of them
        before = workers(server)
        (registry / bundle.CURRENT / "model.onnx").write_bytes(b"torn")
        server.process.send_signal(signal.SIGHUP)
        line = server.wait_for(r".*a new worker cannot start, the old workers stay: .*")[0]
        assert re.search("sha256", line), line
        with ScoringClient(server.target, timeout_s=PATIENCE_S) as client:
            assert client.score(KNOWN).customer_id == KNOWN
        assert workers(server) == before
        good = (small_registry / bundle.CURRENT / "model.onnx").read_bytes()
        (registry / bundle.CURRENT / "model.onnx").write_bytes(good)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("restarted: 2 new workers")
        assert not workers(server) & before
        assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.mark.any_front
def test_a_stop_amid_a_restart_leaves_nobody_behind(start: Start) -> None:
    server = start("--workers", "2")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("restarting the workers")
    time.sleep(0.3)
    everybody = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop() == 0
    _, alive = psutil.wait_procs(everybody, PATIENCE_S)
    assert alive == []
