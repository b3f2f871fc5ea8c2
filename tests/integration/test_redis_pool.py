"""Connections to Redis: bounded, shared fairly, and a busy event loop is not taken for a Redis that does not answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis

from feature_store.definitions import Feature, Interests
from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.customer_store import CustomerStore
from feature_store.online.store import RedisStore
from feature_store.online.transport import connections
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import StateLayout
from tests.redis_processes import Node

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])


def test_many_calls_at_the_same_time_share_few_connections_and_none_is_refused(clean_redis: str) -> None:
    async def run() -> int:
        store = RedisStore(clean_redis, 0.25)
        customers = CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules()))
        try:
            await customers.record([Event("c", "visit", time.time())])
            await asyncio.gather(*(customers.get("c") for _ in range(400)))
            assert store.breaker.times_opened == 0
            with redis.Redis.from_url(clean_redis) as client:
                return len(client.client_list(_type="normal"))
        finally:
            await store.close()

    with redis.Redis.from_url(clean_redis) as client:
        others = len(client.client_list(_type="normal"))
    assert asyncio.run(run()) <= others + connections.MAX_CONNECTIONS


def test_a_busy_event_loop_is_not_taken_for_a_redis_that_does_not_answer(clean_redis: str) -> None:
    async def run() -> None:
        store = RedisStore(clean_redis, 0.05)
        try:
            for _ in range(3):  # the first opens a connection
                asking = asyncio.ensure_future(store.ask(b"PING"))
                for _ in range(4):
                    await asyncio.sleep(0)
                    time.sleep(0.2)  # noqa: ASYNC251  # as a large batch does
                assert await asking in (b"PONG", "PONG")
            assert store.breaker.times_opened == 0
        finally:
            await store.close()

    asyncio.run(run())


def test_calls_that_wait_for_a_connection_end_when_redis_turns_out_to_be_away(tmp_path: Path) -> None:
    node = Node(tmp_path)

    async def run() -> None:
        store = RedisStore(f"redis://127.0.0.1:{node.port}", 0.3)
        try:
            await store.ping()
            node.pause()
            results = await asyncio.gather(*(store.ask(b"PING") for _ in range(200)), return_exceptions=True)
            assert all(isinstance(result, StoreUnavailableError) for result in results)
            waited_for_redis = [result for result in results if isinstance(result, StoreAwayError)]
            assert 0 < len(waited_for_redis) <= 4 * connections.MAX_CONNECTIONS
        finally:
            await store.close()

    try:
        asyncio.run(run())
    finally:
        node.close()


def test_a_redis_that_evicts_customers_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path)

    async def ask() -> None:
        store = RedisStore(f"redis://127.0.0.1:{node.port}", 5.0)
        try:
            await store.ping()
        finally:
            await store.close()

    try:
        node.client.config_set("maxmemory-policy", "allkeys-lru")
        asyncio.run(ask())  # without a limit nothing is evicted
        node.client.config_set("maxmemory", "100mb")
        with pytest.raises(StoreAwayError, match="maxmemory-policy noeviction"):
            asyncio.run(ask())
        node.client.config_set("maxmemory-policy", "volatile-lru")
        asyncio.run(ask())
    finally:
        node.close()
