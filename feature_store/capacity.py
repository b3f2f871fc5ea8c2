"""Measures what a config's features cost: bytes per customer, and microseconds per event and per score."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from feature_store.definitions import Interests
from feature_store.embedded_redis import embedded_redis
from feature_store.online.customer_store import CustomerStore
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import HOUR_S, Event, Rules
from feature_store.state.folding import EventFolder, StoredCustomer
from feature_store.state.layout import DAY_S, StateLayout
from feature_store.state.profile import Profile

CUSTOMERS: Final = 20_000
PROFILES: Final = 100
"""Number of different profiles; customers share them."""
BATCH: Final = 64
MONTH_S: Final = 30 * DAY_S
ITEMS: Final = 1000
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Cost:
    """Costs per customer, event and score.

    Attributes:
        state_bytes: Size of a packed state.
        redis_state_bytes: Memory of a state in Redis, all overhead included.
        redis_profile_bytes: Memory of a profile in Redis, all overhead included, at ``events_per_month``.
        events_per_month: Events of a customer in a month.
        event_us: CPU microseconds of the server per event.
        event_redis_us: CPU microseconds of Redis per event.
        score_us: CPU microseconds of the server for reading and unpacking a state, without the graph.
        score_redis_us: CPU microseconds of Redis for reading a state.
    """

    state_bytes: int
    redis_state_bytes: float
    redis_profile_bytes: float
    events_per_month: int
    event_us: float
    event_redis_us: float
    score_us: float
    score_redis_us: float


def measure(layout: StateLayout, interests: Interests, events_per_month: int) -> Cost:
    """Measure in an embedded Redis with an append-only file.

    Args:
        layout: The features.
        interests: Which events are views and purchases.
        events_per_month: Events of a customer in a month.
    """
    shop = _Shop(layout, interests)
    names = [f"customer-{i:08}" for i in range(CUSTOMERS)]
    with embedded_redis() as url, StateWriter(url, layout) as redis:
        empty = redis.client.used_memory()
        redis.write(names, layout.pack_many(np.full(CUSTOMERS, shop.now), np.ones((CUSTOMERS, len(layout.features)))))
        states = redis.client.used_memory()
        profiles = shop.profiles(events_per_month)
        redis.write_profiles(names, [profiles[i % len(profiles)] for i in range(CUSTOMERS)])
        full = redis.client.used_memory()
        event_us, event_redis_us = _each(redis, partial(_record, url, shop), shop.batches(names))
        score_us, score_redis_us = _each(redis, partial(_read, url, layout), list(_chunks(names)))
    return Cost(
        state_bytes=layout.dtype.itemsize,
        redis_state_bytes=(states - empty) / CUSTOMERS,
        redis_profile_bytes=(full - states) / CUSTOMERS,
        events_per_month=events_per_month,
        event_us=event_us,
        event_redis_us=event_redis_us,
        score_us=score_us,
        score_redis_us=score_redis_us,
    )


class _Shop:
    """Generates events of the types that features and interests use, with all fields set."""

    def __init__(self, layout: StateLayout, interests: Interests) -> None:
        self._random = random.Random(1)  # noqa: S311  # no secret
        self._types = sorted({f.event for f in layout.features if f.event} | {interests.view, interests.purchase})
        self._events = 0
        self.folder: Final = EventFolder([layout], interests, Rules())
        self.now: Final = time.time()

    def event(self, customer_id: str, at: float) -> Event:
        """An event of a customer at a time."""
        self._events += 1
        item, channel = f"item-{self._random.randrange(ITEMS):06}", self._random.choice(("web", "app", "store"))
        kind = self._random.choice(self._types)
        return Event(customer_id, kind, at, 20.0, 30.0, item, channel, f"event-{self._events:012}")

    def batches(self, names: Sequence[str]) -> list[list[Event]]:
        """Batches of events of the last hour, of randomly chosen customers."""
        ids = self._random.choices(names, k=CUSTOMERS)
        return [
            [self.event(name, self.now - self._random.uniform(0, HOUR_S)) for name in chunk] for chunk in _chunks(ids)
        ]

    def profiles(self, events_per_month: int) -> list[bytes]:
        """Packed profiles of customers after a month of events."""
        packed = []
        for number in range(PROFILES):
            customer = StoredCustomer(f"c{number}", [None], None)
            for at in sorted(self._random.uniform(self.now - MONTH_S, self.now) for _ in range(events_per_month)):
                (change,) = self.folder.fold([customer], [[self.event(customer.customer_id, at)]], at)
                customer = StoredCustomer(customer.customer_id, change.states, change.profile)
            packed.append(customer.profile or Profile().pack())
        return packed


async def _record(url: str, shop: _Shop, batches: Sequence[Sequence[Event]]) -> None:
    redis = RedisStore(url, TIMEOUT_S)
    store = CustomerStore(redis, shop.folder)
    for batch in batches:
        await store.record(batch)
    await redis.close()


async def _read(url: str, layout: StateLayout, batches: Sequence[Sequence[str]]) -> None:
    redis = RedisStore(url, TIMEOUT_S)
    reader = StateReader(redis, layout)
    for batch in batches:
        await reader.read(batch)
    await redis.close()


def _each(
    redis: StateWriter, work: Callable[[Any], Coroutine[Any, Any, None]], batches: Sequence[Sequence[Any]]
) -> tuple[float, float]:
    """CPU microseconds per item of the batches: of this process, and of Redis."""
    items, redis_us, cpu_s = sum(map(len, batches)), redis.client.busy_us(), time.process_time()
    asyncio.run(work(batches))
    return (time.process_time() - cpu_s) * 1e6 / items, (redis.client.busy_us() - redis_us) / items


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + BATCH] for at in range(0, len(names), BATCH))
