"""Connections to Redis: bounded, shared, and neither a burst nor a busy event loop is taken for an outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feature_store.definitions import Feature, Interests
from feature_store.errors import StoreAwayError, StoreUnavailableError
from feature_store.online.customer_store import CustomerStore
from feature_store.online.store import RedisStore
from feature_store.online.transport import connection_pool
from feature_store.online.transport.connection_pool import MAX_CONNECTIONS
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import StateLayout
from tests.redis_processes import Node, with_store
from tests.waiting import PATIENCE_S, settle

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    result = Node(tmp_path)
    yield result
    result.close()


def test_many_calls_at_the_same_time_share_few_connections_and_none_is_refused(clean_redis: str) -> None:
    def connections() -> int:
        with redis.Redis.from_url(clean_redis) as client:
            return len(client.client_list(_type="normal"))

    async def act(store: RedisStore) -> None:
        others = connections()
        customers = CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules()))
        await customers.record([Event("c", "visit", time.time())])
        await asyncio.gather(*(customers.get("c") for _ in range(400)))
        assert store.breaker.times_opened == 0
        assert 0 < connections() - others <= MAX_CONNECTIONS

    with_store(clean_redis, act)


def test_urgent_calls_go_before_the_others_that_wait(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_pool, "MAX_CONNECTIONS", 1)
    answered: list[bytes] = []

    async def echo(store: RedisStore, word: bytes, *, urgent: bool = False) -> None:
        answered.append(await store.ask(b"ECHO", word, urgent=urgent))

    async def act(store: RedisStore) -> None:
        await asyncio.gather(echo(store, b"first"), echo(store, b"second"), echo(store, b"score", urgent=True))

    with_store(clean_redis, act)
    assert answered == [b"score", b"first", b"second"]


def test_a_call_that_gives_up_leaves_its_connection_to_the_next(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "MAX_CONNECTIONS", 1)

    async def act(store: RedisStore) -> None:
        for turns in range(12):  # it gives up at each step of waiting, setting up and asking
            calls = [asyncio.ensure_future(store.ask(b"PING")) for _ in range(3)]
            await settle(turns)
            calls[1].cancel()
            await asyncio.wait(calls, timeout=PATIENCE_S)
            assert [await calls[0], await calls[2]] == [b"PONG", b"PONG"]

    with_store(clean_redis, act)


def test_a_busy_event_loop_is_not_taken_for_a_redis_that_does_not_answer(
    clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "MIN_SETUP_S", PATIENCE_S)

    async def act(store: RedisStore) -> None:
        for _ in range(3):  # the first sets up a connection
            asking = asyncio.ensure_future(store.ask(b"PING"))
            for _ in range(4):
                await asyncio.sleep(0)
                time.sleep(0.12)  # noqa: ASYNC251  # as a large batch does
            assert await asking == b"PONG"
        assert store.breaker.times_opened == 0

    with_store(clean_redis, act, 0.05)


def test_no_answer_within_the_rest_of_a_budget_is_no_outage(node: Node) -> None:
    async def act(store: RedisStore) -> None:
        await store.ping()
        node.pause()
        with pytest.raises(StoreUnavailableError):
            await store.ask(b"PING", budget_s=0.001)
        assert store.breaker.times_opened == 0
        node.resume()
        await store.ping()

    with_store(node.url, act)


def test_calls_that_wait_for_a_connection_are_refused_when_redis_turns_out_to_be_away(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "QUEUE_S", 2 * PATIENCE_S)
    monkeypatch.setattr(connection_pool, "MIN_SETUP_S", 2 * PATIENCE_S)

    async def act(store: RedisStore) -> None:
        await store.ping()
        node.pause()
        async with asyncio.timeout(PATIENCE_S):
            results = await asyncio.gather(*(store.ask(b"PING") for _ in range(200)), return_exceptions=True)
        assert {type(result) for result in results} == {StoreAwayError}
        assert store.breaker.times_opened == 1

    with_store(node.url, act, 0.3)


def test_where_nothing_listens_all_calls_are_refused(node: Node) -> None:
    node.kill()

    async def act(store: RedisStore) -> None:
        results = await asyncio.gather(*(store.ask(b"PING") for _ in range(50)), return_exceptions=True)
        assert {type(result) for result in results} == {StoreAwayError}

    with_store(node.url, act)


def test_a_redis_that_takes_no_more_connections_serves_all_calls_over_those_that_it_took(node: Node) -> None:
    node.client.config_set("maxclients", len(node.client.client_list()) + 1)

    async def act(store: RedisStore) -> None:
        assert await asyncio.gather(*(store.ask(b"PING") for _ in range(50))) == [b"PONG"] * 50
        assert store.breaker.times_opened == 0

    with_store(node.url, act)
