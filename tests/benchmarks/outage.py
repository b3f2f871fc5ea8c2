"""Figures of an outage: how soon a call is refused while Redis is away, and how soon it is answered when it is back."""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import redis

from feature_store.embedded_redis import redis_server_command
from tests.benchmarks.setting import UNARY, Bench, Measured, load_customers, tidemark_server, unary_requests

BEFORE_S: Final = 1.0
AWAY_S: Final = 10.0
AFTER_S: Final = 2.0
RATE: Final = 200
"""Calls a second, sent whether or not others have been answered."""
DEADLINE_S: Final = 1.0
START_S: Final = 20.0


@dataclass
class Ended:
    """A call: when it was sent and ended (monotonic seconds), and its status."""

    sent: float
    ended: float
    code: grpc.StatusCode


@dataclass
class Seen:
    """What callers saw of an outage; ``gone`` and ``back`` are when Redis was."""

    calls: list[Ended] = field(default_factory=list)
    gone: float = 0.0
    back: float = 0.0

    @property
    def refusals(self) -> list[float]:
        """Milliseconds of the calls that were sent while Redis was away."""
        return [1000 * (c.ended - c.sent) for c in self.calls if self.gone <= c.sent and c.ended < self.back]

    @property
    def recovery_s(self) -> float:
        """From the return of Redis to the first score."""
        scores = [c.ended for c in self.calls if c.code is grpc.StatusCode.OK and c.ended > self.gone + DEADLINE_S]
        return max(0.0, min(scores, default=float("inf")) - self.back)

    @property
    def codes(self) -> str:
        """How calls ended in between, in words."""
        codes = Counter(c.code.name for c in self.calls if self.gone <= c.sent and c.ended < self.back)
        return ", ".join(f"{count:,} {name}" for name, count in codes.most_common())


class Server:
    """A redis-server that can be taken away."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "redis.sock"
        self.url = f"unix://{self._path}"
        self._command = [*redis_server_command(), "--port", "0", "--unixsocket", str(self._path), "--save", ""]
        self._command += ["--dir", str(folder), "--appendonly", "yes"]
        self.start()

    def start(self) -> None:
        """Start it; not from a thread that ends, for it ends with that."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def await_answer(self) -> None:
        """Return when it answers."""
        until = time.monotonic() + START_S
        with redis.Redis.from_url(self.url, retry=None) as client:
            while time.monotonic() < until:
                try:
                    client.ping()
                except redis.RedisError:
                    time.sleep(0.001)
                else:
                    return
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        """As if the machine had gone."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Let it hang."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


def outage(bench: Bench) -> Mapping[str, Measured]:
    """Redis killed under load on each front, and made to hang."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.await_answer()
            load_customers(server.url, bench.bundle)
            result = {
                "lean": _outage(bench, server, "lean", server.kill, server.start),
                "grpcio": _outage(bench, server, "grpcio", server.kill, server.start),
                "lean, Redis hangs": _outage(bench, server, "lean", server.pause, server.resume),
            }
        finally:
            server.process.kill()
            server.process.wait()
    medians = {name: statistics.median(seen.refusals) for name, seen in result.items()}
    recoveries = {name: seen.recovery_s for name, seen in result.items()}
    reported = ", ".join(f"{name} {ms:.1f}" for name, ms in medians.items())
    codes = "; ".join(f"{name}: {seen.codes}" for name, seen in result.items())
    back = ", ".join(f"{name} {seconds:.3f}" for name, seconds in recoveries.items())
    return {
        "outage_ms": (max(medians.values()), f"median ms to the refusal at {RATE} calls a second: {reported}; {codes}"),
        "recovery_s": (max(recoveries.values()), f"seconds from the first PONG to the first score: {back}"),
    }


def _outage(bench: Bench, server: Server, front: str, away: Callable[[], None], back: Callable[[], None]) -> Seen:
    with tidemark_server(bench.registry, server.url, "--transport", front) as ours:
        return asyncio.run(_seen(f"127.0.0.1:{ours.port}", server, away, back))


async def _seen(target: str, server: Server, away: Callable[[], None], back: Callable[[], None]) -> Seen:
    seen = Seen()
    async with grpc.aio.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel:
        sending = asyncio.create_task(_send(channel.unary_unary(UNARY), seen))
        await asyncio.sleep(BEFORE_S)
        seen.gone = time.monotonic()
        away()
        await asyncio.sleep(AWAY_S)
        back()
        await asyncio.to_thread(server.await_answer)  # calls go on meanwhile
        seen.back = time.monotonic()
        await asyncio.sleep(AFTER_S)
        sending.cancel()
        await asyncio.wait([sending])
    return seen


async def _send(call: Any, seen: Seen) -> None:
    requests, running, start = unary_requests(), set(), time.monotonic()
    for number in range(1_000_000):
        await asyncio.sleep(start + number / RATE - time.monotonic())
        running.add(task := asyncio.create_task(_one(call, requests[number % len(requests)], seen)))
        task.add_done_callback(running.discard)


async def _one(call: Any, request: bytes, seen: Seen) -> None:
    sent, code = time.monotonic(), grpc.StatusCode.OK
    try:
        await call(request, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        code = error.code()
    seen.calls.append(Ended(sent, time.monotonic(), code))
