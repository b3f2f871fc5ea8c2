"""What explanations cost: the call that asks for one, and the calls beside it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from tidemark.v1 import scoring_pb2

from tests.benchmarks import front, raw_load
from tests.benchmarks.setting import UNARY, Bench, Caller, Measured, customer_id, paired, tidemark_server

SLICE_S: Final = 1.0
BESIDE_S: Final = 4.0
CALLS_A_SECOND: Final = 500
CALLS: Final = 1000
REQUESTS: Final = 1024


def requests(*, explain: bool) -> list[bytes]:
    """Of one customer each."""
    return [
        scoring_pb2.ScoreCustomerRequest(customer_id=customer_id(i * 37), explain=explain).SerializeToString()
        for i in range(REQUESTS)
    ]


def explain_ratio(bench: Bench) -> Measured:
    """Server CPU of a score that is explained, over one that is not, one call at a time by the same client."""
    with tidemark_server(bench.registry, bench.url) as ours:
        explained, plain = (Caller(ours, UNARY, requests(explain=explain), 1) for explain in (True, False))
        result = paired(lambda: explained.cost(SLICE_S), lambda: plain.cost(SLICE_S))
        explained.close()
        plain.close()
    whole = result.median * result.unit * 1e3
    return result.median, f"CPU per call; {whole:.1f} ms, and a plain one {result.unit * 1e6:.0f} µs; {result.spread}"


def explain_p99(bench: Bench) -> Measured:
    """p99 of plain calls at a fixed rate beside calls that explain 100 customers, back to back, over p99 without."""
    with tidemark_server(bench.registry, bench.url) as ours:

        def p99() -> float:
            pool = raw_load.Requests(ours.port)
            return float(np.quantile(front.paced(ours.port, pool, CALLS_A_SECOND, CALLS), front.P99))

        result = paired(lambda: _beside(ours.port, p99), p99)
    rate = f"{CALLS_A_SECOND} plain calls a second"
    return result.median, f"without {result.unit * 1e3:.1f} ms, {rate}; {result.spread}"


def _beside(port: int, work: Callable[[], float]) -> float:
    """What ``work`` finds while another process has customers explained."""
    options = ["--port", str(port), "--seconds", str(BESIDE_S), "--explain"]
    command = [sys.executable, "-m", "tests.benchmarks.rude_client", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        time.sleep(SLICE_S)  # it starts
        result = work()
        client.communicate()
    return result
