"""What an erasure costs while many commits wait for the archive, and what one event costs Redis.

Both are measured at the store of customers, without a server: gRPC would only add the same to all of them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis

from feature_store.definitions import Interests
from feature_store.embedded_redis import embedded_redis
from feature_store.online.customer_store import CustomerStore
from feature_store.online.keys import LOG, log_key
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.log_entries import encode_event, encode_link
from tests.benchmarks.setting import Bench, Measured
from tests.benchmarks.states import narrow

WAITING: Final = 100_000
"""Commits that wait for the archive."""
ERASED: Final = 100
"""Customers erased with each log, in turn."""
AT_ONCE: Final = 64
SINGLES: Final = 5000
"""Commits of one event, each of another customer who is known."""
CHUNK: Final = 1000
TIMEOUT_S: Final = 30.0


def commits(_bench: Bench | None = None) -> Mapping[str, Measured]:
    """Erasures beside 100,000 waiting commits over those beside an empty log; commands and bytes of a commit."""
    with embedded_redis() as full, embedded_redis() as empty:
        ratio, beside_full, beside_empty = asyncio.run(_erasures(full, empty))
        cost = asyncio.run(_cost(empty))
    return {
        "erase_ms_100k": (
            ratio,
            f"{beside_full * 1e3:.2f} ms with {WAITING:,} commits, {beside_empty * 1e3:.2f} without",
        ),
        "commit_commands": (cost.commands, "commands of Redis, those of the script included, per commit of one event"),
        "commit_sent_bytes": (cost.sent, "bytes sent to Redis per commit of one event, its reads included"),
        "commit_file_bytes": (cost.file, "bytes in the append-only file per commit of one event"),
        "commit_redis_us": (cost.redis_us, "microseconds of CPU of Redis per commit of one event, 64 at once"),
    }


@dataclass(frozen=True)
class Cost:
    """What a commit of one event costs Redis."""

    commands: float
    sent: float
    file: float
    redis_us: float


async def _erasures(full: str, empty: str) -> tuple[float, float, float]:
    """The median of the paired ratios, and the median seconds beside each log."""
    stores = [RedisStore(url, TIMEOUT_S) for url in (full, empty)]
    try:
        beside_full, beside_empty = (_customers(store) for store in stores)
        await _record(beside_full, 1, "first")
        _fill_log(full)
        pairs = []
        for number in range(ERASED):
            name = f"erased-{number}"
            for customers in (beside_full, beside_empty):
                await customers.record([_event(name)])
            pairs.append((await _erase_s(beside_full, name), await _erase_s(beside_empty, name)))
    finally:
        for store in stores:
            await store.close()
    middle = [statistics.median(times) for times in zip(*pairs, strict=True)]
    return statistics.median(a / b for a, b in pairs), middle[0], middle[1]


async def _erase_s(customers: CustomerStore, name: str) -> float:
    start = time.perf_counter()
    await customers.erase(name)
    return time.perf_counter() - start


async def _cost(url: str) -> Cost:
    store = RedisStore(url, TIMEOUT_S)
    try:
        customers = _customers(store)
        await _record(customers, SINGLES, "known")
        with redis.Redis.from_url(url) as connection:
            before = _totals(connection)
            await _record(customers, SINGLES, "known")
            after = _totals(connection)
    finally:
        await store.close()
    return Cost(*((new - old) / SINGLES for old, new in zip(before, after, strict=True)))


def _totals(connection: redis.Redis) -> tuple[float, float, float, float]:
    """Commands, those of scripts included, bytes received, bytes in the append-only file, and microseconds of CPU."""
    stats: dict[str, Any] = {}
    for section in ("commandstats", "stats", "persistence", "cpu"):
        stats |= connection.info(section)
    calls = sum(figures["calls"] for name, figures in stats.items() if name.startswith("cmdstat_"))
    cpu_s = stats["used_cpu_user_main_thread"] + stats["used_cpu_sys_main_thread"]
    return calls, stats["total_net_input_bytes"], stats["aof_current_size"], cpu_s * 1e6


def _customers(store: RedisStore) -> CustomerStore:
    return CustomerStore(store, EventFolder([narrow()], Interests(), Rules()))


def _fill_log(url: str) -> None:
    """Let commits of one event each, of as many customers, wait for the archive, as if they had been recorded."""
    with redis.Redis.from_url(url) as connection:
        start = int(connection.get(LOG) or 0) + 1
        for first in range(start, start + WAITING, CHUNK):
            names = {position: f"waiting-{position}" for position in range(first, first + CHUNK)}
            connection.mset({log_key(position): _entry(name) for position, name in names.items()})
        connection.set(LOG, start + WAITING - 1)


def _entry(name: str) -> str:
    """The log entry of the first event of a customer."""
    return f"[{encode_event(_event(name), '', keep_text=False)},{encode_link(name, 0)}]"


async def _record(customers: CustomerStore, count: int, name: str) -> None:
    """Record one event for each of a number of customers, each in its own commit."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await customers.record([_event(f"{name}-{number}")])

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def _event(name: str) -> Event:
    return Event(name, "view", time.time(), event_id=f"view-{time.time_ns()}", item_id="item-1", channel="web")


if __name__ == "__main__":
    for figure, (value, note) in commits().items():
        print(f"{figure} {value:.2f}  {note}")
