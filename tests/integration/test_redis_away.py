"""The store while Redis is killed, paused, loading, full, read-only, locked or empty: a defined answer each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from feature_store.definitions import Feature, Interests
from feature_store.errors import (
    ReadOnlyStoreError,
    StoreAwayError,
    StoreFullError,
    StoreUnavailableError,
)
from feature_store.online.commit import Group, Write
from feature_store.online.customer_store import CustomerStore
from feature_store.online.keys import Keys
from feature_store.online.stale_cache import StaleStateCache
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import MissingReason, State, StateLayout
from tests.redis_processes import DATA, Node, await_that
from tests.waiting import PATIENCE_S

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
OTHER = StateLayout([Feature(name="views", aggregate="count", event="view", half_life_days=7)])
KEYS = Keys(LAYOUT.fingerprint)
STATE = LAYOUT.pack(State(1e9, np.array([7.0])))
TIMEOUT_S = 1.0
AT_ONCE_S = TIMEOUT_S / 2
"""What asks a Redis that hangs takes longer."""
FOREVER = 1e9

T = TypeVar("T")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A Redis in which ``a`` has 7 visits, and which keeps them over a restart."""
    result = Node(tmp_path / "node", config=f"{DATA}appendonly yes\nappendfsync always\nenable-debug-command yes\n")
    with StateWriter(f"redis://127.0.0.1:{result.port}", LAYOUT) as writer:
        writer.write(["a"], [STATE])
        writer.record_load({"as_of": 1e9})
    yield result
    result.close()


def asked(node: Node, question: Callable[[RedisStore], Awaitable[T]]) -> T:
    async def ask() -> T:
        store = RedisStore(f"redis://127.0.0.1:{node.port}", TIMEOUT_S)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(ask())


async def refusal_of(store: RedisStore) -> tuple[StoreUnavailableError, float]:
    """The first refusal, and how long it took."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            start = time.monotonic()
            try:
                await StateReader(store, LAYOUT).read(["a"])
            except StoreUnavailableError as error:
                return error, time.monotonic() - start
            await asyncio.sleep(0.005)


async def until_back(store: RedisStore) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert (await StateReader(store, LAYOUT).read(["a"])).slots[0, 0] == 7.0
            except StoreUnavailableError:
                await asyncio.sleep(0.005)
            else:
                return


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_after_the_first_failure_refusals_are_immediate_and_recovery_needs_nobody(node: Node, how: str) -> None:
    async def question(store: RedisStore) -> None:
        await until_back(store)
        getattr(node, how)()
        await refusal_of(store)
        for _ in range(20):
            error, took = await refusal_of(store)
            assert isinstance(error, StoreAwayError)
            assert took < AT_ONCE_S
            await asyncio.sleep(0.02)
        assert (store.breaker.open, store.breaker.times_opened) == (True, 1)
        await asyncio.to_thread(node.start if how == "kill" else node.resume)
        await until_back(store)
        assert not store.breaker.open

    asked(node, question)


def test_who_waits_hears_of_both_ends_of_an_outage(node: Node) -> None:
    async def question(store: RedisStore) -> None:
        await until_back(store)
        assert not store.changed.is_set()
        node.kill()
        await refusal_of(store)
        assert store.changed.is_set()
        store.changed.clear()
        await asyncio.to_thread(node.start)
        await asyncio.wait_for(store.changed.wait(), PATIENCE_S)
        assert not store.breaker.open

    asked(node, question)


def test_a_connection_that_nobody_accepts_is_refused_within_the_time(node: Node) -> None:
    async def question(store: RedisStore) -> None:
        node.pause()
        await refusal_of(store)  # no connection was open before: this one hangs
        _, second = await refusal_of(store)
        assert second < AT_ONCE_S
        node.resume()
        await until_back(store)

    asked(node, question)


def test_one_slow_answer_is_an_outage_of_milliseconds(node: Node) -> None:
    async def question(store: RedisStore) -> None:
        await until_back(store)
        node.client.execute_command("CLIENT", "PAUSE", 2500)
        await refusal_of(store)
        await until_back(store)
        assert store.breaker.times_opened == 1

    asked(node, question)


def test_a_read_has_one_budget_however_often_it_asks(node: Node) -> None:
    async def question(store: RedisStore) -> None:
        slow = Delayed(store, 0.4 * TIMEOUT_S)
        with pytest.raises(StoreUnavailableError):
            await StateReader(slow, LAYOUT).read(["alias-3"])

    node.client.execute_command("SET", "tm:live:alias-0", b"")
    with StateWriter(f"redis://127.0.0.1:{node.port}", LAYOUT) as writer:
        writer.write_profiles(
            [f"alias-{at}" for at in range(1, 4)],
            [aliased(f"alias-{at - 1}") for at in range(1, 4)],
        )
    asked(node, question)


def aliased(root: str) -> bytes:
    from feature_store.state.profile import Profile  # noqa: PLC0415

    return Profile(alias_of=root).pack()


class Delayed(RedisStore):
    """Answers late, and not at all beyond the budget."""

    def __init__(self, store: RedisStore, delay_s: float) -> None:
        self.__dict__.update(store.__dict__)
        self._delay_s = delay_s

    async def ask(self, *command: bytes, budget_s: float | None = None, urgent: bool = False) -> object:
        budget_s = self.timeout_s if budget_s is None else budget_s
        await asyncio.sleep(min(self._delay_s, budget_s))
        if budget_s < self._delay_s:
            raise StoreAwayError("TimeoutError")
        return await super().ask(*command, budget_s=budget_s, urgent=urgent)


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (("CONFIG", "SET", "requirepass", "open"), None, "AuthenticationError"),
        (("DEBUG", "SLEEP", "3"), (), "TimeoutError"),
    ],
)
def test_a_redis_that_cannot_answer_counts_as_away(
    node: Node, begin: tuple[str, ...], end: tuple[str, ...] | None, said: str
) -> None:
    async def question(store: RedisStore) -> None:
        task = asyncio.create_task(asyncio.to_thread(node.client.execute_command, *begin))
        if end is None:
            await task  # a connection that was open before it stays good
        error, _ = await refusal_of(store)
        assert isinstance(error, StoreAwayError)
        assert said in str(error)
        _, took = await refusal_of(store)
        assert took < AT_ONCE_S
        await task
        if end is None:
            node.client.auth("open")
            node.client.config_set("requirepass", "")
        await until_back(store)

    asked(node, question)


def test_a_script_that_runs_for_ever_counts_as_away_until_it_is_killed(node: Node) -> None:
    node.client.config_set("busy-reply-threshold", 50)

    async def question(store: RedisStore) -> None:
        await until_back(store)
        running = asyncio.create_task(asyncio.to_thread(endless, node.port))
        error, _ = await refusal_of(store)
        assert isinstance(error, StoreAwayError)
        assert str(error) in ("BUSY", "TimeoutError")
        await asyncio.to_thread(node.client.script_kill)
        await until_back(store)
        await running

    asked(node, question)


def endless(port: int) -> None:
    import redis  # noqa: PLC0415

    with redis.Redis(port=port) as connection, pytest.raises(redis.ResponseError):
        connection.eval("while true do end", 0)


def test_a_redis_that_is_loading_counts_as_away(node: Node) -> None:
    node.client.config_set("key-load-delay", 1_000_000)  # microseconds a key

    async def question(store: RedisStore) -> None:
        await until_back(store)
        loading = asyncio.create_task(asyncio.to_thread(node.client.execute_command, "DEBUG", "LOADAOF"))
        await refusal_of(store)
        _, took = await refusal_of(store)
        assert took < AT_ONCE_S
        await loading
        await until_back(store)

    asked(node, question)


@pytest.mark.parametrize(
    ("setting", "value", "usual", "kind"),
    [
        ("maxmemory", "1", "0", StoreFullError),
        ("min-replicas-to-write", "1", "0", ReadOnlyStoreError),
    ],
)
def test_a_redis_that_refuses_writes_goes_on_answering_reads(
    node: Node, setting: str, value: str, usual: str, kind: type[Exception]
) -> None:
    async def question(store: RedisStore) -> None:
        node.client.config_set(setting, value)
        (key,) = KEYS.states(["b"])
        with pytest.raises(kind):
            await store.commit([Group([Write(key, None, STATE)])])
        await until_back(store)
        assert store.breaker.times_opened == 0
        node.client.config_set(setting, usual)
        assert (await store.commit([Group([Write(key, None, STATE)])])).conflicts == []

    asked(node, question)


def test_a_replica_answers_reads_and_refuses_writes(node: Node, tmp_path: Path) -> None:
    replica = Node(tmp_path / "replica", config=f"{DATA}replicaof 127.0.0.1 {node.port}\n")
    await_that(lambda: replica.client.info("replication")["master_link_status"] == "up")

    async def question(store: RedisStore) -> None:
        await until_back(store)
        with pytest.raises(ReadOnlyStoreError):
            await CustomerStore(store, fold()).ensure_registered()
        assert store.breaker.times_opened == 0

    try:
        asked(replica, question)
    finally:
        replica.close()


def fold() -> EventFolder:
    rules = Rules(max_lateness_s=1e6)
    return EventFolder([LAYOUT], Interests(), rules)


# --- empty --------------------------------------------------------------------------------------------------


def missing(node: Node, *ids: str) -> MissingReason | None:
    async def question(store: RedisStore) -> MissingReason | None:
        batch = await StateReader(store, LAYOUT).read(ids)
        return None if batch.found.any() else batch.missing

    return asked(node, question)


def test_in_an_emptied_redis_nobody_is_unknown_for_nothing_is_known(node: Node) -> None:
    assert missing(node, "nobody") is MissingReason.UNKNOWN
    assert missing(node, "nobody", "a") is None
    node.client.flushall()
    assert missing(node, "nobody", "a") is MissingReason.NOT_LOADED


def test_where_events_alone_came_in_a_new_visitor_is_unknown(node: Node) -> None:
    node.client.flushall()
    node.client.set("tm:log", 5)
    assert missing(node, "nobody") is MissingReason.UNKNOWN


def test_where_other_definitions_were_loaded_these_still_have_to_be(node: Node) -> None:
    node.client.flushall()
    with StateWriter(f"redis://127.0.0.1:{node.port}", OTHER) as writer:
        writer.record_load({"as_of": 1e9})
    node.client.set("tm:log", 5)
    assert missing(node, "nobody") is MissingReason.NOT_LOADED


# --- what was read before -----------------------------------------------------------------------------------


def test_what_was_read_is_remembered_and_what_was_withdrawn_is_not(node: Node) -> None:
    recent = StaleStateCache(100_000)

    async def question(store: RedisStore) -> None:
        reader = StateReader(store, LAYOUT, recent)
        customers = CustomerStore(store, fold(), forget=recent.forget)
        with StateWriter(f"redis://127.0.0.1:{node.port}", LAYOUT) as writer:
            writer.write(["b", "c", "d", "e"], [STATE] * 4)
        await customers.merge("e", "d")
        everybody = ["a", "b", "c", "d", "e"]
        await reader.read(everybody)
        assert len(recent) == 5
        await customers.erase("b")
        await customers.consent("c", scoring=False, automated_response=None)
        await customers.consent("e", scoring=None, automated_response=False)  # of d, by its alias
        await reader.read(["c"])
        node.kill()
        await refusal_of(store)
        batch = reader.read_stale(everybody, [FOREVER] * 5)
        assert batch is not None
        assert batch.stale
        assert batch.missing is MissingReason.STORE_AWAY
        assert batch.found.tolist() == [True, False, True, False, False]
        assert batch.slots[0, 0] == 7.0
        assert [row for row, reported in batch.profiles.items() if not reported.scoring] == [2]

    asked(node, question)


def test_what_is_withdrawn_while_redis_is_away_is_not_used_either(node: Node) -> None:
    recent = StaleStateCache(100_000)

    async def question(store: RedisStore) -> None:
        reader = StateReader(store, LAYOUT, recent)
        await reader.read(["a"])
        node.pause()
        with pytest.raises(StoreUnavailableError):
            await CustomerStore(store, fold(), forget=recent.forget).erase("a")
        batch = reader.read_stale(["a"], [FOREVER])
        assert batch is not None
        assert not batch.found.any()
        node.resume()

    asked(node, question)
