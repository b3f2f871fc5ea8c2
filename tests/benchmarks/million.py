"""Calls by grpcio's asyncio clients, in two processes with eight connections each, every answer looked at."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from typing import Any, Final

import click
import grpc
import grpc.aio
from tidemark.v1 import scoring_pb2

from tests.benchmarks.setting import CUSTOMERS, UNARY, customer_id

CALLS: Final = 1_000_000
WARM_UP: Final = 50_000
PROCESSES: Final = 2
CONNECTIONS: Final = 8
IN_FLIGHT: Final = 64
LIMIT_S: Final = 900.0
DEADLINE_S: Final = 30.0


def run(port: int, calls: int) -> tuple[int, int]:
    """How many of these calls failed, and how many brought another customer's answer."""
    command = [sys.executable, "-m", "tests.benchmarks.million", "--port", str(port)]
    share = [*command, "--calls", str(calls // PROCESSES)]
    clients = [subprocess.Popen(share, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    try:
        result = [json.loads(client.communicate(timeout=LIMIT_S)[0]) for client in clients]
    finally:
        for client in clients:
            client.kill()
    return sum(item["failed"] for item in result), sum(item["wrong"] for item in result)


async def call(port: int, calls: int) -> dict[str, int]:
    """Make the calls, as clients do by default: a call that never left is sent again elsewhere, others are not."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(CONNECTIONS)]
    result = {"failed": 0, "wrong": 0}
    left = calls

    async def client(number: int) -> None:
        nonlocal left
        ask: Any = channels[number % CONNECTIONS].unary_unary(UNARY)
        drawn = random.Random(number)
        while left > 0:
            left -= 1
            name = customer_id(drawn.randrange(CUSTOMERS))
            request = scoring_pb2.ScoreCustomerRequest(customer_id=name).SerializeToString()
            try:
                reply = await ask(request, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                result["failed"] += 1
                print(error.code(), error.details(), file=sys.stderr)
            else:
                result["wrong"] += scoring_pb2.ScoreCustomerResponse.FromString(reply).score.customer_id != name

    await asyncio.gather(*(client(number) for number in range(IN_FLIGHT)))
    for channel in channels:
        await channel.close()
    return result


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--calls", required=True, type=int)
def main(port: int, calls: int) -> None:
    """Print what became of the calls, as JSON."""
    print(json.dumps(asyncio.run(call(port, calls))))


if __name__ == "__main__":
    main()
