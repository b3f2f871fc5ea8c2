"""Garbage in every field of every call, in bundles and in Redis: each answer is a defined status or a right score.

What there is to call is asked of the server itself, by reflection, so that a method that is new is fed too. Requests
are well-formed messages with hostile values, and their bytes mutated. Customers whose ids begin with ``sure-`` are
scored and never changed: their scores are computed here as well, from what Redis holds, and have to be the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import redis

from feature_store.bundles import bundle
from feature_store.embedded_redis import embedded_redis
from feature_store.online.state_writer import StateWriter
from service.scoring.model import Model
from tests.benchmarks.garbage_made import FED, SURE, TIMEOUT_S, Tally
from tests.benchmarks.garbage_requests import Oracle, Requests
from tests.benchmarks.garbage_stored import Bundles, Values
from tests.benchmarks.setting import Bench, Measured, tidemark_server
from tidemark import CustomerClient, Event, EventClient

REQUESTS: Final = 100_000
BUNDLES: Final = 200
VALUES: Final = 200


def fill(url: str, registry: Path, seed: int = 7) -> None:
    """Customers with golden states, and with records."""
    loaded = bundle.read(registry)
    model = Model(loaded)
    rng = np.random.default_rng(seed)
    names = [*SURE, *FED]
    golden = loaded.golden["input_state"]
    slots = golden[rng.integers(len(golden), size=len(names))]
    with StateWriter(url, model.layout) as store:
        store.write(names, model.layout.pack_many(np.full(len(names), time.time() - 3600.0), slots))


@contextlib.contextmanager
def fed(registry: Path, *options: str) -> Iterator[tuple[str, str, Callable[[], bool]]]:
    """A server over a Redis of its own with the customers in it: its target, the Redis, and whether it lives."""
    with embedded_redis() as url:
        fill(url, registry)
        # However slow the machine is, Redis is not away: garbage is the subject here.
        with tidemark_server(registry, url, "--redis-timeout-s", "60", *options) as server:
            yield f"127.0.0.1:{server.port}", url, server.process.is_running


def feed(registry: Path, requests: int, values: int, bundles: int, *options: str, seed: int = 1) -> Tally:
    """Feed a server, and a registry, and tell what came of it."""
    tally = Tally()
    with fed(registry, *options) as (target, url, lives):
        oracle = Oracle(registry, url)
        fed_with = Requests(target, oracle, seed, tally)
        fed_with.run(requests)
        fed_with.settled()
        tally.counts["requests"] += requests
        fill(url, registry)
        with redis.Redis.from_url(url) as store:
            for key in store.scan_iter("tm:live:*"):
                store.delete(key)
        _know(target)
        Values(target, oracle, url, seed, tally).run(values, SURE)
        if not lives():
            tally.fault("the server ended")
    Bundles(registry, seed, tally).run(bundles)
    return tally


def _know(target: str) -> None:
    """Let customers have records: interests, consent of some kinds, channels."""
    with EventClient(target, timeout_s=TIMEOUT_S) as events, CustomerClient(target, timeout_s=TIMEOUT_S) as customers:
        looks = [Event(name, "view", item_id=f"item-{at % 3}", channel="web") for at, name in enumerate(SURE * 2)]
        events.record(looks)
        for name in SURE[::5]:
            customers.set_consent(name, automated_response=False)


def garbage(bench: Bench) -> Measured:
    """Crashes, INTERNALs and wrong scores under garbage in requests to all methods, in bundles and in Redis."""
    result = [
        feed(bench.registry, REQUESTS // 2, VALUES // 2, BUNDLES // 2, "--transport", front, seed=at)
        for at, front in enumerate(("lean", "grpcio"))
    ]
    return float(sum(item.faults.total() for item in result)), "; ".join(item.said() for item in result)
