"""What the benchmarks run against: 100,000 customers in Redis, a tidemark server, an empty gRPC server, and load."""

from __future__ import annotations

import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
import psutil
from rich.console import Console
from tidemark.v1 import scoring_pb2

from feature_store.bundles.bundle import Bundle
from feature_store.online.state_writer import StateWriter
from feature_store.state.layout import StateLayout

Measured = tuple[float, str]
"""A figure, and how it came about."""

CUSTOMERS: Final = 100_000
UNARY: Final = "/tidemark.v1.ScoringService/ScoreCustomer"
BATCH: Final = "/tidemark.v1.ScoringService/BatchScoreCustomers"


def customer_id(number: int) -> str:
    """Id of a customer of the benchmark."""
    return f"{number:06d}"


def load_customers(url: str, bundle: Bundle) -> None:
    """Fill Redis with 100,000 customers whose states are the bundle's golden ones, each a little different."""
    layout = StateLayout(bundle.manifest.features)
    rng = np.random.default_rng(1)
    golden = bundle.golden["input_state"]
    slots = golden[rng.integers(len(golden), size=CUSTOMERS)] * rng.uniform(0.8, 1.2, (CUSTOMERS, 1))
    moment = np.full(CUSTOMERS, time.time())
    with StateWriter(url, layout) as writer:
        writer.write([customer_id(i) for i in range(CUSTOMERS)], layout.pack_many(moment, slots))


@dataclass(frozen=True)
class Bench:
    """What every measurement needs."""

    registry: Path
    url: str
    bundle: Bundle
    console: Console


@dataclass(frozen=True)
class Server:
    """A running server process and its port."""

    process: psutil.Process
    port: int

    def cpu_s(self) -> float:
        """CPU seconds it has used, with its children."""
        times = [p.cpu_times() for p in (self.process, *self.process.children(recursive=True))]
        return float(sum(t.user + t.system for t in times))


@contextmanager
def server(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run ``python -m ...`` until the block ends; it must say its port on stderr as ``serving on host:port``."""
    variables = {**os.environ, **(environment or {})}
    process = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if result := re.search(r"serving on \S+:(\d+)", line):
                yield Server(psutil.Process(process.pid), int(result[1]))
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate()


def tidemark_server(registry: Path, url: str, *options: str) -> AbstractContextManager[Server]:
    """The server under test."""
    return server("service", "--registry", str(registry), "--redis", url, "--port", "0", *options)


def empty_server() -> AbstractContextManager[Server]:
    """An empty unary call with the same messages on grpcio's sync server with 4 threads: the unit of cost."""
    return server("tests.benchmarks.empty_server")


def unary_requests(count: int = 4096) -> list[bytes]:
    """Requests for customers drawn evenly from all."""
    ids = random.Random(2).choices(range(CUSTOMERS), k=count)
    return [scoring_pb2.ScoreCustomerRequest(customer_id=customer_id(i)).SerializeToString() for i in ids]


def batch_requests(rows: int, count: int = 64, *, explain: bool = False) -> list[bytes]:
    """Requests for ``rows`` customers each."""
    rng = random.Random(3)
    return [
        scoring_pb2.BatchScoreCustomersRequest(
            customer_ids=[customer_id(i) for i in rng.choices(range(CUSTOMERS), k=rows)], explain=explain
        ).SerializeToString()
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Load:
    """What a slice of load saw: calls that came back, seconds, server CPU seconds."""

    calls: int
    seconds: float
    cpu_s: float


class Caller:
    """Sends ready-made requests and throws the reply bytes away, so that the load costs as little as it can."""

    def __init__(self, target: Server, path: str, requests: Sequence[bytes], in_flight: int, channels: int = 4) -> None:
        self._server, self._requests, self._in_flight = target, requests, in_flight
        self._loop = asyncio.new_event_loop()
        self._channels = self._loop.run_until_complete(self._open(min(channels, in_flight)))
        self._calls: list[Any] = [channel.unary_unary(path) for channel in self._channels]

    async def _open(self, count: int) -> list[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return [grpc.aio.insecure_channel(f"127.0.0.1:{self._server.port}", options) for _ in range(count)]

    def run(self, seconds: float) -> Load:
        """Keep ``in_flight`` calls in flight for so long."""
        cpu, start = self._server.cpu_s(), time.perf_counter()
        calls = self._loop.run_until_complete(self._all(start + seconds))
        return Load(calls, time.perf_counter() - start, self._server.cpu_s() - cpu)

    async def _all(self, until: float) -> int:
        return sum(await asyncio.gather(*(self._one(i, until) for i in range(self._in_flight))))

    def cost(self, seconds: float) -> float:
        """Server CPU seconds per call."""
        load = self.run(seconds)
        return load.cpu_s / load.calls

    async def _one(self, number: int, until: float) -> int:
        call, done, at = self._calls[number % len(self._calls)], 0, number * 61
        while time.perf_counter() < until:
            await call(self._requests[at % len(self._requests)])
            done, at = done + 1, at + 1
        return done

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            self._loop.run_until_complete(channel.close())
        self._loop.close()


def cpu_of(work: Callable[[], object], times: int = 300) -> float:
    """CPU seconds of this process for one piece of work."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


@dataclass(frozen=True)
class Ratio:
    """Interleaved measurements of two things: the ratio of each pair, and the median of the second."""

    ratios: list[float]
    unit: float

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> str:
        """Least and largest ratio, in words."""
        return f"{min(self.ratios):.2f} to {max(self.ratios):.2f} in {len(self.ratios)} pairs"


def paired(a: Callable[[], float], b: Callable[[], float], pairs: int = 7) -> Ratio:
    """Measure a and b in turn, after a warm-up of each."""
    a()
    b()
    result = [(a(), b()) for _ in range(pairs)]
    return Ratio([x / y for x, y in result], statistics.median(y for _, y in result))
