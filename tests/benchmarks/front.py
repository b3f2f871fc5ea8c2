"""Figures of the fronts: what a call costs the server, how long it takes, how it scales, and what others pay for it."""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from tidemark.v1 import scoring_pb2

from feature_store.online.state_writer import StateWriter
from service.scoring.model import Model
from tests.benchmarks import million, peer_cpp, peer_mosec, raw_load
from tests.benchmarks.setting import (
    BATCH,
    UNARY,
    Bench,
    Caller,
    Measured,
    Server,
    batch_requests,
    empty_server,
    paired,
    server,
    tidemark_server,
    unary_requests,
)

SLICE_S: Final = 1.0
CONNECTIONS: Final = 4
REST_S: Final = 3.0
PROFILE_S: Final = 8.0
NOT_THE_FRONT: Final = ("redis", "states", "graph", "protobuf")
P99: Final = 0.99
LINES: Final = 64


def cost(target: Server, in_flight: int) -> float:
    """Server CPU seconds per unary call, with so many in flight on (up to) four connections."""
    connections = min(CONNECTIONS, in_flight)
    before = target.cpu_s()
    load = raw_load.run(target.port, connections=connections, in_flight=in_flight // connections, seconds=SLICE_S)
    if load.failed:
        raise RuntimeError(f"{load.failed} calls failed")
    return (target.cpu_s() - before) / load.calls


def unary(in_flight: int, bench: Bench) -> Measured:
    """Server CPU per unary call, over an empty call on grpcio's sync server."""
    with tidemark_server(bench.registry, bench.url) as ours, empty_server() as empty:
        result = paired(lambda: cost(ours, in_flight), lambda: cost(empty, in_flight))
    return result.median, f"CPU per call; the empty call costs {result.unit * 1e6:.0f} µs; {result.spread}"


def fronts_1(bench: Bench) -> Measured:
    """Server CPU of one call at a time on the lean front, where it gains least, over the same on grpcio's."""
    with (
        tidemark_server(bench.registry, bench.url, "--transport", "lean") as lean,
        tidemark_server(bench.registry, bench.url, "--transport", "grpcio") as grpcio,
    ):
        result = paired(lambda: cost(lean, 1), lambda: cost(grpcio, 1))
    return result.median, f"CPU per call; on grpcio's front {result.unit * 1e6:.0f} µs; {result.spread}"


def unary_clients(front: str, bench: Bench) -> Measured:
    """The same with 64 in flight, called by grpcio's clients on four channels."""
    with tidemark_server(bench.registry, bench.url, "--transport", front) as ours, empty_server() as empty:
        a, b = (Caller(target, UNARY, unary_requests(), 64) for target in (ours, empty))
        result = paired(lambda: a.cost(SLICE_S), lambda: b.cost(SLICE_S))
        a.close()
        b.close()
    return result.median, f"CPU per call; the empty call costs {result.unit * 1e6:.0f} µs; {result.spread}"


def unary_1_latency(bench: Bench) -> Measured:
    """Median latency of one call at a time, over the empty call's."""
    with tidemark_server(bench.registry, bench.url) as ours, empty_server() as empty:
        result = paired(
            lambda: latency(ours, raw_load.Requests(ours.port)), lambda: latency(empty, raw_load.Requests(empty.port))
        )
    return result.median, f"the empty call takes {result.unit * 1e6:.0f} µs; {result.spread}"


def latency(target: Server, requests: raw_load.Pool) -> float:
    """Median seconds from sending a call to having its reply, one at a time on one connection."""
    taken = []
    line = raw_load.Calls(target.port, 1, requests)
    until = time.perf_counter() + SLICE_S
    while (start := time.perf_counter()) < until and requests.left:
        line.send()
        while line.open and line.pending:
            select.select([line.socket], [], [], raw_load.PATIENCE_S)
            line.read()
        taken.append(time.perf_counter() - start)
        if not line.open:
            line.socket.close()
            line = raw_load.Calls(target.port, 1, requests)
    line.socket.close()
    return statistics.median(taken)


def metrics_cost(bench: Bench) -> Measured:
    """Server CPU per unary call with metrics, which are scraped once a slice, over without, 64 in flight."""
    with socket.create_server(("127.0.0.1", 0)) as result:
        port = result.getsockname()[1]
    with (
        tidemark_server(bench.registry, bench.url, "--metrics-port", str(port)) as seen,
        tidemark_server(bench.registry, bench.url) as unseen,
    ):

        def scraped() -> float:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SLICE_S).read()
            return cost(seen, 64)

        found_ratio = paired(scraped, lambda: cost(unseen, 64), pairs=15)
    return found_ratio.median, f"CPU per call; without {found_ratio.unit * 1e6:.1f} µs; {found_ratio.spread}"


def front_share(bench: Bench) -> Measured:
    """Share of the unary cost at 64 in flight that is neither Redis, states, graph nor protobuf, from a profile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        options = ("--registry", str(bench.registry), "--redis", bench.url, "--port", "0")
        with server("tests.benchmarks.profiled_server", *options, environment={"PROFILE": str(path)}) as ours:
            raw_load.run(ours.port, connections=CONNECTIONS, in_flight=64 // CONNECTIONS, seconds=PROFILE_S)
        samples: dict[str, int] = json.loads(path.read_text())
    total = sum(samples.values())
    share = sum(count for owner, count in samples.items() if owner not in NOT_THE_FRONT) / total
    split = ", ".join(f"{owner} {count / total:.0%}" for owner, count in sorted(samples.items(), key=lambda i: -i[1]))
    return share, split


def batch_256_share(bench: Bench) -> Measured:
    """Customers per second in batches of 256, over the bare loop of MGET, decode and run."""
    model = Model(bench.bundle)
    requests, economics = batch_requests(256), np.tile(model.economics, (256, 1))
    ids = [list(scoring_pb2.BatchScoreCustomersRequest.FromString(request).customer_ids) for request in requests]
    with tidemark_server(bench.registry, bench.url) as ours, StateWriter(bench.url, model.layout) as redis:
        caller = Caller(ours, BATCH, requests, 4)

        def served() -> float:
            load = caller.run(SLICE_S)
            return load.calls * 256 / load.seconds

        def bare() -> float:
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < SLICE_S:
                states = model.layout.unpack(redis.read(ids[done % len(ids)]))
                model.run(states, time.time(), economics)
                done += 1
            return done * 256 / (time.perf_counter() - start)

        result = paired(served, bare)
        caller.close()
    return (
        result.median,
        f"customers a second, 4 calls in flight; the bare loop does {result.unit:,.0f}; {result.spread}",
    )


def workers_2(bench: Bench) -> Measured:
    """Calls per second of two workers on two cores, over one worker on one core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with (
        tidemark_server(bench.registry, bench.url, "--workers", "2") as two,
        tidemark_server(bench.registry, bench.url) as item,
    ):
        for task in Path(f"/proc/{item.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores[:1])
        costs: list[float] = []

        def rate(target: Server) -> float:
            load = raw_load.run_apart(target.port, connections=32, in_flight=16, seconds=SLICE_S, core=cores[-1])
            costs.append(load.cpu_s / load.seconds)
            return load.calls / load.seconds

        result = paired(lambda: rate(two), lambda: rate(item))
    load_share = f"the load takes {statistics.median(costs):.0%} of a core, Redis comes on top"
    return result.median, f"one worker answers {result.unit:,.0f} a second; {load_share}; {result.spread}"


def interference_p99(bench: Bench) -> Measured:
    """p99 of unary calls at half load while another client sends calls of 1000 ids back to back, over without."""
    with tidemark_server(bench.registry, bench.url) as ours:
        half = raw_load.run(ours.port, connections=16, in_flight=1, seconds=SLICE_S).calls / SLICE_S / 2
        rude = [sys.executable, "-m", "tests.benchmarks.rude_client", "--port", str(ours.port), "--seconds"]
        large: list[int] = []

        def p99() -> float:
            requests = raw_load.Requests(ours.port)
            return float(np.quantile(paced(ours.port, requests, half, int(2 * SLICE_S * half)), P99))

        def disturbed() -> float:
            with subprocess.Popen([*rude, str(4 * SLICE_S)], stdout=subprocess.PIPE) as client:
                time.sleep(SLICE_S)  # it starts
                result = p99()
                large.append(int(client.communicate()[0]))
            return result

        result = paired(disturbed, p99)
    rows = statistics.median(large) / (4 * SLICE_S) * 1000
    beside = f"{rows:,.0f} customers a second in large calls beside them"
    return result.median, f"without {result.unit * 1e3:.1f} ms, at {half:,.0f} a second; {beside}; {result.spread}"


def paced(port: int, requests: raw_load.Pool, rate: float, count: int, lines: int = LINES) -> list[float]:
    """Seconds that calls took which were due at an even ``rate``, on connections of one call each; all must succeed."""
    taken, failed = paced_all(port, requests, rate, count, lines)
    if failed:
        raise RuntimeError(f"{failed} calls failed")
    return taken


def paced_all(
    port: int, requests: raw_load.Pool, rate: float, count: int, lines: int = LINES
) -> tuple[list[float], int]:
    """The same, and how many failed."""
    poll, taken = select.epoll(), []
    # In turn: the one that was used last would soon have had as many calls as a connection may have.
    free = deque(raw_load.Calls(port, 1, requests) for _ in range(lines))
    busy: dict[int, tuple[raw_load.Calls, float]] = {}
    for line in free:
        poll.register(line.socket, select.EPOLLIN)
    start, begun = time.perf_counter(), 0
    while begun < count or busy:
        now = time.perf_counter()
        while free and begun < count and (due := start + begun / rate) <= now:
            line = free.popleft()
            line.send()
            if not line.pending:
                raise RuntimeError("the server asked for a new connection: use more of them")
            busy[line.socket.fileno()] = line, due
            begun += 1
        wait = start + begun / rate - now if free and begun < count else raw_load.PATIENCE_S
        for number, _ in poll.poll(max(0.0, wait)):
            if number in busy:
                line, due = busy[number]
                line.read()
                if not line.pending:
                    taken.append(time.perf_counter() - due)
                    del busy[number]
                    free.append(line)
    for line in free:
        line.socket.close()
    # The first on each brought its connection up.
    return taken[lines:], sum(line.failed for line in free)


def million_calls(bench: Bench) -> dict[str, Measured]:
    """A million unary calls over 16 connections by grpcio's clients: how many failed, what memory became of it."""
    with tidemark_server(bench.registry, bench.url) as ours:
        million.run(ours.port, million.WARM_UP)
        time.sleep(REST_S)
        before = ours.process.memory_info().rss
        start = time.perf_counter()
        failed, wrong = million.run(ours.port, million.CALLS)
        seconds = time.perf_counter() - start
        time.sleep(REST_S)
        after = ours.process.memory_info().rss
    note = f"{million.CALLS:,} calls in {seconds:.0f} s; {failed} failed, {wrong} had another customer's answer"
    memory = f"{after / 2**20:.0f} over {before / 2**20:.0f} MB after {million.WARM_UP:,} calls"
    return {"million_failed": (float(failed + wrong), note), "million_memory": (after / before, memory)}


# --- others ---------------------------------------------------------------------------------------------------------


def peers(bench: Bench) -> dict[str, Measured]:
    """What others pay with 64 in flight, over the same empty call, as far as they are at hand; ours among them."""
    say: Callable[[str], object] = bench.console.print
    mosec, cpp = peer_mosec.mosec_server(bench.registry, bench.url, say), peer_cpp.cpp_server(say)
    here: dict[str, tuple[AbstractContextManager[Server], Callable[[Server], float]]] = {
        "peer_tidemark_64": (tidemark_server(bench.registry, bench.url), partial(cost, in_flight=64))
    }
    if mosec is not None:
        here["peer_mosec_64"] = (mosec, lambda peer: peer_mosec.cost(peer, in_flight=64, seconds=SLICE_S))
    if cpp is not None:
        here["peer_empty_cpp_64"] = (cpp, partial(cost, in_flight=64))
    with ExitStack() as stack:
        empty = stack.enter_context(empty_server())
        costs = {name: partial(measure, stack.enter_context(start)) for name, (start, measure) in here.items()}
        rounds = [({name: item() for name, item in costs.items()}, cost(empty, 64)) for _ in range(7)][1:]
    return {
        name: (
            statistics.median(result[name] / unit for result, unit in rounds),
            f"CPU per call; {min(f[name] / u for f, u in rounds):.2f} to {max(f[name] / u for f, u in rounds):.2f}",
        )
        for name in costs
    }
