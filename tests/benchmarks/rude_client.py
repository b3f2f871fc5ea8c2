"""Calls of 1000 ids, or of 100 to explain, one after the other without a pause; prints how many were answered."""

from __future__ import annotations

import time
from typing import Any

import click
import grpc

from tests.benchmarks.setting import BATCH, batch_requests

ROWS = 1000
EXPLAINED_ROWS = 100


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--seconds", required=True, type=float)
@click.option("--explain", is_flag=True)
def main(port: int, seconds: float, explain: bool) -> None:
    """Call."""
    requests, calls = batch_requests(EXPLAINED_ROWS if explain else ROWS, explain=explain), 0
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(BATCH)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            call(requests[calls % len(requests)])
            calls += 1
    print(calls)


if __name__ == "__main__":
    main()
