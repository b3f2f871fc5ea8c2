"""The log under faults: erasures at the same time, an archiver that is killed, and entries that are missing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from feature_store.archive.mover import move
from feature_store.archive.writer import ArchiveWriter
from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.errors import InputError
from feature_store.loading.load import load_states
from feature_store.offline.store import OfflineStore
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore
from feature_store.online.event_log import EventLog
from feature_store.online.keys import ARCHIVED, LOG, log_key
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder
from feature_store.state.layout import StateLayout
from tests.redis_processes import DURABLE, Node
from tests.waiting import PATIENCE_S

NOW = 1_800_000_000.0
LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=7)])

T = TypeVar("T")


def visit(name: str, event_id: str = "") -> Event:
    return Event(name, "visit", NOW, event_id=event_id)


def with_stores(url: str, number: int, use: Callable[..., Awaitable[T]]) -> T:
    """What ``use`` returns for a number of stores, each with its own connections as in its own server."""

    async def run() -> T:
        connections = [RedisStore(url, PATIENCE_S) for _ in range(number)]
        folder = EventFolder([LAYOUT], Interests(), Rules())
        try:
            return await use(*(CustomerStore(connection, folder, clock=lambda: NOW) for connection in connections))
        finally:
            for connection in connections:
                await connection.close()

    return asyncio.run(run())


def record(url: str, *batches: list[Event]) -> None:
    async def use(store: CustomerStore) -> None:
        for batch in batches:
            await store.record(batch)

    with_stores(url, 1, use)


def entries_with(connection: redis.Redis, *names: str) -> list[int]:
    """Positions of the entries in the log that contain an id."""
    last = int(connection.get(LOG) or 0)
    entries = {at: connection.get(log_key(at)) or b"" for at in range(1, last + 1)}
    return [at for at, entry in entries.items() if any(f'"{name}"'.encode() in entry for name in names)]


def test_erasures_of_one_entry_at_the_same_time_leave_nothing_of_any_customer(clean_redis: str) -> None:
    names = [f"c{number}" for number in range(8)]

    async def round_of(*stores: CustomerStore) -> None:
        await stores[0].record([visit(name) for name in names])
        await asyncio.gather(*(store.erase(name) for store, name in zip(stores, names, strict=True)))

    with redis.Redis.from_url(clean_redis) as connection:
        for _ in range(5):
            with_stores(clean_redis, len(names), round_of)
            assert entries_with(connection, *names) == []


def test_an_archiver_that_is_killed_while_it_removes_entries_leaves_none_behind(
    clean_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(clean_redis, *([visit(f"c{number}")] for number in range(20)))
    with CommandClient(clean_redis) as client, redis.Redis.from_url(clean_redis) as connection:
        unlink = client.redis.unlink

        def killed_halfway(*keys: bytes) -> None:
            unlink(*keys[:7])
            raise KeyboardInterrupt

        monkeypatch.setattr(client.redis, "unlink", killed_halfway)
        try:
            with ArchiveWriter(tmp_path) as archive:
                move(EventLog(client), archive)
        except KeyboardInterrupt:
            monkeypatch.undo()
        with ArchiveWriter(tmp_path) as archive:
            move(EventLog(client), archive)
        assert connection.keys("tm:log:[0-9]*") == []


def test_entries_that_an_earlier_release_left_behind_are_removed_and_no_others(clean_redis: str) -> None:
    record(clean_redis, [visit("a")], [visit("b")], [visit("c")])
    with CommandClient(clean_redis) as client, redis.Redis.from_url(clean_redis) as connection:
        connection.set(ARCHIVED, 2)  # it set the mark first, and was killed before it removed the entries
        assert EventLog(client).remove_archived() == 2
        assert connection.keys("tm:log:[0-9]*") == [log_key(3)]


def load(url: str, folder: Path, *, accept_missing: bool = False) -> None:
    source = Source(attributes="SELECT 'c1' AS customer_id")
    with StateWriter(url, LAYOUT, accept_missing=accept_missing) as writer, OfflineStore(source, [folder]) as store:
        load_states(store, writer, LAYOUT, NOW, archive=folder)


def test_missing_entries_stop_the_archiver_and_a_load_and_are_named(clean_redis: str, tmp_path: Path) -> None:
    record(clean_redis, *([visit(f"c{number}", "e")] for number in range(6)))
    folder = tmp_path / "archive"
    with CommandClient(clean_redis) as client, redis.Redis.from_url(clean_redis) as connection:
        connection.delete(log_key(2), log_key(3), log_key(5))
        with ArchiveWriter(folder) as archive, pytest.raises(InputError, match=r"3 commits .*\(2 to 3, 5\)"):
            move(EventLog(client), archive)
        with pytest.raises(InputError, match=r"\(2 to 3, 5\).*--accept-missing"):
            load(clean_redis, folder)
        assert connection.get(log_key(4)) is not None  # nothing was removed meanwhile
        load(clean_redis, folder, accept_missing=True)
        with ArchiveWriter(folder) as archive:
            assert move(EventLog(client, accept_missing=True), archive) >= 3
        load(clean_redis, folder)


def test_commits_of_an_earlier_release_need_no_entry(clean_redis: str, tmp_path: Path) -> None:
    with CommandClient(clean_redis) as client, redis.Redis.from_url(clean_redis) as connection:
        connection.set(LOG, 3)  # an earlier release wrote none for commits that logged nothing
        connection.set(log_key(2), "[]")
        record(clean_redis, [visit("a")])
        with ArchiveWriter(tmp_path) as archive:
            move(EventLog(client), archive)
            assert archive.position == 4


@pytest.mark.parametrize("torn_bytes", [1, 20, 60])
def test_a_torn_write_to_the_append_only_file_loses_the_torn_commit_alone(tmp_path: Path, torn_bytes: int) -> None:
    """The second start after it matters: Redis then reads what it has appended to the torn file."""
    node = Node(tmp_path, config=DURABLE)
    try:
        for number in range(3):
            record(node.url, [visit("c1", f"whole-{number}")])
            node.kill()
            (file,) = tmp_path.rglob("*.incr.aof")
            size = file.stat().st_size
            node.start()
            record(node.url, [visit("c1", f"torn-{number}")])
            node.kill()
            assert file.stat().st_size > size + torn_bytes
            os.truncate(file, file.stat().st_size - torn_bytes)
            node.start()
        node.kill()
        node.start()
        log = [node.client.get(log_key(at)) or b"" for at in range(1, int(node.client.get(LOG) or 0) + 1)]
        assert [f'"whole-{number}"'.encode() in entry for number, entry in enumerate(log)] == [True] * 3
    finally:
        node.close()
