"""A master that Sentinels know, and a cluster: asked, loaded, changed over, and in part refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from feature_store.__main__ import cli
from feature_store.definitions import Feature, Interests
from feature_store.errors import InputError, NotInClusterError, StoreAwayError, StoreUnavailableError
from feature_store.online.commit import Group, Write
from feature_store.online.customer_store import CustomerStore, UnknownCustomerError
from feature_store.online.keys import Keys
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.online.transport.address import parse
from feature_store.online.transport.cluster import Cluster
from feature_store.online.transport.connections import slot_of
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import MissingReason, State, StateLayout
from feature_store.state.profile import Profile
from tests.conftest import Call, Store
from tests.redis_processes import Node, WatchedFiles, await_that, cluster, watched
from tests.waiting import PATIENCE_S

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
KEYS = Keys(LAYOUT.fingerprint)
NAMES = [f"c{i}" for i in range(300)]
EVENT = Event("c1", "visit", 1e9)
TIMEOUT_S = 1.0

T = TypeVar("T")


def packed(visits: float) -> bytes:
    return LAYOUT.pack(State(1e9, np.array([visits])))


def asked(url: str, question: Callable[[RedisStore], Awaitable[T]]) -> T:
    async def ask() -> T:
        store = RedisStore(url, TIMEOUT_S)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(ask())


async def visits(store: RedisStore, *names: str) -> list[float]:
    batch = await StateReader(store, LAYOUT).read(names)
    return [float(value) for value in batch.slots[:, 0]]


async def until(question: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await question()
            except StoreUnavailableError:
                await asyncio.sleep(0.01)


def customers_of(store: RedisStore) -> CustomerStore:
    return CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules(max_lateness_s=1e10)), clock=lambda: 1e9)


def fill(url: str) -> None:
    with StateWriter(url, LAYOUT) as writer:
        writer.write(NAMES, [packed(float(number)) for number in range(len(NAMES))])
        writer.record_load({"as_of": 1e9})


# --- Sentinel -----------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[WatchedFiles]:
    with watched(tmp_path) as result:
        fill(result.url)
        yield result


def test_after_a_failover_the_next_master_is_asked(shop: WatchedFiles) -> None:
    async def question(store: RedisStore) -> None:
        assert await visits(store, "c7", "c9") == [7.0, 9.0]
        await asyncio.to_thread(await_that, lambda: shop.replica.client.dbsize() >= len(NAMES))
        shop.master.kill()
        with pytest.raises(StoreAwayError):
            await visits(store, "c7")
        assert await until(lambda: visits(store, "c7", "c9")) == [7.0, 9.0]
        assert shop.replica.client.info("replication")["role"] == "master"
        (key,) = KEYS.states(["new"])
        await store.commit([Group([Write(key, None, packed(1.0))])])
        assert await visits(store, "new") == [1.0]

    asked(shop.url, question)
    with StateWriter(shop.url, LAYOUT) as writer:
        assert writer.read(["new"]) != [None]


def test_a_master_that_another_has_replaced_is_left_before_it_is_demoted(shop: WatchedFiles) -> None:
    async def question(store: RedisStore) -> None:
        assert await visits(store, "c7") == [7.0]
        await asyncio.to_thread(await_that, lambda: shop.replica.client.dbsize() >= len(NAMES))
        shop.sentinel.client.sentinel_failover("shop")
        await asyncio.to_thread(await_that, lambda: shop.known_master() == shop.replica.port)
        assert shop.master.client.info("replication")["role"] == "master"  # it will be demoted in some seconds
        await store.follow()
        (key,) = KEYS.states(["new"])
        await store.commit([Group([Write(key, None, packed(1.0))])])
        assert shop.replica.client.exists(key)
        assert await visits(store, "c7", "new") == [7.0, 1.0]

    asked(shop.url, question)


def test_a_name_that_the_sentinels_do_not_know_is_unavailable(shop: WatchedFiles) -> None:
    async def question(store: RedisStore) -> None:
        with pytest.raises(StoreAwayError, match="MasterNotFoundError"):
            await store.ping()

    asked(shop.url.replace("/shop", "/other"), question)
    with pytest.raises(StoreUnavailableError), StateWriter(shop.url.replace("/shop", "/other"), LAYOUT):
        pass


# --- cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with cluster(tmp_path_factory.mktemp("cluster"), 3) as result:
        yield result


@pytest.fixture
def cluster_url(nodes: list[Node]) -> str:
    for node in nodes:
        node.client.flushall()
    url = f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}"
    fill(url)
    return url


def test_a_batch_is_one_exchange_with_each_server(nodes: list[Node], cluster_url: str) -> None:
    async def question(store: RedisStore) -> None:
        assert await visits(store, *NAMES) == list(range(len(NAMES)))
        pools = store._servers._pools.values()  # type: ignore[attr-defined]
        assert sorted(len(pool._idle) for pool in pools) == [1, 1, 1]

    asked(cluster_url, question)
    assert all(node.client.dbsize() > len(NAMES) / 5 for node in nodes)


def test_an_alias_leads_to_another_server(cluster_url: str) -> None:
    with StateWriter(cluster_url, LAYOUT) as writer:
        writer.write_profiles(["alias"], [Profile(alias_of="c5").pack()])
    assert asked(cluster_url, lambda store: visits(store, "alias", "c6")) == [5.0, 6.0]


def test_an_empty_cluster_says_so(nodes: list[Node], cluster_url: str) -> None:
    for node in nodes:
        node.client.flushall()

    async def question(store: RedisStore) -> MissingReason:
        return (await StateReader(store, LAYOUT).read(["nobody", "c1"])).missing

    assert asked(cluster_url, question) is MissingReason.NOT_LOADED


def test_load_and_verify_work_in_a_cluster(store: Store, cluster_url: str) -> None:
    here = Store(store.call, store.trained, cluster_url)
    loaded = here("load")
    assert loaded.code == 0, loaded.err
    assert here("load").code == 0
    verified = here("verify")
    assert verified.code == 0, verified.out
    assert "online equals offline" in verified.out


def test_there_is_nothing_to_archive_in_a_cluster(call: Call, cluster_url: str, tmp_path: Path) -> None:
    ended = call(cli, "archive", "--redis", cluster_url, "--folder", tmp_path / "archive", "--once")
    assert ended.is_bad_input
    assert "cluster" in ended.err


def test_consent_and_deletion_work_in_a_cluster(cluster_url: str) -> None:
    async def question(store: RedisStore) -> None:
        customers = customers_of(store)
        await customers.ensure_registered()
        await customers.consent("c3", scoring=False, automated_response=None)
        batch = await StateReader(store, LAYOUT).read(["c3", "c4"])
        assert [row for row, reported in batch.profiles.items() if not reported.scoring] == [0]
        await customers.erase("c3")
        assert not (await StateReader(store, LAYOUT).read(["c3", "c4"])).found[0]
        with pytest.raises(UnknownCustomerError):
            await customers.get("c3")

    asked(cluster_url, question)


def test_of_two_who_change_a_customer_in_a_cluster_one_is_told(cluster_url: str) -> None:
    async def question(store: RedisStore) -> None:
        (key,) = KEYS.states(["c3"])
        (old,) = await store.ask(b"MGET", key)
        change = [Group([Write(key, old, packed(50.0))])]
        assert (await store.commit(change)).conflicts == []
        assert (await store.commit(change)).conflicts == [0]
        assert await visits(store, "c3") == [50.0]

    asked(cluster_url, question)


def test_events_and_merges_are_refused_in_a_cluster(cluster_url: str) -> None:
    async def question(store: RedisStore) -> None:
        customers = customers_of(store)
        with pytest.raises(NotInClusterError):
            await customers.record([EVENT])
        with pytest.raises(NotInClusterError):
            await customers.merge("c1", "c2")

    asked(cluster_url, question)


def test_a_slot_that_moves_is_followed(nodes: list[Node], cluster_url: str) -> None:
    name = next(name for name in NAMES if slot_of(KEYS.states([name])[0]) < 5000)  # the first server's
    (key,) = KEYS.states([name])
    slot = slot_of(key)
    source, target = nodes[0], nodes[1]
    ids = [node.client.execute_command("CLUSTER", "MYID").decode() for node in nodes]

    async def question(store: RedisStore) -> None:
        expected = [float(NAMES.index(name)), 299.0]
        assert await visits(store, name, "c299") == expected
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
        assert await visits(store, name, "c299") == expected  # ASK
        for node in (target, source, nodes[2]):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        assert await visits(store, name, "c299") == expected  # MOVED
        assert store._servers._owners[slot][1] == target.port  # type: ignore[attr-defined]

    try:
        asked(cluster_url, question)
    finally:
        target.client.flushall()
        for node in (source, target, nodes[2]):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[0])


def test_a_server_of_the_cluster_that_hangs_is_an_outage_until_it_answers(nodes: list[Node], cluster_url: str) -> None:
    async def question(store: RedisStore) -> None:
        assert await visits(store, "c1", "c2", "c3", "c4") == [1.0, 2.0, 3.0, 4.0]
        nodes[2].pause()
        try:
            with pytest.raises(StoreAwayError):
                await visits(store, *NAMES)
            assert store.breaker.open
        finally:
            nodes[2].resume()
        assert await until(lambda: visits(store, "c1", "c2")) == [1.0, 2.0]

    asked(cluster_url, question)


def test_a_server_that_is_in_no_cluster_is_told(tmp_path: Path) -> None:
    alone = Node(tmp_path)

    async def question(store: RedisStore) -> None:
        with pytest.raises(StoreAwayError, match="not a cluster"):
            await store.ping()

    try:
        asked(f"redis+cluster://127.0.0.1:{alone.port}", question)
        with pytest.raises(StoreUnavailableError), StateWriter(f"redis+cluster://127.0.0.1:{alone.port}", LAYOUT):
            pass
    finally:
        alone.close()


def test_nothing_is_asked_before_it_is_needed() -> None:
    Cluster(parse("redis+cluster://:secret@nowhere.invalid"), 1.0)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://:secret@one/main?nonsense=1", "redis+cluster://:secret@one?nonsense=1"]
)
def test_an_option_that_does_not_exist_is_refused_without_the_url(url: str) -> None:
    for kind in (lambda: RedisStore(url, 1.0), lambda: StateWriter(url, LAYOUT)):
        with pytest.raises(InputError) as refused:
            kind()
        assert "secret" not in str(refused.value)
