"""Erased customers stay away: late events, loads during and after the erasure, and erasures that were interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pytest
import redis

from feature_store.__main__ import cli
from feature_store.archive.mover import move
from feature_store.archive.writer import ArchiveWriter
from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.errors import StoreUnavailableError
from feature_store.loading import load as loading
from feature_store.loading.load import LoadSummary, Verification, load_states, verify_states
from feature_store.offline.store import OfflineStore
from feature_store.online import erasure
from feature_store.online.command_client import CommandClient
from feature_store.online.customer_store import CustomerStore, UnknownCustomerError
from feature_store.online.event_log import EventLog
from feature_store.online.keys import LOG, TOMBSTONE_PREFIX, log_key
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.events import Event, Rules
from feature_store.state.folding import ACCEPTED, FORGOTTEN, EventFolder, Outcome, Verdict
from feature_store.state.layout import StateLayout
from tests.conftest import Call
from tests.waiting import PATIENCE_S

NOW = float(int(time.time()))
HOUR = 3600.0
LAYOUT = StateLayout(
    [
        Feature(name="visits", aggregate="count", event="visit", half_life_days=30),
        Feature(name="age", aggregate="attribute"),
    ]
)
TOO_LATE = Outcome(Verdict.REJECTED, FORGOTTEN)

T = TypeVar("T")


class Shop:
    """A source, and a Redis."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.clock = NOW

    def write(self, *customers: str, at: float = NOW - 5 * HOUR) -> None:
        """Make one visit and the age of each customer the source."""
        with duckdb.connect() as connection:
            rows = ", ".join(f"('{name}', {at}, 'visit', '{name}-{at}')" for name in customers)
            connection.execute(
                f"COPY (FROM (VALUES {rows}) AS v(customer_id, t, event_type, event_id)) TO '{self.folder}/e.parquet'"
            )
            rows = ", ".join(f"('{name}', 40)" for name in customers)
            connection.execute(f"COPY (FROM (VALUES {rows}) AS v(customer_id, age)) TO '{self.folder}/c.parquet'")

    @property
    def source(self) -> Source:
        return Source(
            events="SELECT customer_id, make_timestamp((t * 1e6)::BIGINT) AS event_time, event_type, event_id "
            f"FROM '{self.folder}/e.parquet'",
            attributes=f"FROM '{self.folder}/c.parquet'",
        )

    def load(self, **options: Any) -> LoadSummary:
        with OfflineStore(self.source, [self.folder]) as source, StateWriter(self.url, LAYOUT) as writer:
            return load_states(source, writer, LAYOUT, NOW - 4 * HOUR, **options)

    def verify(self) -> Verification:
        with OfflineStore(self.source, [self.folder]) as source, StateWriter(self.url, LAYOUT) as writer:
            return verify_states(source, writer, LAYOUT)

    def states(self, *names: str) -> list[bool]:
        """Whether each customer has a state."""
        with StateWriter(self.url, LAYOUT) as writer:
            return [value is not None for value in writer.read(names)]

    def do(self, use: Callable[[CustomerStore], Awaitable[T]]) -> T:
        async def run() -> T:
            connection = RedisStore(self.url, PATIENCE_S)
            folder = EventFolder([LAYOUT], Interests(), Rules())
            try:
                return await use(CustomerStore(connection, folder, clock=lambda: self.clock))
            finally:
                await connection.close()

        return asyncio.run(run())

    def record(self, *events: Event) -> list[Outcome]:
        return self.do(lambda store: store.record(events))

    def erase(self, name: str) -> None:
        self.do(lambda store: store.erase(name))

    def places_of(self, *names: str) -> list[bytes]:
        """Keys that contain an id, in their name or their value."""
        places = []
        with redis.Redis.from_url(self.url) as connection:
            for key in connection.scan_iter(count=1000):
                value = connection.get(key) or b"" if connection.type(key) == b"string" else b""
                if any(name.encode() in text for name in names for text in (key, value)):
                    places.append(key)
        return places


@pytest.fixture
def shop(tmp_path: Path, clean_redis: str) -> Shop:
    shop = Shop(tmp_path, clean_redis)
    shop.write("ann", "bob", "stays")
    return shop


def visit(name: str, event_id: str = "", at: float = 0.0) -> Event:
    return Event(name, "visit", NOW + at, event_id=event_id)


# --- late events ----------------------------------------------------------------------------------------------------


def test_an_event_from_before_the_erasure_does_not_make_the_customer_anew(shop: Shop) -> None:
    early = visit("ann-4711", "e1", at=-60.0)
    assert shop.record(early, visit("stays")) == [ACCEPTED] * 2
    shop.erase("ann-4711")
    assert shop.record(early, visit("stays", at=1.0)) == [TOO_LATE, ACCEPTED]
    assert shop.record(early) == [TOO_LATE]
    assert shop.places_of("ann-4711") == []


def test_a_customer_who_comes_back_starts_anew_and_events_from_before_stay_away(shop: Shop) -> None:
    early = visit("ann", "e1", at=-60.0)
    shop.record(early)
    shop.do(lambda store: store.merge("cookie", "ann"))
    shop.erase("ann")
    assert shop.record(visit("ann", "e2", at=5.0)) == [ACCEPTED]
    assert shop.record(early) == [TOO_LATE]
    assert shop.record(visit("cookie", "e1", at=-60.0)) == [TOO_LATE]  # every id of an erased customer
    shop.do(lambda store: store.merge("ann", "stays"))
    assert shop.record(early) == [TOO_LATE]
    assert len(shop.do(lambda store: store.get("stays")).profile.counted) == 1


def test_an_event_ahead_of_the_clock_does_not_come_back_either(shop: Shop) -> None:
    ahead = visit("ann", "e1", at=200.0)
    assert shop.record(ahead) == [ACCEPTED]
    shop.erase("ann")
    assert shop.record(ahead) == [TOO_LATE]


def test_consent_given_after_an_erasure_lets_no_earlier_event_in(shop: Shop) -> None:
    shop.record(visit("ann", "e1", at=-60.0))
    shop.erase("ann")
    shop.do(lambda store: store.consent("ann", scoring=True, automated_response=None))
    assert shop.record(visit("ann", "e1", at=-60.0)) == [TOO_LATE]


def test_an_erasure_between_reading_and_writing_an_event_wins(shop: Shop) -> None:
    async def meet(store: CustomerStore) -> list[Outcome]:
        await store.ensure_registered()
        fold = store._view.folder.fold

        def fold_late(*arguments: Any) -> Any:
            monkey.undo()
            changes = fold(*arguments)
            erased.append(asyncio.ensure_future(store.erase("ann")))
            return changes

        erased: list[asyncio.Future[None]] = []
        monkey = pytest.MonkeyPatch()
        monkey.setattr(store._view.folder, "fold", fold_late)
        outcomes = await store.record([visit("ann", f"e{n}", at=-60.0) for n in range(40)])  # it yields in between
        await erased[0]
        return outcomes

    shop.do(meet)
    with pytest.raises(UnknownCustomerError):
        shop.do(lambda store: store.get("ann"))


# --- loads ----------------------------------------------------------------------------------------------------------


def test_a_load_does_not_bring_erased_customers_back(shop: Shop) -> None:
    shop.load()
    assert shop.states("ann", "bob", "stays") == [True] * 3
    shop.do(lambda store: store.consent("ann", scoring=False, automated_response=None))
    shop.erase("ann")
    assert shop.verify().ok
    assert shop.load().customers == 2
    assert shop.states("ann", "bob", "stays") == [False, True, True]
    assert shop.verify().ok
    assert shop.load(shift_to_now=True).customers == 2


def test_a_load_knows_only_what_came_after_the_erasure(shop: Shop) -> None:
    shop.erase("ann")
    assert shop.record(visit("ann", "new", at=10.0)) == [ACCEPTED]
    shop.load()
    assert shop.verify().ok
    with StateWriter(shop.url, LAYOUT) as writer:
        states = LAYOUT.unpack(writer.read(["ann", "bob"]))
    assert states.slots[0, 0] == 1.0
    assert states.slots[0, 1] != states.slots[0, 1]  # without an age: the attributes are of the erased customer
    assert states.slots[1, 1] == 40.0


@pytest.mark.parametrize("archived", [False, True], ids=["no archive", "archive"])
@pytest.mark.parametrize("known", [False, True], ids=["only in the source", "loaded before"])
def test_an_erasure_during_a_load_is_not_undone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, *, archived: bool, known: bool
) -> None:
    names = [f"name-{number:03}" for number in range(40)]
    shop.write(*names)
    if known:
        shop.load()
    if archived:
        with StateWriter(shop.url, LAYOUT) as writer:
            writer.log.announce_archive()
    erased, tombstones = iter(names[1::2]), loading.Loader._tombstones

    def erase_meanwhile(self: loading.Loader, chunk: Sequence[str], *more: Any) -> Any:
        kept = tombstones(self, chunk, *more)
        for name in [next(erased, None), next(erased, None)]:  # after it was read, and before it is written
            if name is not None:
                shop.erase(name)
        return kept

    monkeypatch.setattr(loading, "CHUNK", 8)
    monkeypatch.setattr(loading.Loader, "_tombstones", erase_meanwhile)
    shop.load()
    monkeypatch.undo()
    for name in erased:
        shop.erase(name)
    assert shop.states(*names) == [at % 2 == 0 for at in range(len(names))]
    if not archived:
        assert shop.places_of(*names[1::2]) == []
    assert shop.verify().ok


# --- the log --------------------------------------------------------------------------------------------------------


def commands(url: str) -> int:
    with redis.Redis.from_url(url) as connection:
        return int(connection.info("stats")["total_commands_processed"])


def test_the_cost_of_an_erasure_does_not_depend_on_what_waits_for_the_archive(shop: Shop) -> None:
    def cost(name: str) -> int:
        shop.record(visit(name), visit("stays"))
        before = commands(shop.url)
        shop.erase(name)
        return commands(shop.url) - before

    cost("warm-up")
    few = cost("first")

    async def fill(store: CustomerStore) -> None:
        for number in range(1500):
            await store.record([visit(f"other-{number % 50}")])

    shop.do(fill)
    assert cost("second") <= few + 5
    assert shop.places_of("first", "second") == []


def test_all_entries_of_a_customer_are_reached_through_merges_consents_and_caps(shop: Shop) -> None:
    shop.record(visit("gone-a"), visit("stays"))
    shop.record(visit("gone-b"))
    shop.record(visit("gone-c"))
    shop.do(lambda store: store.merge("gone-a", "gone-b"))
    shop.record(visit("gone-a"), visit("stays"))
    shop.do(lambda store: store.consent("gone-b", scoring=None, automated_response=False))
    shop.do(lambda store: store.merge("gone-b", "gone-c"))
    shop.record(visit("gone-b"))
    shop.record(*(visit("gone-c", f"{number}", at=number / 1000) for number in range(310)))  # the last ones are capped
    shop.record(*(visit("gone-c", f"more {number}") for number in range(3)))
    assert shop.places_of("gone-")
    shop.erase("gone-b")
    assert shop.places_of("gone-") == []


def test_an_erasure_that_was_interrupted_is_completed_by_the_next(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        shop.record(visit("gone-a", f"{number}"), visit("gone-b", f"{number}"))
    shop.do(lambda store: store.merge("gone-a", "gone-b"))

    async def killed(*_: object) -> None:
        raise StoreUnavailableError("killed")

    monkeypatch.setattr(erasure, "_scrub_all", killed)
    with pytest.raises(StoreUnavailableError):
        shop.erase("gone-b")
    monkeypatch.undo()
    assert shop.places_of("gone-")
    shop.erase("gone-a")
    assert shop.places_of("gone-") == []


def test_entries_of_an_earlier_release_are_found_without_links(shop: Shop) -> None:
    shop.record(visit("gone-a"), visit("stays"))
    with redis.Redis.from_url(shop.url) as connection:
        connection.set(log_key(1), f'[["e","gone-a",{NOW},"visit",null,null,null,null,null,null,""]]')
        connection.rename(log_key(1), log_key(3))  # as if there had been more commits before the first of this release
        connection.set(log_key(1), f'[["e","gone-a",{NOW},"visit",null,null,null,null,null,null,""]]')
        connection.set(LOG, 3)
        connection.delete("tm:log:run", "tm:log:history")
    shop.record(visit("gone-a", at=1.0))
    assert len(shop.places_of("gone-a")) >= 3
    shop.erase("gone-a")
    assert shop.places_of("gone-a") == []


def test_tombstones_expire(shop: Shop) -> None:
    shop.erase("ann")
    with redis.Redis.from_url(shop.url) as connection:
        (key,) = connection.keys(TOMBSTONE_PREFIX + b"*")
        assert 399 * 86_400 < connection.ttl(key) <= 400 * 86_400


# --- the proof ------------------------------------------------------------------------------------------------------


def test_the_proof_of_an_erasure_names_every_place_and_no_id(shop: Shop, call: Call, tmp_path: Path) -> None:
    archive, files = tmp_path / "archive", tmp_path / "evidence"
    files.mkdir()

    def prove() -> tuple[object, str]:
        ids = ("--verify", "gone-a", "--verify", "gone-b")
        result = call(cli, "erase", "--redis", shop.url, "--archive", archive, "--search", files, *ids)
        assert "gone-" not in result.out
        return result.code, result.out

    def move_log() -> None:
        with CommandClient(shop.url) as client, ArchiveWriter(archive) as writer:
            move(EventLog(client), writer)

    shop.record(visit("gone-a", "1"), visit("gone-ab", "1"), visit("other"))
    move_log()
    assert prove()[0] == 1
    shop.record(visit("gone-b", "2"))
    shop.do(lambda store: store.merge("gone-a", "gone-b"))
    move_log()
    shop.record(visit("gone-a", "3"))
    (files / "evidence.json").write_text('{"customer": "gone-b"}')
    (files / "list.csv").write_text("customer_id,t\ngone-a,5\n")
    code, out = prove()
    assert code == 1
    for place in ("state", "profile", "log entry 4", "archive file", "aliases", "evidence.json", "list.csv"):
        assert place in out
    shop.erase("gone-a")
    code, out = prove()
    assert code == 1
    assert "waits for the archiver" in out
    assert "profile" not in out
    move_log()
    assert [line.rpartition("/")[2] for line in prove()[1].splitlines()[:-1]] == ["evidence.json", "list.csv"]
    for path in files.iterdir():
        path.unlink()
    assert prove() == (0, "erased: none of 2 ids is found anywhere\n")
