"""Figures of bursts: calls refused although Redis is well, and new clients that wait behind silent connections."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from typing import Final

import grpc
import grpc.aio
from tidemark.v1 import customers_pb2

from tests.benchmarks import raw_load
from tests.benchmarks.setting import UNARY, Bench, Measured, customer_id, tidemark_server, unary_requests
from tidemark import ScoringClient

GET: Final = "/tidemark.v1.CustomerService/GetCustomer"
AT_ONCE: Final = 400
BURSTS: Final = 10
SCORES_PER_S: Final = 100
TIMEOUT_S: Final = 30.0
SILENT: Final = 1100
"""More connections than a server takes by default."""
TRIES: Final = 20


def customer_burst(bench: Bench) -> Measured:
    """Calls refused while bursts of GetCustomer come beside a steady flow of scores, and Redis is well."""
    with tidemark_server(bench.registry, bench.url) as server:
        codes = asyncio.run(_bursts(f"127.0.0.1:{server.port}"))
    refused = sum(count for (_, code), count in codes.items() if code != "OK")
    ended = ", ".join(f"{kind} {code} {count:,}" for (kind, code), count in sorted(codes.items()))
    return float(refused), f"{BURSTS} bursts of {AT_ONCE} beside {SCORES_PER_S} scores a second: {ended}"


async def _bursts(target: str) -> Counter[tuple[str, str]]:
    codes: Counter[tuple[str, str]] = Counter()

    async def call(kind: str, method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], request: bytes) -> None:
        code = grpc.StatusCode.OK
        try:
            await method(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        codes[kind, code.name] += 1

    async def score(method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(itertools.cycle(unary_requests())):
                await asyncio.sleep(start + number / SCORES_PER_S - time.monotonic())
                if over.is_set():
                    break
                group.create_task(call("scores", method, request))

    over = asyncio.Event()
    requests = [
        customers_pb2.GetCustomerRequest(customer_id=customer_id(at)).SerializeToString() for at in range(AT_ONCE)
    ]
    # gRPC repeats by itself only calls that the server has not begun, as when it asks for a new connection.
    async with grpc.aio.insecure_channel(target) as channel:
        scoring = asyncio.create_task(score(channel.unary_unary(UNARY)))
        get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET)
        for _ in range(BURSTS):
            await asyncio.gather(*(call("customers", get, request) for request in requests))
            await asyncio.sleep(0.2)
        over.set()
        await scoring
    return codes


def silent_connections(bench: Bench) -> Measured:
    """Seconds until a new client has a score, while others hold silent connections, at worst; the limit is 1,000."""
    descriptors, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with tidemark_server(bench.registry, bench.url) as server, ExitStack() as stack:
            for number in range(SILENT):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S))
                client.sendall(raw_load.PREFACE if number % 2 else b"")
            seconds = []
            for _ in range(TRIES):
                start = time.perf_counter()
                with ScoringClient(f"127.0.0.1:{server.port}", timeout_s=TIMEOUT_S) as caller:
                    caller.score(customer_id(0))
                seconds.append(time.perf_counter() - start)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, most))
    note = f"{SILENT:,} connections, half with a preface; median of {TRIES} clients {statistics.median(seconds):.3f} s"
    return max(seconds), note
