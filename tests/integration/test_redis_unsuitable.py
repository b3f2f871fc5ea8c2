"""A Redis that would lose customers' data, or does not allow what is needed, is refused; a full one still forgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store.archive.mover import move_until_stopped
from feature_store.archive.writer import ArchiveWriter
from feature_store.definitions import Feature, Interests
from feature_store.errors import InputError, StoreAwayError, StoreFullError, StoreUnavailableError
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore, UnknownCustomerError
from feature_store.online.event_log import EventLog
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import State, StateLayout
from service.app import server
from tests.redis_processes import DATA, Node, await_that, cluster, with_store
from tests.waiting import PATIENCE_S

LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])
EVICTS = "set maxmemory-policy noeviction"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    result = Node(tmp_path / "node")
    yield result
    result.close()


def customers_of(store: RedisStore) -> CustomerStore:
    return CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules()))


def assert_refused(url: str, reason: str) -> None:
    """Server and commands refuse to connect."""

    async def act(store: RedisStore) -> None:
        with pytest.raises(StoreAwayError, match=reason):
            await store.ping()
        serving, line = await server.probe(store, customers_of(store))
        assert not serving
        assert reason in line

    with_store(url, act)
    with pytest.raises(InputError, match=reason), CommandClient(url):
        pass


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_evicts_is_refused(node: Node, policy: str) -> None:
    node.client.config_set("maxmemory-policy", policy)
    with_store(node.url, RedisStore.ping)  # without a limit nothing is evicted
    node.client.config_set("maxmemory", "100mb")
    assert_refused(node.url, EVICTS)


def test_a_redis_that_begins_to_evict_is_noticed_by_health_and_used_again_once_it_does_not(node: Node) -> None:
    async def act(store: RedisStore) -> None:
        customers = customers_of(store)
        assert (await server.probe(store, customers))[0]
        node.client.config_set("maxmemory-policy", "allkeys-lru")
        node.client.config_set("maxmemory", "100mb")
        serving, line = await server.probe(store, customers)
        assert not serving
        assert EVICTS in line
        with pytest.raises(StoreAwayError, match=EVICTS):
            await store.ping()
        node.client.config_set("maxmemory-policy", "noeviction")
        async with asyncio.timeout(PATIENCE_S):
            while store.breaker.open:
                store.changed.clear()
                await store.changed.wait()
        assert (await server.probe(store, customers))[0]

    with_store(node.url, act)


def test_the_archiver_stops_when_redis_begins_to_evict(node: Node, tmp_path: Path) -> None:
    class After:
        """Waits for one round, in which Redis begins to evict."""

        rounds = 0

        def wait(self, _seconds: float) -> bool:
            self.rounds += 1
            if self.rounds == 2:
                node.client.config_set("maxmemory-policy", "allkeys-lru")
                node.client.config_set("maxmemory", "100mb")
            return False

    with CommandClient(node.url) as client, ArchiveWriter(tmp_path / "archive") as archive:
        waiting: Any = After()
        with pytest.raises(InputError, match=EVICTS):
            move_until_stopped(EventLog(client), archive, 0.0, waiting)
        assert waiting.rounds == 2


def test_a_server_that_takes_the_place_of_another_is_checked_as_well(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    try:
        with CommandClient(node.url) as client:
            node.kill()
            conf = tmp_path / "node" / "redis.conf"
            conf.write_text(conf.read_text() + "maxmemory 100mb\nmaxmemory-policy allkeys-lru\n")
            node.start()
            with pytest.raises(InputError, match=EVICTS):  # the first call may notice the broken connection only
                await_that(lambda: _answers(client))
    finally:
        node.close()


def _answers(client: CommandClient) -> bool:
    try:
        client.call(client.redis.get, "tm:log")
    except StoreUnavailableError:
        return False
    raise AssertionError("a server that evicts was used")


def test_every_node_of_a_cluster_is_checked(tmp_path: Path) -> None:
    with cluster(tmp_path, 2) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        with_store(url, RedisStore.check)
        with CommandClient(url):
            pass
        nodes[1].client.config_set("maxmemory-policy", "allkeys-lru")
        nodes[1].client.config_set("maxmemory", "100mb")

        async def act(store: RedisStore) -> None:
            with pytest.raises(StoreAwayError, match=EVICTS):
                await store.check()

        with_store(url, act)
        with pytest.raises(InputError, match=EVICTS), CommandClient(url):
            pass


@pytest.mark.parametrize("command", ["MGET", "EVALSHA"])
def test_a_redis_in_which_a_command_is_renamed_is_refused(tmp_path: Path, command: str) -> None:
    node = Node(tmp_path, config=f'{DATA}rename-command {command} ""\n')
    try:
        assert_refused(node.url, f"it does not allow {command}")
    finally:
        node.close()


def test_a_user_who_may_not_run_a_command_is_refused(node: Node) -> None:
    node.client.acl_setuser("limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"])
    url = f"redis://limited:secret@127.0.0.1:{node.port}"
    with_store(url, RedisStore.check)
    node.client.execute_command("ACL", "SETUSER", "limited", "-evalsha")
    assert_refused(url, "it does not allow EVALSHA")
    node.client.execute_command("ACL", "SETUSER", "limited", "+evalsha", "-sadd")

    async def act(store: RedisStore) -> None:
        serving, line = await server.probe(store, customers_of(store))
        assert not serving
        assert "it does not allow SADD" in line

    with_store(url, act)


@pytest.mark.parametrize("durable", [False, True])
def test_erasure_and_consent_work_while_the_memory_is_full(tmp_path: Path, durable: bool) -> None:
    node = Node(tmp_path, config=f"{DATA}appendonly yes\n")

    async def act(store: RedisStore) -> None:
        customers = CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules()), durable=durable)
        await customers.record([Event("erased", "visit", time.time()), Event("other", "visit", time.time())])
        node.client.config_set("maxmemory", 1)
        for current in (customers, CustomerStore(store, EventFolder([LAYOUT], Interests(), Rules()))):  # one is new
            with pytest.raises(StoreFullError):
                await current.record([Event("third", "visit", time.time())])
            await current.erase("erased")
            assert not (await current.consent("other", scoring=False, automated_response=None)).scoring
            assert not (await current.consent("new", scoring=False, automated_response=None)).scoring
        with pytest.raises(UnknownCustomerError):
            await customers.get("erased")
        log = [node.client.get(key) for key in node.client.keys("*log*:*") if node.client.type(key) == b"string"]
        assert not any(b'"erased"' in entry for entry in log if entry is not None)
        serving, line = await server.probe(store, customers)
        assert serving
        assert "scores only" in line

    try:
        with_store(node.url, act)
    finally:
        node.close()


def test_erasure_and_consent_work_while_a_node_of_a_cluster_is_full(tmp_path: Path) -> None:
    with cluster(tmp_path, 2) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        with StateWriter(url, LAYOUT) as writer:
            writer.write(["a", "b", "c"], [LAYOUT.pack(State(1e9, np.array([7.0])))] * 3)

        async def act(store: RedisStore) -> None:
            customers = customers_of(store)
            await customers.ensure_registered()
            for node in nodes:
                node.client.config_set("maxmemory", 1)
            for name in ("a", "b", "c"):
                assert not (await customers.consent(name, scoring=False, automated_response=None)).scoring
                await customers.erase(name)
                with pytest.raises(UnknownCustomerError):
                    await customers.get(name)

        with_store(url, act)
