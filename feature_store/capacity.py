"""What a config's features cost: bytes a customer, microseconds an event and a score. Measured, not estimated."""

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
from feature_store.online.store import Redis, StateReader, StateWriter
from feature_store.state.events import HOUR_S, Event, Rules
from feature_store.state.folding import Fold, Known
from feature_store.state.layout import DAY_S, StateLayout
from feature_store.state.profile import Record

CUSTOMERS: Final = 20_000
DIFFERENT: Final = 100
"""Records that are made; customers share them."""
BATCH: Final = 64
MONTH_S: Final = 30 * DAY_S
ITEMS: Final = 1000
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Cost:
    """Per customer, event and score; Redis bytes are all included, microseconds are of one core.

    state_bytes: packed; redis_state_bytes and redis_record_bytes: in Redis, the record's at ``events_per_month``;
    event_us and event_redis_us: of the process that folds, and of Redis; score_us and score_redis_us: of reading and
    decoding a state, without the graph.
    """

    state_bytes: int
    redis_state_bytes: float
    redis_record_bytes: float
    events_per_month: int
    event_us: float
    event_redis_us: float
    score_us: float
    score_redis_us: float


def measure(layout: StateLayout, interests: Interests, events_per_month: int) -> Cost:
    """Measure in a Redis of our own, with an append-only file."""
    shop = _Shop(layout, interests)
    names = [f"customer-{i:08}" for i in range(CUSTOMERS)]
    with embedded_redis() as url, StateWriter(url, layout) as redis:
        empty = redis.used_memory()
        redis.write(names, layout.pack_many(np.full(CUSTOMERS, shop.now), np.ones((CUSTOMERS, len(layout.features)))))
        states = redis.used_memory()
        records = shop.records(events_per_month)
        redis.write_records(names, [records[i % len(records)] for i in range(CUSTOMERS)])
        full = redis.used_memory()
        event_us, event_redis_us = _each(redis, partial(_record, url, shop), shop.batches(names))
        score_us, score_redis_us = _each(redis, partial(_read, url, layout), list(_chunks(names)))
    return Cost(
        state_bytes=layout.dtype.itemsize,
        redis_state_bytes=(states - empty) / CUSTOMERS,
        redis_record_bytes=(full - states) / CUSTOMERS,
        events_per_month=events_per_month,
        event_us=event_us,
        event_redis_us=event_redis_us,
        score_us=score_us,
        score_redis_us=score_redis_us,
    )


class _Shop:
    """Makes up events of the types that the features and interests know, with all that an event can have."""

    def __init__(self, layout: StateLayout, interests: Interests) -> None:
        self._random = random.Random(1)  # noqa: S311  # no secret
        self._types = sorted({f.event for f in layout.features if f.event} | {interests.view, interests.purchase})
        self._made = 0
        self.fold: Final = Fold(layout, interests, Rules())
        self.now: Final = time.time()

    def event(self, customer_id: str, at: float) -> Event:
        """An event at a time."""
        self._made += 1
        item, channel = f"item-{self._random.randrange(ITEMS):06}", self._random.choice(("web", "app", "store"))
        kind = self._random.choice(self._types)
        return Event(customer_id, kind, at, 20.0, 30.0, item, channel, f"event-{self._made:012}")

    def batches(self, names: Sequence[str]) -> list[list[Event]]:
        """Events of the last hour, of customers drawn at random."""
        ids = self._random.choices(names, k=CUSTOMERS)
        return [
            [self.event(name, self.now - self._random.uniform(0, HOUR_S)) for name in some] for some in _chunks(ids)
        ]

    def records(self, events_per_month: int) -> list[bytes]:
        """Records of a few customers who have been coming for a month."""
        found = []
        for number in range(DIFFERENT):
            known = Known(f"c{number}", None, None)
            for at in sorted(self._random.uniform(self.now - MONTH_S, self.now) for _ in range(events_per_month)):
                (change,) = self.fold([known], [[self.event(known.customer_id, at)]], at)
                known = Known(known.customer_id, change.state, change.record)
            found.append(known.record or Record().pack())
        return found


async def _record(url: str, shop: _Shop, batches: Sequence[Sequence[Event]]) -> None:
    redis = Redis(url, TIMEOUT_S)
    store = CustomerStore(redis, shop.fold)
    for batch in batches:
        await store.record(batch)
    await redis.close()


async def _read(url: str, layout: StateLayout, batches: Sequence[Sequence[str]]) -> None:
    redis = Redis(url, TIMEOUT_S)
    reader = StateReader(redis, layout)
    for batch in batches:
        await reader.read(batch)
    await redis.close()


def _each(
    redis: StateWriter, work: Callable[[Any], Coroutine[Any, Any, None]], batches: Sequence[Sequence[Any]]
) -> tuple[float, float]:
    """Microseconds of CPU for each thing in batches: of this process, and of Redis."""
    things, redis_us, cpu_s = sum(map(len, batches)), redis.asked_us(), time.process_time()
    asyncio.run(work(batches))
    return (time.process_time() - cpu_s) * 1e6 / things, (redis.asked_us() - redis_us) / things


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + BATCH] for at in range(0, len(names), BATCH))
