"""Several workers on one port: they share its connections, come and go together, and are replaced when they die."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Run
from tests.e2e.conftest import refused
from tests.e2e.live import Live, calling, event, someone
from tests.e2e.server_process import ServerProcess
from tests.waiting import PATIENCE_S, until
from tidemark import ScoringClient

KNOWN = "900"
SERVING = health_pb2.HealthCheckResponse.SERVING
Start = Callable[..., ServerProcess]


def family(server: ServerProcess) -> list[psutil.Process]:
    """The process and all below it."""
    head = psutil.Process(server.process.pid)
    return [head, *head.children(recursive=True)]


def workers(server: ServerProcess) -> list[psutil.Process]:
    """Those that listen on the port."""
    port = int(server.target.rpartition(":")[2])
    return [
        process
        for process in family(server)[1:]
        if any(c.laddr.port == port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    ]


def await_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, PATIENCE_S)
    assert alive == []


@pytest.fixture
def start(loaded_redis: str, small_registry: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*options: str, workers: int = 2, port: int = 0, registry: Path = small_registry) -> ServerProcess:
            usual = ["--registry", str(registry), "--redis", loaded_redis]
            usual += ["--workers", str(workers), "--port", str(port)]
            server = stack.enter_context(ServerProcess(tmp_path, *usual, *options))
            server.wait_for("serving on")
            stack.callback(lambda: [process.kill() for process in members if process.is_running()])
            members = family(server)
            return server

        yield start


def score_on_new_connections(target: str, count: int) -> None:
    for _ in range(count):
        with ScoringClient(target, timeout_s=PATIENCE_S) as client:
            assert client.score(KNOWN).customer_id == KNOWN


def busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_workers_share_a_port_and_all_are_healthy(start: Start) -> None:
    server = start()
    assert re.search(r"serving on \S+:\d+ with 2 workers", server.log)
    result = workers(server)
    assert len(result) == 2
    taken: set[int] = set()
    with ExitStack() as stack:
        while len(taken) < 2:
            channel = stack.enter_context(grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]))
            health = health_pb2_grpc.HealthStub(channel)
            until(lambda health=health: health.Check(health_pb2.HealthCheckRequest()).status == SERVING)  # type: ignore[misc]
            taken |= {
                worker.pid
                for worker in result
                if any(c.status == psutil.CONN_ESTABLISHED and c.raddr for c in worker.net_connections("inet"))
            }
    score_on_new_connections(server.target, 10)
    everybody = family(server)
    assert server.stop() == 0
    await_end(everybody[1:])
    assert server.log.count("stopped") == 2
    assert "Traceback" not in server.log


def test_a_killed_worker_is_replaced_however_soon_it_died_and_though_the_registry_was_away_for_a_while(
    start: Start, small_registry: Path, tmp_path: Path
) -> None:
    registry, away = tmp_path / "registry", tmp_path / "away"
    shutil.copytree(small_registry, registry, symlinks=True)
    server = start(registry=registry)
    first = workers(server)
    registry.rename(away)
    first[0].kill()
    server.wait_for("a worker ended with code -9: starting another in 0.5 s")
    server.wait_for("a worker cannot start")
    assert workers(server) == [first[1]]
    away.rename(registry)
    server.wait_for("the new worker is ready")
    assert len(workers(server)) == 2
    assert first[1].pid in {worker.pid for worker in workers(server)}
    score_on_new_connections(server.target, 10)
    everybody = family(server)
    assert server.stop() == 0
    await_end(everybody[1:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_stop_with_a_stop_and_the_port_is_free_again(start: Start, number: signal.Signals) -> None:
    server = start()
    port = int(server.target.rpartition(":")[2])
    score_on_new_connections(server.target, 4)
    everybody = family(server)
    for process in everybody if number == signal.SIGINT else everybody[:1]:  # Ctrl-C reaches all of them
        process.send_signal(number)
    assert server.process.wait(PATIENCE_S) == 0
    await_end(everybody[1:])
    assert "Traceback" not in server.log
    with socket.create_server(("127.0.0.1", port)) as taken:
        assert taken.getsockname()[1] == port


def test_a_port_left_by_one_process_can_be_taken_by_several(start: Start) -> None:
    alone = start(workers=1)
    with ScoringClient(alone.target, timeout_s=PATIENCE_S) as client:
        assert client.score(KNOWN).customer_id == KNOWN
        assert alone.stop() == 0  # it closes first, so its end of the connection lingers in TIME_WAIT
    port = int(alone.target.rpartition(":")[2])
    score_on_new_connections(start(workers=2, port=port).target, 1)


def test_workers_end_with_the_process_that_started_them(start: Start) -> None:
    server = start()
    everybody = family(server)
    assert len(everybody) >= 3
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(PATIENCE_S)
    await_end(everybody[1:])


def test_both_workers_know_at_once_what_either_has_recorded_and_nothing_is_lost(start: Start) -> None:
    server = start()
    customers = [someone() for _ in range(3)]
    with ExitStack() as stack:
        lives: list[Live] = []
        taken: set[int] = set()
        while len(taken) < 2 or len(lives) < 6:  # until both have some of the connections
            lives.append(stack.enter_context(calling(server.target)))
            lives[-1].record(event(someone()))
            result = workers(server)
            taken = {
                worker.pid
                for worker in result
                if any(c.status == psutil.CONN_ESTABLISHED and c.raddr for c in worker.net_connections("tcp"))
            }

        def act(number: int) -> int:
            live, accepted = lives[number], 0
            for at in range(30):
                ours = [event(item, "visit", event_id=f"{number // 2}-{at}", channel="web") for item in customers]
                accepted += live.record(*ours).accepted
            return accepted

        with ThreadPoolExecutor(len(lives)) as pool:
            accepted = sum(pool.map(act, range(len(lives))))
        ids = 30 * len({number // 2 for number in range(len(lives))})
        assert accepted == ids * len(customers)
        for live in lives:
            assert [live.counted(customer) for customer in customers] == [ids] * 3
        for views in range(1, 40):
            teller, asked = lives[views % len(lives)], lives[(views + 1) % len(lives)]
            teller.record(event(customers[0], item_id="boots"))
            assert asked.score(customers[0]).top_interest.views == views
        lives[0].consent(customers[1], scoring=False)
        for live in lives:
            with refused(grpc.StatusCode.PERMISSION_DENIED):
                live.score(customers[1])
        lives[1].merge(customers[2], customers[0])
        assert {live.get(customers[2]).customer_id for live in lives} == {customers[0]}
    assert "Traceback" not in server.log


def test_a_bundle_that_cannot_be_served_ends_all_in_one_line(tmp_path: Path, run_module: Run) -> None:
    options = ["--registry", tmp_path, "--redis", "redis://127.0.0.1:1", "--port", "0", "--workers", "2"]
    ended = run_module("service", *options)
    assert ended.is_bad_input, ended


@pytest.mark.parametrize(
    ("holder", "comer"), [(1, 2), (2, 1), *(pytest.param(n, n, marks=pytest.mark.full) for n in (1, 2))]
)
def test_a_port_in_use_is_never_shared_with_another_server(
    start: Start, small_registry: Path, run_module: Run, holder: int, comer: int
) -> None:
    port = start(workers=holder).target.rpartition(":")[2]
    options = ["--registry", small_registry, "--redis", "redis://127.0.0.1:1", "--port", port, "--workers", comer]
    ended = run_module("service", *options)
    assert ended.is_bad_input, ended
    assert port in ended.err
