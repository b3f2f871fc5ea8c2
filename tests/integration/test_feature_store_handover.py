"""A load and live events hand over to each other: nothing counts twice, nothing is dropped, whoever comes first."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest

from feature_store.archive.mover import move
from feature_store.archive.writer import ArchiveWriter
from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.errors import InputError
from feature_store.loading.load import LoadSummary, Verification, load_states, verify_states
from feature_store.offline.store import OfflineStore
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore
from feature_store.online.event_log import EventLog
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import EventFolder, Outcome, Verdict
from feature_store.state.layout import State, StateLayout

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits_1d", aggregate="count", event="visit", half_life_days=1),
    Feature(name="visits_30d", aggregate="count", event="visit", half_life_days=30),
    Feature(name="spend_7d", aggregate="sum", event="purchase", field="amount", half_life_days=7, clip=50.0),
    Feature(name="age", aggregate="attribute"),
]
LAYOUT = StateLayout(FEATURES)
NOW = time.time()
HOUR = 3600.0
CUSTOMERS = [f"c{number:02}" for number in range(40)]
Result = TypeVar("Result")


def history(count: int, end: float, seed: int, prefix: str = "s") -> list[Event]:
    """Events of the last 20 days before ``end``, and one right at it."""
    rng = random.Random(seed)
    result = [
        Event(
            rng.choice(CUSTOMERS),
            rng.choice(["visit", "purchase"]),
            end - (rng.uniform(0, 20 * 24 * HOUR) if number else 0.0),
            round(rng.uniform(-20, 80), 2),
            event_id=f"{prefix}{number}",
        )
        for number in range(count)
    ]
    return sorted(result, key=lambda event: event.event_time)


def recent(count: int, seed: int, *, since: float = NOW - HOUR, prefix: str = "n") -> list[Event]:
    """Live events since a time."""
    rng = random.Random(seed)
    return [
        Event(
            rng.choice(CUSTOMERS),
            rng.choice(["visit", "purchase"]),
            rng.uniform(since, NOW),
            round(rng.uniform(-20, 80), 2),
            event_id=f"{prefix}{number}",
        )
        for number in range(count)
    ]


class Shop:
    """A source on disk, a Redis, an archive, and all that is done with them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.archived: Path | None = None
        self.has_ids = True

    def write(self, events: Sequence[Event]) -> None:
        """Make these the events of the source."""
        rows = [(e.customer_id, e.event_time, e.event_type, e.amount, e.event_id) for e in events]
        columns = [list(column) for column in zip(*rows, strict=True)]
        with duckdb.connect() as connection:
            connection.execute(
                "CREATE TABLE e (customer_id TEXT, t DOUBLE, event_type TEXT, amount DOUBLE, event_id TEXT)"
            )
            connection.execute("INSERT INTO e SELECT unnest(?), unnest(?), unnest(?), unnest(?), unnest(?)", columns)
            connection.execute(f"COPY e TO '{self.folder}/events.parquet' (FORMAT parquet)")
            connection.execute("CREATE TABLE a (customer_id TEXT, age INTEGER)")
            connection.execute(
                "INSERT INTO a SELECT unnest(?), unnest(?)", [CUSTOMERS[:30], [30 + i for i in range(30)]]
            )
            connection.execute(f"COPY a TO '{self.folder}/customers.parquet' (FORMAT parquet)")

    @property
    def source(self) -> Source:
        ids = ", event_id" if self.has_ids else ""
        # Microseconds are what a timestamp holds: t is taken from the number, so that online and offline are the same.
        return Source(
            events=f"SELECT customer_id, make_timestamp_ns((t * 1e9)::BIGINT) AS event_time, event_type, amount{ids} "
            f"FROM '{self.folder}/events.parquet'",
            attributes=f"FROM '{self.folder}/customers.parquet'",
        )

    def load(self, **options: Any) -> LoadSummary:
        with OfflineStore(self.source, [self.folder]) as source, StateWriter(self.url, LAYOUT) as redis:
            return load_states(source, redis, LAYOUT, archive=self.archived, **options)

    def verify(self, **options: Any) -> Verification:
        with OfflineStore(self.source, [self.folder]) as source, StateWriter(self.url, LAYOUT) as redis:
            return verify_states(source, redis, LAYOUT, archive=self.archived, **options)

    def archive(self) -> int:
        """Move the log into the archive."""
        self.archived = self.folder / "archive"
        with CommandClient(self.url) as client, ArchiveWriter(self.archived) as archive:
            return move(EventLog(client), archive)

    def do(self, use: Callable[[CustomerStore], Awaitable[Result]]) -> Result:
        """Use the store as the server does."""

        async def run() -> Result:
            redis = RedisStore(self.url, 5.0)
            try:
                return await use(
                    CustomerStore(redis, EventFolder([LAYOUT], Interests(), Rules(max_lateness_s=400 * 24 * HOUR)))
                )
            finally:
                await redis.close()

        return asyncio.run(run())

    def record(self, events: Sequence[Event]) -> list[Verdict]:
        return [outcome.verdict for outcome in self.do(lambda store: _in_batches(store, events))]

    def state(self, customer_id: str) -> list[float]:
        """The slots of a customer as of their time."""
        with StateWriter(self.url, LAYOUT) as redis:
            return [float(slot) for slot in LAYOUT.unpack(redis.read([customer_id])).slots[0]]


async def _in_batches(store: CustomerStore, events: Sequence[Event]) -> list[Outcome]:
    return [outcome for at in range(0, len(events), 50) for outcome in await store.record(events[at : at + 50])]


@pytest.fixture
def shop(tmp_path: Path, clean_redis: str) -> Shop:
    result = Shop(tmp_path, clean_redis)
    result.write(history(600, NOW - 2 * HOUR, seed=1))
    return result


@pytest.fixture(params=[True, False], ids=["with ids", "without ids"])
def either(request: pytest.FixtureRequest, shop: Shop) -> Shop:
    """A source whose events have ids, and one whose events have none."""
    shop.has_ids = request.param
    return shop


def test_events_after_a_load_are_added_to_it(either: Shop) -> None:
    loaded = either.load()
    assert (loaded.customers, loaded.changed, loaded.removed) == (len(CUSTOMERS), 0, 0)
    assert set(either.record(recent(200, seed=2))) == {Verdict.ACCEPTED}
    assert either.verify().ok


def test_events_before_a_load_stay_whether_archived_or_not(either: Shop) -> None:
    either.record(recent(100, seed=2))
    either.archive()
    either.record(recent(100, seed=3, prefix="m"))
    either.load()
    assert either.verify().ok
    either.record(recent(100, seed=4, prefix="o"))
    either.archive()
    assert either.verify().ok
    before = either.state("c01")
    either.load()  # again, with the same source: nothing is new
    assert either.state("c01") == pytest.approx(before, rel=1e-9)
    assert either.verify().ok


def test_a_load_later_on_takes_over_what_came_in_live(shop: Shop) -> None:
    shop.load()
    live = recent(300, seed=2)
    shop.record(live)
    shop.write([*history(600, NOW - 2 * HOUR, seed=1), *live])  # the shop's tables have them by now
    shop.load()
    assert shop.verify().ok
    alone = shop.verify(as_of=NOW)
    assert (alone.mismatches, alone.missing, alone.extra) == (0, 0, 0)


def test_what_the_load_has_is_a_duplicate_when_it_comes_live_as_well(shop: Shop) -> None:
    shop.load()
    sent = [event for event in history(600, NOW - 2 * HOUR, seed=1) if event.event_time > NOW - 60 * HOUR]
    assert len(sent) > 20
    assert set(shop.record(sent)) == {Verdict.DUPLICATE}
    assert shop.verify().ok
    late = Event("c03", "visit", NOW - 30 * HOUR, event_id="not in the source")
    assert shop.record([late]) == [Verdict.ACCEPTED]
    assert shop.verify().ok


def test_a_source_without_ids_is_taken_to_have_all_up_to_its_time(shop: Shop) -> None:
    shop.has_ids = False
    covered = Event("c03", "visit", NOW - 3 * HOUR, event_id="covered")
    shop.record([covered])
    shop.load()
    assert shop.verify(as_of=NOW).ok  # the source alone: the load had it, as far as anybody can tell
    shop.record([Event("c03", "visit", NOW - 3 * HOUR, event_id="late")])
    assert shop.verify().ok
    assert not shop.verify(as_of=NOW).ok


def test_who_came_in_live_only_stays_and_who_is_not_known_goes(shop: Shop) -> None:
    shop.load()
    shop.record([Event("newcomer", "visit", NOW - 60.0, event_id="1")])
    with StateWriter(shop.url, LAYOUT) as redis:
        redis.write(["stranger"], [LAYOUT.pack(State(NOW, LAYOUT.identity))])
    assert shop.verify().extra == 1
    loaded = shop.load()
    assert (loaded.customers, loaded.removed) == (len(CUSTOMERS) + 1, 1)
    assert shop.verify().ok


def test_an_old_data_set_moved_to_now_keeps_what_comes_in(either: Shop) -> None:
    either.write(history(600, NOW - 3000 * 24 * HOUR, seed=1))
    either.load(shift_to_now=True)
    either.record(recent(100, seed=2, since=NOW - 60))
    assert either.verify().ok
    either.load(shift_to_now=True)
    assert either.verify().ok
    assert either.state("c01")[3] > 0


def test_merges_and_erasures_before_during_and_after(either: Shop) -> None:
    either.record(recent(100, seed=2))
    either.do(lambda store: store.merge("c01", "c02"))
    either.do(lambda store: store.erase("c03"))
    either.archive()
    either.do(lambda store: store.merge("c02", "c04"))
    either.load()
    assert either.verify().ok
    either.record([event for event in recent(100, seed=3, prefix="m") if event.customer_id != "c03"])
    either.do(lambda store: store.merge("c05", "newcomer"))
    either.do(lambda store: store.merge("c06", "c07"))
    result = either.verify()
    assert result.ok, result
    # c01 and c02 are c04, c06 is c07, c05 has another name, and c03 was erased after the events of the source
    assert result.customers == len(CUSTOMERS) - 4


def test_who_does_not_allow_scoring_is_left_alone(shop: Shop) -> None:
    shop.load()
    shop.record([Event("c03", "visit", NOW - 60.0, event_id="1")])
    shop.do(lambda store: store.consent("c03", scoring=False, automated_response=None))
    before = shop.state("c03")
    shop.write(history(700, NOW - HOUR, seed=5))
    loaded = shop.load()
    assert (loaded.withheld, loaded.customers) == (1, len(CUSTOMERS) - 1)
    assert shop.state("c03") == before
    assert shop.verify().ok


def test_a_replay_of_the_source_gives_what_a_load_gives(shop: Shop) -> None:
    events = history(600, NOW - 2 * HOUR, seed=1)
    random.Random(3).shuffle(events)
    shop.record([*events, *events[:200]])
    result = shop.verify(as_of=NOW)
    assert result.ok, result
    assert result.compared == len({event.customer_id for event in events})


def test_the_archive_is_a_source(shop: Shop) -> None:
    events = recent(300, seed=2)
    shop.record(events)
    shop.record([Event("c01", "visit", NOW - 30.0), Event("c01", "visit", NOW - 30.0)])  # without ids: two events
    shop.do(lambda store: store.merge("c01", "c02"))
    shop.archive()
    shop.record(recent(50, seed=3, prefix="m"))
    archived = Source(archive=str(shop.archived))
    layout = StateLayout(FEATURES[:-1])
    with OfflineStore(archived, [shop.folder]) as source, StateWriter(shop.url, layout) as redis:
        load_states(source, redis, layout, archive=shop.archived)
        assert verify_states(source, redis, layout, archive=shop.archived).ok
        states = layout.unpack(redis.read(["c02"]))
    with OfflineStore(shop.source, [shop.folder]) as source, StateWriter(shop.url, LAYOUT) as redis:
        online = LAYOUT.unpack(redis.read(["c02"]))
    moved = layout.advance(states.slots[0], online.as_of[0] - states.as_of[0])
    assert moved == pytest.approx(online.slots[0][:-1], rel=1e-9)


def test_an_archive_that_is_not_named_or_not_the_right_one_is_told(shop: Shop, tmp_path: Path) -> None:
    shop.record(recent(100, seed=2))
    shop.archive()
    shop.archived = None
    with pytest.raises(InputError, match="--archive"):
        shop.load()
    other = tmp_path / "other"
    with ArchiveWriter(other) as archive:
        archive.append([(1, b"[]")])
    shop.archived = other
    with pytest.raises(InputError, match="lacks events"):
        shop.load()
    with (
        CommandClient(shop.url) as client,
        ArchiveWriter(other) as into,
        pytest.raises(InputError, match="name the folder"),
    ):
        move(EventLog(client), into)


def test_an_archive_is_not_taken_for_that_of_another_redis(shop: Shop) -> None:
    shop.record(recent(100, seed=2))
    shop.archive()
    with StateWriter(shop.url, LAYOUT) as redis:
        redis._redis.flushdb()
    with pytest.raises(InputError, match="it belongs to another Redis"):
        shop.archive()


@pytest.mark.parametrize("archiving", [False, True], ids=["log", "archiving meanwhile"])
def test_events_may_come_in_while_a_load_goes_on(either: Shop, archiving: bool) -> None:
    either.load()
    if archiving:
        either.archive()
    stopping = threading.Event()
    sent: list[Verdict] = []

    def send(seed: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            sent.extend(either.record(recent(20, seed=1000 * seed + number, prefix=f"{seed}-{number}-")))
            stopping.wait(0.02)

    def keep() -> None:
        while not stopping.is_set():
            either.archive()
            stopping.wait(0.05)

    threads = [threading.Thread(target=send, args=(seed,)) for seed in (1, 2)]
    threads += [threading.Thread(target=keep)] if archiving else []
    for thread in threads:
        thread.start()
    try:
        # Most loads meet an event of a customer whom they are about to write; on a slow machine not the first ones.
        for _ in range(100):
            if changed := either.load().changed:
                break
        meanwhile = either.verify()
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert changed > 0
    assert meanwhile.ok, meanwhile
    assert set(sent) == {Verdict.ACCEPTED}
    result = either.verify()
    assert result.ok, result
