"""Redis loses commits that are archived: after a failover to a replica that lagged, from a backup, or all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import duckdb
import pytest
import redis

from feature_store.archive.mover import move
from feature_store.archive.reader import ArchiveSnapshot, read_archive
from feature_store.archive.writer import ArchiveWriter
from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.embedded_redis import embedded_redis
from feature_store.erasure_check import traces_of
from feature_store.errors import InputError
from feature_store.loading.load import load_states, verify_states
from feature_store.offline.store import OfflineStore
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore, UnknownCustomerError
from feature_store.online.event_log import EventLog
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import FORGOTTEN, WITHHELD, EventFolder, Outcome, Verdict
from feature_store.state.layout import StateLayout
from tests.waiting import PATIENCE_S

NOW = float(int(time.time()))
LAYOUT = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=30)])

T = TypeVar("T")


class Shop:
    """Redis at one URL after the other, and one archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "archive"
        self.stack = ExitStack()
        self.url = self.stack.enter_context(embedded_redis())

    def do(self, use: Callable[[CustomerStore], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = RedisStore(self.url, PATIENCE_S)
            folder = EventFolder([LAYOUT], Interests(), Rules())
            try:
                return await use(CustomerStore(connection, folder, clock=lambda: NOW))
            finally:
                await connection.close()

        return asyncio.run(run())

    def record(self, *ids: str, at: float = NOW) -> list[Outcome]:
        """Record one visit for each event id; the part before the dash is the customer."""

        async def use(store: CustomerStore) -> list[Outcome]:
            events = [Event(name.partition("-")[0], "visit", at, event_id=name) for name in ids]
            return [outcome for event in events for outcome in await store.record([event])]

        return self.do(use)

    def archive(self, *, new_redis: bool = False) -> int:
        with CommandClient(self.url) as client, ArchiveWriter(self.folder) as archive:
            return move(EventLog(client), archive, new_redis=new_redis)

    def archived(self) -> list[str]:
        """Ids of the archived events, in the order in which they were archived."""

        def use(snapshot: ArchiveSnapshot) -> list[str]:
            with duckdb.connect() as connection:
                rows = connection.execute(f"SELECT event_id FROM ({snapshot.events_sql}) ORDER BY seq, n").fetchall()
            return [name for (name,) in rows]

        return read_archive(self.folder, use)

    def backup(self) -> dict[bytes, bytes]:
        with redis.Redis.from_url(self.url) as connection:
            return {key: connection.dump(key) or b"" for key in connection.scan_iter()}

    def replace(self, backup: dict[bytes, bytes]) -> None:
        """Go on with another Redis that has only what is in the backup."""
        self.stack.close()
        self.url = self.stack.enter_context(embedded_redis())
        with redis.Redis.from_url(self.url) as connection:
            for key, value in backup.items():
                connection.restore(key, 0, value)

    def load(self) -> None:
        with StateWriter(self.url, LAYOUT) as writer, OfflineStore(Source(archive=str(self.folder))) as source:
            load_states(source, writer, LAYOUT, archive=self.folder)
            assert verify_states(source, writer, LAYOUT, archive=self.folder).ok

    def visits(self, name: str) -> float:
        with StateWriter(self.url, LAYOUT) as writer:
            states = LAYOUT.unpack(writer.read([name]))
        return round(float(LAYOUT.advance(states.slots[0], NOW - states.as_of[0])[0]), 6) if states.found[0] else 0.0


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    with shop.stack:
        yield shop


def test_what_a_replica_that_lagged_acknowledges_is_not_taken_for_archived(shop: Shop) -> None:
    shop.record("a-1", "b-1", "c-1")
    shop.archive()
    shop.record("a-2", "b-2")
    backup = shop.backup()
    shop.record("a-3", "b-3", "c-3")  # the replica never gets these
    shop.archive()
    shop.replace(backup)
    shop.record("a-4", "b-4", "c-4", "d-4", "e-4")
    assert shop.archive() == 5
    kept = ["a-1", "b-1", "c-1", "a-2", "b-2", "a-3", "b-3", "c-3"]
    assert shop.archived() == [*kept, "a-4", "b-4", "c-4", "d-4", "e-4"]
    shop.load()
    assert [shop.visits(name) for name in "abcde"] == [4.0, 4.0, 3.0, 1.0, 1.0]
    backup = shop.backup()
    shop.record("a-5")
    shop.archive()
    shop.replace(backup)  # once more
    shop.record("a-6", "b-6")
    shop.archive()
    assert shop.archived()[-4:] == ["e-4", "a-5", "a-6", "b-6"]
    shop.load()
    assert (shop.visits("a"), shop.visits("b")) == (6.0, 5.0)


def test_a_redis_that_was_only_started_again_loses_nothing_and_nothing_is_done(shop: Shop) -> None:
    shop.record("a-1", "b-1")
    shop.archive()
    shop.record("a-2")
    shop.replace(shop.backup())
    shop.record("b-2")
    shop.archive()
    assert shop.archived() == ["a-1", "b-1", "a-2", "b-2"]
    with ArchiveWriter(shop.folder) as archive:
        assert archive.manifest.cuts == ()
        assert len(archive.manifest.epochs) == 2


def test_erasures_consents_and_merges_that_redis_has_lost(shop: Shop) -> None:
    shop.record("erased-1", "back-1", "withheld-1", "granted-1", "x-1", "y-1", "z-1")
    shop.do(lambda store: store.consent("granted", scoring=False, automated_response=None))
    shop.do(lambda store: store.merge("x", "y"))
    shop.archive()
    backup = shop.backup()
    shop.do(lambda store: store.erase("erased"))
    shop.do(lambda store: store.erase("back"))
    shop.do(lambda store: store.consent("withheld", scoring=False, automated_response=False))
    shop.do(lambda store: store.consent("granted", scoring=True, automated_response=None))
    shop.do(lambda store: store.merge("y", "z"))
    shop.archive()
    shop.replace(backup)
    again = shop.record("erased-1", "erased-2", "back-3")  # Redis does not know of the erasures
    assert again == [Outcome(Verdict.DUPLICATE), Outcome(Verdict.ACCEPTED), Outcome(Verdict.ACCEPTED)]
    shop.record("back-2", at=NOW + 1)
    shop.do(lambda store: store.consent("back", scoring=None, automated_response=False))
    shop.do(lambda store: store.merge("z", "y"))  # the other way round: Redis does not know of the first
    shop.archive()
    for name in ("erased", "back"):
        assert shop.visits(name) == 0.0
    assert shop.record("erased-1", "withheld-2") == [
        Outcome(Verdict.REJECTED, FORGOTTEN),
        Outcome(Verdict.REJECTED, WITHHELD),
    ]
    with pytest.raises(UnknownCustomerError):
        shop.do(lambda store: store.get("erased"))
    assert shop.do(lambda store: store.get("granted")).profile.scoring
    assert not shop.do(lambda store: store.get("back")).profile.automated_response
    assert not {"erased-1", "erased-2", "back-1", "back-3"} & set(shop.archived())
    with CommandClient(shop.url) as client:
        assert list(traces_of(client, ["erased"], shop.folder, [])) == []
    shop.load()
    assert (shop.visits("erased"), shop.visits("back"), shop.visits("y")) == (0.0, 1.0, 3.0)


def test_a_redis_that_has_lost_everything_is_followed_only_if_that_is_meant(shop: Shop) -> None:
    shop.record("a-1", "b-1", "withheld-1", "erased-1")
    shop.do(lambda store: store.consent("withheld", scoring=False, automated_response=None))
    shop.do(lambda store: store.erase("erased"))
    shop.archive()
    shop.replace({})
    with pytest.raises(InputError, match="another Redis"):
        shop.archive()
    shop.record(*(f"c-{number}" for number in range(10)))  # more commits than before
    with pytest.raises(InputError, match="--new-redis"):
        shop.archive()
    with pytest.raises(InputError, match="run 'tidemark archive'"):
        shop.load()
    shop.archive(new_redis=True)
    assert shop.record("withheld-2", "erased-1") == [
        Outcome(Verdict.REJECTED, WITHHELD),
        Outcome(Verdict.REJECTED, FORGOTTEN),
    ]
    shop.load()
    assert [shop.visits(name) for name in ("a", "b", "c", "erased")] == [1.0, 1.0, 10.0, 0.0]
    assert shop.archive() >= 1
    assert len(shop.archived()) == 13


def test_a_redis_emptied_while_servers_go_on_is_noticed(shop: Shop) -> None:
    async def use(store: CustomerStore) -> None:
        for number in range(5):
            await store.record([Event("a", "visit", NOW, event_id=f"a-{number}")])
        await asyncio.to_thread(shop.archive)
        with redis.Redis.from_url(shop.url) as connection:
            connection.flushall()
        for number in range(9):
            await store.record([Event("b", "visit", NOW, event_id=f"b-{number}")])

    shop.do(use)
    with pytest.raises(InputError, match="--new-redis"):
        shop.archive()
    shop.archive(new_redis=True)
    assert len(shop.archived()) == 14


def test_an_archive_of_an_earlier_release_is_taken_over(shop: Shop) -> None:
    shop.record("a-1", "b-1")
    shop.do(lambda store: store.merge("a", "b"))
    shop.archive()
    path = shop.folder / "position.json"
    with ArchiveWriter(shop.folder) as archive:
        old = archive.manifest.model_copy(update={"format": 1, "epochs": (), "erasure_key": ""})
    path.write_text(old.model_dump_json(exclude={"epochs", "cuts", "erasure_key"}))
    shop.record("b-2")
    shop.archive()
    with ArchiveWriter(shop.folder) as archive:
        assert (archive.manifest.format, archive.position) == (2, 4)
    assert shop.archived() == ["a-1", "b-1", "b-2"]


def test_an_event_sent_again_after_the_loss_is_counted_once(shop: Shop) -> None:
    shop.record("a-1")
    shop.archive()
    backup = shop.backup()
    shop.record("a-2", "a-3", "a-4")
    shop.archive()
    shop.replace(backup)
    shop.record("a-2")  # before the archiver has noticed
    shop.archive()
    shop.record("a-3")  # before the next load
    shop.load()
    assert shop.visits("a") == 4.0
    assert [outcome.verdict for outcome in shop.record("a-4", "a-2", "a-1")] == [Verdict.DUPLICATE] * 3
    shop.archive()
    assert sorted(shop.archived()) == ["a-1", "a-2", "a-3", "a-4"]
    shop.load()
    assert shop.visits("a") == 4.0
