"""Figures of the load generator: what a call costs it, and how exactly it keeps its times."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

import grpc.aio
import numpy as np
import uvloop

from tests.benchmarks.setting import (
    CUSTOMERS,
    UNARY,
    Bench,
    Measured,
    customer_id,
    paired,
    tidemark_server,
    unary_requests,
)
from tidemark.load.plan import Plan, Target
from tidemark.load.processes import SendingProcesses
from tidemark.load.sending.arrivals import arrival_times

RATE: Final = 1000.0
SECONDS: Final = 2.0
CONNECTIONS: Final = 4


def load_ratio(bench: Bench) -> Measured:
    """CPU of the load generator per call at 1,000 a second, over grpc.aio's client with the same arrivals."""
    lags: list[tuple[float, float]] = []
    ids = [customer_id(number) for number in range(CUSTOMERS)]
    with tidemark_server(bench.registry, bench.url) as server:
        target = Target("127.0.0.1", server.port, "127.0.0.1", remote=False)
        plan = Plan(target, rate=RATE, duration_s=SECONDS, warm_up_s=0.0, connections=CONNECTIONS, draw="uniform")
        with SendingProcesses(plan, ids) as crew:

            def ours() -> float:
                result = crew.run(RATE, lambda *_: None)
                lags.append((result.lag[50.0], result.lag[99.0]))
                return result.cpu_cores * result.seconds / result.offered

            ratio = paired(ours, lambda: uvloop.run(_by_aio(server.port)))
    p50, p99 = np.median(lags, axis=0)
    note = (
        f"CPU per call; grpc.aio {ratio.unit * 1e6:.0f} µs; late by p50 {p50:.2f} ms, p99 {p99:.2f} ms; {ratio.spread}"
    )
    return ratio.median, note


async def _by_aio(port: int) -> float:
    """CPU seconds of this process per call."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(CONNECTIONS)]
    calls: list[Any] = [channel.unary_unary(UNARY) for channel in channels]
    requests, begun = unary_requests(), []
    arrivals = np.concatenate(list(arrival_times("poisson", RATE, 0.0, SECONDS, np.random.default_rng(1))))
    cpu, start = time.process_time(), time.monotonic()
    for number, at in enumerate(arrivals.tolist()):
        if (pause := start + at - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        request = random.choice(requests)
        begun.append(asyncio.ensure_future(calls[number % CONNECTIONS](request, timeout=10)))
    await asyncio.gather(*begun)
    cpu = time.process_time() - cpu
    for channel in channels:
        await channel.close()
    return cpu / len(begun)
