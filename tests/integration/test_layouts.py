"""States of several layouts in one Redis: whoever records an event folds it into all of them, and none is passed by."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import redis

from feature_store.definitions import Feature, Interests
from feature_store.online import active_layouts as layouts
from feature_store.online.active_layouts import Pruner, announce
from feature_store.online.command_client import CommandClient
from feature_store.online.commit import CommitResult, Group
from feature_store.online.customer_store import CustomerStore
from feature_store.online.keys import ACTIVE_LAYOUTS, LAYOUTS_VERSION, STORED_LAYOUTS, Keys, profile_keys
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder, Verdict
from feature_store.state.layout import State, StateLayout
from service.batching.event_batcher import EventBatcher
from tests.waiting import PATIENCE_S

NOW = 1_800_000_000.0
VISITS = Feature(name="visits", aggregate="count", event="visit", half_life_days=7)
FIRST = StateLayout([VISITS])
SPEND = Feature(name="spend", aggregate="sum", event="purchase", field="amount", half_life_days=30)
SECOND = StateLayout([SPEND, VISITS])
THIRD = StateLayout([Feature(name="last", aggregate="latest", event="visit")])

Act = Callable[[RedisStore], Awaitable[None]]


def run(url: str, act: Act) -> None:
    async def connected() -> None:
        store = RedisStore(url, 5.0)
        try:
            await act(store)
        finally:
            await store.close()

    asyncio.run(connected())


def customers(store: RedisStore, layout: StateLayout = FIRST) -> CustomerStore:
    return CustomerStore(store, EventFolder([layout], Interests(), Rules()), clock=lambda: NOW)


def visit(name: str) -> Event:
    return Event(name, "visit", NOW)


def purchase(name: str, amount: float) -> Event:
    return Event(name, "purchase", NOW, amount)


async def slots(store: RedisStore, layout: StateLayout, name: str) -> list[float] | None:
    batch = await StateReader(store, layout).read([name])
    return [float(n) for n in batch.slots[0]] if batch.found[0] else None


def add(url: str, layout: StateLayout) -> None:
    with CommandClient(url) as client:
        announce(client, layout)


def test_servers_of_different_models_fold_into_each_others_states(clean_redis: str) -> None:
    async def act(store: RedisStore) -> None:
        item, two = customers(store, FIRST), customers(store, SECOND)
        await item.ensure_registered()
        await two.ensure_registered()
        await item.record([visit("a"), purchase("a", 5.0)])
        await two.record([visit("a"), purchase("b", 7.0)])
        assert await slots(store, FIRST, "a") == [2.0]
        assert await slots(store, SECOND, "a") == [5.0, 2.0]
        await item.merge("b", "a")
        assert await slots(store, SECOND, "a") == [12.0, 2.0]
        await two.erase("a")
        assert [await slots(store, layout, "a") for layout in (FIRST, SECOND)] == [None, None]

    run(clean_redis, act)


class Interrupted(RedisStore):
    """Something happens after a change was computed and before it is committed."""

    between: list[Callable[[], None]]

    async def commit(self, groups: Sequence[Group], max_waiting: int = 0, **options: Any) -> CommitResult:
        while self.between:
            self.between.pop()()
        return await super().commit(groups, max_waiting, **options)


def interrupted(url: str) -> Interrupted:
    store = Interrupted(url, 5.0)
    store.between = []
    return store


def test_a_layout_that_is_announced_while_an_event_is_recorded_gets_it_all_the_same(clean_redis: str) -> None:
    async def act(_: RedisStore) -> None:
        store = interrupted(clean_redis)
        ours = customers(store)
        await ours.record([visit("a"), visit("c")])
        store.between = [partial(add, clean_redis, SECOND)]
        await ours.record([visit("a"), purchase("b", 1.0)])
        assert [await slots(store, SECOND, name) for name in ("a", "b")] == [[0.0, 1.0], [1.0, 0.0]]
        store.between = [partial(add, clean_redis, THIRD)]
        await ours.merge("c", "a")
        assert store.between == []
        assert await slots(store, FIRST, "a") == [3.0]
        assert [outcome.verdict for outcome in await ours.record([visit("a")])] == [Verdict.ACCEPTED]
        assert await slots(store, THIRD, "a") == [0.0]
        await store.close()

    run(clean_redis, act)


def test_a_layout_that_is_pruned_while_an_event_is_recorded_does_not_come_back(clean_redis: str) -> None:
    async def act(_: RedisStore) -> None:
        store = interrupted(clean_redis)
        ours = customers(store)
        add(clean_redis, SECOND)
        await ours.record([visit("a"), visit("b")])

        def prune() -> None:
            with CommandClient(clean_redis) as client:
                pruner = Pruner(client)
                assert set(pruner.fingerprints()) == {FIRST.fingerprint, SECOND.fingerprint}
                assert pruner.remove(SECOND.fingerprint) == 2

        store.between = [prune]
        await ours.record([visit("a")])
        assert (await slots(store, FIRST, "a"), await slots(store, SECOND, "a")) == ([2.0], None)
        await store.close()

    run(clean_redis, act)
    with redis.Redis.from_url(clean_redis) as connection:
        assert connection.hkeys(ACTIVE_LAYOUTS) == [FIRST.fingerprint.encode()]
        assert connection.smembers(STORED_LAYOUTS) == {FIRST.fingerprint.encode()}
        assert not list(connection.scan_iter(f"tm:{SECOND.fingerprint}*"))
        assert connection.exists(*profile_keys(["a", "b"])) == 2


def test_a_redis_that_was_lost_hears_of_the_layouts_again(clean_redis: str) -> None:
    async def act(store: RedisStore) -> None:
        ours = customers(store)
        await ours.use(SECOND, Interests())
        with redis.Redis.from_url(clean_redis) as connection:
            connection.flushdb()
        await ours.record([visit("a")])
        assert await slots(store, SECOND, "a") == [0.0, 1.0]
        with redis.Redis.from_url(clean_redis) as connection:
            assert connection.hkeys(ACTIVE_LAYOUTS) == [SECOND.fingerprint.encode()]

    run(clean_redis, act)


def test_a_state_that_cannot_be_read_in_another_layout_is_left_to_a_load_and_takes_no_event_away(
    clean_redis: str,
) -> None:
    torn = b"torn" + bytes(12)

    async def act(store: RedisStore) -> None:
        ours = customers(store)
        add(clean_redis, SECOND)
        with redis.Redis.from_url(clean_redis) as connection:
            for key in Keys(SECOND.fingerprint).states(["a", "b"]):
                connection.set(key, torn)
        assert [outcome.verdict for outcome in await ours.record([visit("a"), visit("b")])] == [Verdict.ACCEPTED] * 2
        await ours.merge("a", "b")
        assert await slots(store, FIRST, "b") == [2.0]
        with redis.Redis.from_url(clean_redis) as connection:
            assert connection.get(Keys(SECOND.fingerprint).states(["b"])[0])[:4] == b"torn"

    run(clean_redis, act)


def test_definitions_of_another_release_are_left_out_and_told(
    clean_redis: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(clean_redis) as connection:
        connection.hset(ACTIVE_LAYOUTS, "0badcafe", json.dumps([{"name": "new", "aggregate": "median"}]))
        connection.hset(ACTIVE_LAYOUTS, "0badcaff", json.dumps([VISITS.model_dump(exclude_none=True)]))
        connection.set(LAYOUTS_VERSION, "1")

    async def act(store: RedisStore) -> None:
        ours = customers(store)
        await ours.record([visit("a")])
        assert await slots(store, FIRST, "a") == [1.0]
        assert not await layouts.is_ready(store, "0badcafe")

    run(clean_redis, act)
    assert "0badcafe" in caplog.text
    assert "0badcaff" in caplog.text


def test_states_are_ready_when_they_are_loaded_and_kept_up(clean_redis: str) -> None:
    async def act(store: RedisStore) -> None:
        assert not await layouts.is_ready(store, FIRST.fingerprint)
        with StateWriter(clean_redis, FIRST) as writer:
            announce(writer.client, FIRST)
            assert not await layouts.is_ready(store, FIRST.fingerprint)  # the load is under way
            writer.write(["a"], [FIRST.pack(State(NOW, np.array([1.0])))])
            writer.record_load({"as_of": NOW})
        assert await layouts.is_ready(store, FIRST.fingerprint)
        with StateWriter(clean_redis, SECOND) as writer:  # as a release of before did it
            writer.record_load({"as_of": NOW})
        assert not await layouts.is_ready(store, SECOND.fingerprint)

    run(clean_redis, act)


def test_many_writers_on_two_layouts_lose_nothing_while_layouts_come_and_go(clean_redis: str) -> None:
    async def act(store: RedisStore) -> None:
        others = RedisStore(clean_redis, PATIENCE_S)
        writers = [customers(store, FIRST), customers(others, SECOND)]
        recorders = [EventBatcher(writer.record, Rules(max_lateness_s=1e10), clock=lambda: NOW) for writer in writers]

        async def act_on(recorder: EventBatcher) -> None:
            for _ in range(30):
                done = await recorder.record([visit("a"), visit("b")])
                assert done.accepted == 2

        async def come_and_go() -> None:
            for _ in range(5):
                await layouts.register(store, THIRD)
                await asyncio.sleep(0.01)
                with CommandClient(clean_redis) as client:
                    pruner = Pruner(client)
                    pruner.remove(THIRD.fingerprint)

        for writer in writers:
            await writer.ensure_registered()
        await asyncio.gather(*(act_on(recorder) for recorder in recorders), come_and_go())
        for name in ("a", "b"):
            assert await slots(store, FIRST, name) == [60.0]
            assert await slots(store, SECOND, name) == [0.0, 60.0]
        await others.close()

    run(clean_redis, act)
