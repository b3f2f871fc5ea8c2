"""Figures of bursts: calls refused although Redis is well, and new clients that wait behind silent connections."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import Final

import grpc
import grpc.aio
from tidemark.v1 import customers_pb2

from tests.benchmarks.setting import UNARY, Bench, Measured, customer_id, tidemark_server, unary_requests

GET: Final = "/tidemark.v1.CustomerService/GetCustomer"
AT_ONCE: Final = 400
BURSTS: Final = 10
SCORES_PER_S: Final = 100
TIMEOUT_S: Final = 30.0


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
    async with grpc.aio.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel:
        scoring = asyncio.create_task(score(channel.unary_unary(UNARY)))
        get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET)
        for _ in range(BURSTS):
            await asyncio.gather(*(call("customers", get, request) for request in requests))
            await asyncio.sleep(0.2)
        over.set()
        await scoring
    return codes
