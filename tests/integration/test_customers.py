"""Customers in a real Redis: recorded from many sides at once, merged, erased, asked for consent; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import redis

from feature_store.definitions import Feature, Interests
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import ArchiveBehindError, StoreUnavailableError
from feature_store.online.commit import Group, Write
from feature_store.online.customer_store import (
    ALREADY,
    CYCLE,
    ITSELF,
    TOO_MANY,
    Customer,
    CustomerStore,
    MergeRefusedError,
    UnknownCustomerError,
)
from feature_store.online.keys import (
    ACTIVE_LAYOUTS,
    ARCHIVED,
    ERASURE_KEY,
    LAYOUTS_VERSION,
    LOG,
    LOG_EPOCHS,
    LOG_RUN,
    STORED_LAYOUTS,
    TOMBSTONE_PREFIX,
    Keys,
    log_key,
    profile_keys,
)
from feature_store.online.state_reader import StateReader
from feature_store.online.state_writer import StateWriter
from feature_store.online.store import RedisStore
from feature_store.state.checksum import with_checksum, without_checksum
from feature_store.state.events import Event, Rules
from feature_store.state.folding import (
    ACCEPTED,
    DUPLICATE,
    FORGOTTEN,
    LOST,
    UNREADABLE,
    WITHHELD,
    EventFolder,
    Outcome,
    Verdict,
)
from feature_store.state.layout import DAY_S, State, StateBatch, StateLayout, needs_profile
from feature_store.state.profile import MAX_ALIASES, Profile, UnreadableProfileError
from tests.waiting import PATIENCE_S

NOW = 1_800_000_000.0
LAYOUT = StateLayout(
    [
        Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
        Feature(name="spend", aggregate="sum", event="purchase", field="amount", half_life_days=30),
        Feature(name="last", aggregate="latest", event="purchase"),
        Feature(name="first", aggregate="earliest", event="visit"),
        Feature(name="income", aggregate="attribute"),
    ]
)
OTHER = StateLayout([Feature(name="visits", aggregate="count", event="visit", half_life_days=8)])
ODD_IDS = ["Müller", "a b", 'say "hi"', "back\\slash", "*", "客户", "tm:log", "x" * 256]

T = TypeVar("T")


@dataclass
class Shop:
    """Stores of customers on connections of their own, and what Redis holds."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    layout: StateLayout = LAYOUT
    timeout_s: float = PATIENCE_S

    def run(self, question: Callable[[CustomerStore], Awaitable[T]]) -> T:
        """The answer of a store."""
        return self.at_once(1, question)

    def at_once(self, stores: int, question: Callable[..., Awaitable[T]]) -> T:
        """The answer of so many stores, each with connections of its own, as in so many servers."""

        async def ask() -> T:
            connections = [RedisStore(self.url, self.timeout_s) for _ in range(stores)]
            fold = EventFolder([self.layout], Interests(), self.rules)
            try:
                return await question(
                    *(CustomerStore(item, fold, clock=lambda: NOW, **self.options) for item in connections)
                )
            finally:
                for item in connections:
                    await item.close()

        return asyncio.run(ask())

    def record(self, *events: Event) -> list[Outcome]:
        return self.run(lambda store: store.record(events))

    def merge(self, given_up: str, stays: str) -> str:
        return self.run(lambda store: store.merge(given_up, stays))

    def refused(self, given_up: str, stays: str) -> str:
        """Why a merge is refused."""
        with pytest.raises(MergeRefusedError) as caught:
            self.merge(given_up, stays)
        return str(caught.value.args[0])

    def erase(self, name: str) -> None:
        self.run(lambda store: store.erase(name))

    def consent(self, name: str, scoring: bool | None = None, response: bool | None = None) -> Profile:
        return self.run(lambda store: store.consent(name, scoring, response))

    def get(self, name: str) -> Customer:
        return self.run(lambda store: store.get(name))

    def slots(self, name: str) -> list[float]:
        """A customer's slots as of the test's now."""
        states = self.get(name).states
        assert states.valid.all()
        return [float(n) for n in LAYOUT.advance(states.slots[0], NOW - states.as_of[0])]

    def read(self, *names: str) -> StateBatch:
        """As the server reads states for a score."""

        async def ask() -> StateBatch:
            store = RedisStore(self.url, 5.0)
            try:
                return await StateReader(store, self.layout).read(names)
            finally:
                await store.close()

        return asyncio.run(ask())

    def everything(self) -> dict[bytes, bytes]:
        """All keys and what they hold, as bytes."""
        with redis.Redis.from_url(self.url) as connection:
            return {key: connection.dump(key) or b"" for key in connection.scan_iter(count=1000)}

    def contents(self) -> dict[bytes, bytes]:
        """All keys, and in plain bytes what they hold (Redis may squeeze what it dumps)."""
        with redis.Redis.from_url(self.url) as connection:
            result = {}
            for key in connection.scan_iter(count=1000):
                kind = connection.type(key)
                if kind == b"string":
                    result[key] = connection.get(key) or b""
                else:
                    result[key] = b"|".join(connection.smembers(key) if kind == b"set" else [])
            return result

    def set(self, key: bytes, value: bytes) -> None:
        with redis.Redis.from_url(self.url) as connection:
            connection.set(key, value)

    def log(self) -> list[list[Any]]:
        """All items of the log in the order of the commits, except the links between them."""
        contents = self.contents()
        position = int(contents.get(LOG, b"0"))
        entries = [contents.get(log_key(at), b"[]") for at in range(1, position + 1)]
        return [item for entry in entries for item in json.loads(entry) if item[0] != "p"]


@pytest.fixture
def shop(clean_redis: str) -> Shop:
    return Shop(clean_redis)


def visit(name: str = "c", event_id: str = "", at: float = 0.0, **more: Any) -> Event:
    return Event(name, "visit", NOW + at, event_id=event_id, **more)


def purchase(name: str, amount: float, at: float = 0.0, **more: Any) -> Event:
    return Event(name, "purchase", NOW + at, amount, **more)


def state_key(name: str, layout: StateLayout = LAYOUT) -> bytes:
    return Keys(layout.fingerprint).states([name])[0]


def record_key(name: str) -> bytes:
    return profile_keys([name])[0]


# --- recording ------------------------------------------------------------------------------------------------------


def test_an_event_is_in_the_next_score_and_in_the_log(shop: Shop) -> None:
    assert shop.record(purchase("c", 12.5, event_id="e", item_id="lamp", channel="web", text="nice")) == [ACCEPTED]
    batch = shop.read("c")
    assert (batch.as_of[0], batch.slots[0, 1]) == (NOW, 12.5)
    assert shop.log() == [["e", "c", NOW, "purchase", 12.5, None, "lamp", "web", "e", None, ""]]


@pytest.mark.parametrize("name", ODD_IDS)
def test_any_id_a_customer_may_have_can_be_recorded_merged_and_erased(shop: Shop, name: str) -> None:
    shop.record(visit(name, name), visit("other"))
    assert shop.slots(name)[0] == 1.0
    assert shop.record(visit(name, name)) == [DUPLICATE]
    assert shop.merge("other", name) == name
    assert shop.slots("other")[0] == 2.0
    shop.erase(name)
    with pytest.raises(UnknownCustomerError):
        shop.get(name)
    left = {
        key: value
        for key, value in shop.contents().items()
        if key not in {STORED_LAYOUTS, ACTIVE_LAYOUTS, LAYOUTS_VERSION, LOG_RUN, LOG_EPOCHS, ERASURE_KEY}
        and not key.startswith(TOMBSTONE_PREFIX)
    }
    assert left == {LOG: b"3", log_key(1): b"[]", log_key(2): b"[]", log_key(3): b"[]"}


def test_events_are_folded_into_a_state_that_was_loaded(shop: Shop) -> None:
    with StateWriter(shop.url, LAYOUT) as writer:
        writer.write(["c"], [LAYOUT.pack(State(NOW - DAY_S, np.array([4.0, 0.0, -np.inf, -5.0, 30.0])))])
    shop.record(visit("c"))
    assert shop.slots("c")[0] == pytest.approx(1 + 4 * 2 ** (-1 / 7))
    assert shop.slots("c")[3:] == [-5.0 - DAY_S, 30.0]


def test_a_batch_of_many_customers_is_one_commit_that_all_of_its_values_name(shop: Shop) -> None:
    shop.record(*(visit(f"c{n}") for n in range(50)))
    contents = shop.contents()
    assert contents[LOG] == b"1"
    for n in range(50):
        for key in (state_key(f"c{n}"), record_key(f"c{n}")):
            assert contents[key][8:16] == (1).to_bytes(8, "little")
    shop.record(visit("c7"))
    contents = shop.contents()
    assert contents[state_key("c7")][8:16] == contents[record_key("c7")][8:16] == (2).to_bytes(8, "little")
    assert contents[state_key("c8")][8:16] == (1).to_bytes(8, "little")


def test_the_log_has_exactly_what_was_accepted(shop: Shop) -> None:
    shop.rules = Rules(cap_hour=2)
    shop.consent("no", scoring=False)
    outcomes = shop.record(visit("c", "1"), visit("c", "1"), visit("no", "2"), visit("c", "3"), visit("c", "4"))
    assert [o.verdict for o in outcomes] == [
        *(Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.REJECTED, Verdict.ACCEPTED, Verdict.ACCEPTED)
    ]
    assert [(item[8], item[-1]) for item in shop.log() if item[0] == "e"] == [("1", ""), ("3", ""), ("4", "capped")]
    assert shop.record(visit("c", "1"), visit("no", "2")) == [DUPLICATE, Outcome(Verdict.REJECTED, WITHHELD)]
    assert len(shop.log()) == 4


def test_an_unreadable_customer_is_refused_and_the_others_are_recorded(shop: Shop) -> None:
    shop.set(record_key("torn"), b"tr\1\4")
    shop.set(state_key("foreign"), b"x" * 64)
    assert shop.record(visit("a"), visit("torn"), visit("foreign"), visit("b")) == [
        *(ACCEPTED, Outcome(Verdict.REJECTED, UNREADABLE), Outcome(Verdict.REJECTED, UNREADABLE), ACCEPTED)
    ]
    assert shop.contents()[record_key("torn")] == b"tr\1\4"
    assert [item[1] for item in shop.log()] == ["a", "b"]


# --- a profile that was lost ----------------------------------------------------------------------------------------


@pytest.fixture
def lost(shop: Shop) -> Shop:
    """A customer ``c`` who withheld consent after some events, and whose profile Redis has evicted."""
    shop.record(visit("c", "e1"), visit("other", "e2"))
    shop.consent("c", scoring=False)
    with redis.Redis.from_url(shop.url) as connection:
        connection.delete(record_key("c"))
    return shop


def test_without_its_profile_a_customer_has_no_score_and_takes_no_events(lost: Shop) -> None:
    before = lost.contents()
    batch = lost.read("other", "c")
    assert (batch.found.tolist(), batch.valid.tolist()) == ([True, True], [True, False])
    assert lost.read("c").valid.tolist() == [False]
    assert lost.record(visit("c", "e3"), visit("c", "e1")) == [Outcome(Verdict.REJECTED, LOST)] * 2
    for use in (lambda: lost.get("c"), lambda: lost.merge("c", "other"), lambda: lost.merge("other", "c")):
        with pytest.raises(UnreadableProfileError):
            use()
    assert lost.contents() == before


def test_a_new_consent_ends_it_and_allows_only_what_it_names(lost: Shop) -> None:
    assert not lost.consent("c", scoring=True).automated_response
    assert lost.read("c").valid.tolist() == [True]
    assert lost.record(visit("c", "e1")) == [Outcome(Verdict.REJECTED, FORGOTTEN)]  # it may have been counted
    assert lost.record(visit("c", "e3", 1.0)) == [ACCEPTED]
    assert lost.slots("c")[0] == pytest.approx(2.0, rel=1e-4)


def test_erasing_it_finds_all_of_its_log_entries(lost: Shop) -> None:
    lost.erase("c")
    assert [item[1] for item in lost.log() if item[0] == "e"] == ["other"]
    assert b'"c"' not in b"".join(value for key, value in lost.contents().items() if key.startswith(b"tm:log:"))
    with pytest.raises(UnknownCustomerError):
        lost.get("c")


def test_every_way_to_a_profile_makes_the_state_say_so(shop: Shop) -> None:
    def flagged(name: str) -> bool:
        return needs_profile(without_checksum(state_key(name), shop.contents()[state_key(name)]))

    with StateWriter(shop.url, LAYOUT) as writer:
        loaded = LAYOUT.pack(State(NOW - DAY_S, np.array([4.0, 0.0, -np.inf, -5.0, 30.0])))
        writer.write(["loaded", "asked", "stays", "given-up"], [loaded] * 4)
    shop.record(visit("seen"))
    shop.consent("asked", scoring=False)
    shop.merge("given-up", "stays")
    assert [flagged(name) for name in ("loaded", "seen", "asked", "stays")] == [False, True, True, True]
    assert shop.slots("asked") == shop.slots("loaded")


def test_a_consent_and_a_load_at_once_leave_a_state_that_says_so(shop: Shop) -> None:
    state = Write(state_key("c"), None, LAYOUT.pack(State(NOW, np.array([4.0, 0.0, -np.inf, -5.0, 30.0]))))

    async def load_after_reading(store: CustomerStore, connection: RedisStore) -> None:
        values, is_first = connection.values, True

        async def read(
            keys: Sequence[bytes], budget_s: float | None = None, *, urgent: bool = False
        ) -> list[bytes | None]:
            nonlocal is_first
            result = await values(keys, budget_s, urgent=urgent)
            if is_first and state_key("c") in keys:
                is_first = False
                await connection.commit([Group([state])])
            return result

        connection.values = read  # type: ignore[method-assign]  # what a load does between reading and writing
        await store.consent("c", scoring=False, automated_response=None)

    async def run() -> None:
        connection = RedisStore(shop.url, PATIENCE_S)
        try:
            folder = EventFolder([LAYOUT], Interests(), Rules())
            await load_after_reading(CustomerStore(connection, folder, clock=lambda: NOW), connection)
        finally:
            await connection.close()

    asyncio.run(run())
    with StateWriter(shop.url, LAYOUT) as writer:
        assert needs_profile(writer.read(["c"])[0])


# --- many at once ---------------------------------------------------------------------------------------------------


def test_however_many_write_at_once_nothing_is_lost(shop: Shop) -> None:
    writers, rounds = 8, 12

    async def write(*stores: CustomerStore) -> None:
        async def one(number: int, store: CustomerStore) -> None:
            for turn in range(rounds):
                ours = [visit("c", f"{number}-{turn}", -number), purchase("c", 1.0), visit(f"own-{number}")]
                assert await store.record(ours) == [ACCEPTED] * 3

        await asyncio.gather(*(one(number, store) for number, store in enumerate(stores)))

    shop.at_once(writers, write)
    result = shop.get("c")
    assert shop.slots("c")[:2] == pytest.approx([writers * rounds] * 2, rel=1e-4)
    assert len(result.profile.counted) == 2 * writers * rounds
    assert len(shop.log()) == 3 * writers * rounds
    for number in range(writers):
        assert shop.slots(f"own-{number}")[0] == rounds


def test_the_same_batch_sent_by_several_at_once_counts_once(shop: Shop) -> None:
    batch = [visit(f"c{n % 3}", f"e{n}") for n in range(12)]

    async def send(*stores: CustomerStore) -> list[list[Outcome]]:
        return await asyncio.gather(*(store.record(batch) for store in stores))

    outcomes = shop.at_once(6, send)
    for at in range(len(batch)):
        assert sorted(single[at].verdict.value for single in outcomes) == ["accepted"] + ["duplicate"] * 5
    assert [shop.slots(f"c{n}")[0] for n in range(3)] == [4.0] * 3
    assert sorted(item[8] for item in shop.log()) == sorted(event.event_id for event in batch)


def test_events_merges_and_consent_at_once_meet_in_one_customer(shop: Shop) -> None:
    async def meet(*stores: CustomerStore) -> None:
        async def write(store: CustomerStore, name: str) -> None:
            for turn in range(10):
                assert await store.record([visit(name, f"{name}-{turn}")]) == [ACCEPTED]

        async def merge(store: CustomerStore) -> None:
            await asyncio.sleep(0.005)
            await store.merge("a", "b")
            await store.merge("b", "c")

        async def consent(store: CustomerStore) -> None:
            for _ in range(5):
                await store.consent("a", None, False)  # noqa: FBT003  # as the store has it

        await asyncio.gather(
            *(write(store, name) for store, name in zip(stores, "abc", strict=False)),
            merge(stores[3]),
            consent(stores[4]),
        )

    shop.at_once(5, meet)
    assert [shop.slots(name)[0] for name in "abc"] == [30.0] * 3
    assert shop.get("a").customer_id == "c"
    assert shop.get("c").profile.automated_response is False
    assert sorted(shop.get("c").profile.aliases) == ["a", "b"]


# --- merging --------------------------------------------------------------------------------------------------------


def test_a_merge_adds_up_two_states_exactly(shop: Shop) -> None:
    ours = [visit("a", at=-DAY_S), purchase("a", 3.0, -2 * DAY_S), visit("a")]
    yours = [visit("b", at=-1.5 * DAY_S), purchase("b", 5.0), purchase("b", 7.0, -DAY_S)]
    shop.record(*ours, *yours)
    shop.record(*(Event("one", e.event_type, e.event_time, e.amount) for e in (*ours, *yours)))
    assert shop.merge("a", "b") == "b"
    assert shop.slots("b") == pytest.approx(shop.slots("one"), rel=1e-12, nan_ok=True)
    record, item = shop.get("b").profile, shop.get("one").profile
    assert (record.first_seen, record.last_seen, len(record.counted)) == (item.first_seen, item.last_seen, 6)
    assert shop.log()[-1] == ["m", "a", "b"]


def test_the_id_that_was_given_up_leads_to_the_other_from_then_on(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"))
    shop.merge("a", "b")
    assert state_key("a") not in shop.contents()
    assert shop.record(visit("a"), visit("b"), visit("a")) == [ACCEPTED] * 3
    np.testing.assert_array_equal(shop.slots("a"), shop.slots("b"))
    assert shop.slots("a")[0] == 5.0
    assert (shop.get("a").customer_id, shop.get("b").profile.aliases) == ("b", ["a"])
    assert shop.consent("a", scoring=False).scoring is False
    assert shop.get("b").profile.scoring is False


@pytest.mark.parametrize("known", ["a", "b"])
def test_either_of_two_may_be_unknown(shop: Shop, known: str) -> None:
    shop.record(visit(known, "e"), purchase(known, 5.0, -DAY_S))
    before = shop.slots(known)
    assert shop.merge("a", "b") == "b"
    np.testing.assert_array_equal(shop.slots("b"), before)
    np.testing.assert_array_equal(shop.slots("a"), before)
    assert shop.record(visit("a", "e"), visit("b", "e")) == [DUPLICATE] * 2


def test_two_who_are_unknown_become_one_before_the_first_event(shop: Shop) -> None:
    assert shop.merge("a", "b") == "b"
    assert not shop.read("a", "b").found.any()
    shop.record(visit("a"), visit("b"))
    assert shop.slots("b")[0] == 2.0


def test_a_chain_of_merges_is_one_step_long(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"), visit("c"), visit("d"))
    for given_up, stays in (("a", "b"), ("b", "c"), ("c", "d")):
        assert shop.merge(given_up, stays) == stays
    contents = shop.contents()
    for name in "abc":
        assert Profile.unpack(without_checksum(record_key(name), contents[record_key(name)])).alias_of == "d"
        assert state_key(name) not in contents
    assert sorted(shop.get("a").profile.aliases) == ["a", "b", "c"]
    assert shop.slots("a")[0] == 4.0


def test_into_an_alias_is_into_the_customer_it_belongs_to(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"), visit("c"))
    shop.merge("b", "c")
    assert shop.merge("a", "b") == "c"
    assert shop.slots("a")[0] == 3.0
    key = record_key("a")
    assert Profile.unpack(without_checksum(key, shop.contents()[key])).alias_of == "c"


def test_to_repeat_a_merge_changes_nothing(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"), visit("c"))
    shop.merge("a", "b")
    before = shop.everything()
    assert shop.merge("a", "b") == "b"
    assert shop.everything() == before
    shop.merge("b", "c")
    before = shop.everything()
    for given_up, stays in (("a", "b"), ("a", "c"), ("b", "c"), ("b", "a")):
        assert shop.merge(given_up, stays) == "c"
    assert shop.everything() == before


@pytest.mark.parametrize(
    ("given_up", "stays", "reason"),
    [
        ("a", "a", ITSELF),
        ("nobody", "nobody", ITSELF),
        ("b", "a", CYCLE),
        ("a", "c", ALREADY),
        ("a", "nobody", ALREADY),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused_and_changes_nothing(
    shop: Shop, given_up: str, stays: str, reason: str
) -> None:
    shop.record(visit("a"), visit("b"), visit("c"))
    shop.merge("a", "b")
    before = shop.everything()
    assert shop.refused(given_up, stays) == reason
    assert shop.everything() == before


def test_an_id_that_too_many_share_is_no_customers(shop: Shop) -> None:
    key = record_key("b")
    shop.set(key, with_checksum(key, Profile(aliases=[f"x{n}" for n in range(MAX_ALIASES - 1)]).pack()))
    shop.merge("a", "b")
    before = shop.everything()
    assert shop.refused("c", "b") == TOO_MANY
    assert shop.everything() == before


@pytest.mark.parametrize("mine", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("yours", [(True, True), (False, True), (True, False), None])
def test_consent_after_a_merge_is_that_of_the_stricter_one(
    shop: Shop, mine: tuple[bool, bool], yours: tuple[bool, bool] | None
) -> None:
    shop.record(visit("a"), visit("b"))
    shop.consent("a", *mine)
    if yours is not None:
        shop.consent("b", *yours)
    shop.merge("a", "b")
    other = yours or (True, True)
    record = shop.get("b").profile
    assert (record.scoring, record.automated_response) == (mine[0] and other[0], mine[1] and other[1])


def test_an_event_counted_under_one_id_is_a_duplicate_under_both(shop: Shop) -> None:
    shop.record(visit("a", "x"), visit("b", "y"))
    shop.merge("a", "b")
    for name in ("a", "b"):
        assert shop.record(visit(name, "x"), visit(name, "y")) == [DUPLICATE] * 2
    assert shop.slots("b")[0] == 2.0


def test_the_same_new_event_under_both_ids_in_one_batch_counts_once(shop: Shop) -> None:
    shop.merge("a", "b")
    assert shop.record(visit("a", "x"), visit("b", "x"), visit("a", "y")) == [ACCEPTED, DUPLICATE, ACCEPTED]
    assert shop.slots("b")[0] == 2.0


@pytest.mark.parametrize("torn", ["a", "b"])
@pytest.mark.parametrize("of", [state_key, record_key])
def test_what_cannot_be_read_is_not_merged(shop: Shop, torn: str, of: Callable[[str], bytes]) -> None:
    shop.record(visit("a"), visit("b"))
    shop.set(of(torn), b"tr torn")
    before = shop.everything()
    with pytest.raises(UnreadableProfileError):
        shop.merge("a", "b")
    assert shop.everything() == before


def test_two_merges_that_would_make_a_circle_meet_and_one_is_refused(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"))

    async def meet(one: CustomerStore, other: CustomerStore) -> Sequence[object]:
        return await asyncio.gather(one.merge("a", "b"), other.merge("b", "a"), return_exceptions=True)

    result = shop.at_once(2, meet)
    assert sorted(type(outcome).__name__ for outcome in result) == ["MergeRefusedError", "str"]
    np.testing.assert_array_equal(shop.slots("a"), shop.slots("b"))
    assert shop.slots("a")[0] == 2.0


# --- erasing --------------------------------------------------------------------------------------------------------

ERASED = "gone-4711"


def with_a_past(shop: Shop) -> None:
    """A customer with states of two layouts, a merged id, consent and events, beside another one."""
    shop.record(visit(ERASED, "e1", item_id="lamp"), visit("stays", "e1"))
    shop.record(visit("cookie-0815", "e2"))
    shop.merge("cookie-0815", ERASED)
    shop.record(visit("cookie-0815", "e3"), purchase(ERASED, 3.0), visit("stays", "e2"))
    shop.consent(ERASED, response=False)
    other = Shop(shop.url, layout=OTHER)
    other.run(lambda store: store.ensure_registered())
    other.record(visit(ERASED, "e4"))
    with StateWriter(shop.url, OTHER) as writer:  # loaded before the two were merged
        writer.write(["cookie-0815"], [OTHER.pack(State(NOW, np.array([1.0])))])


def places_of(shop: Shop, *names: str) -> list[bytes]:
    """Keys that hold an id, in their name or their value."""
    return [
        key
        for key, value in shop.contents().items()
        if any(name.encode() in place for name in names for place in (key, value))
    ]


@pytest.mark.parametrize("name", [ERASED, "cookie-0815"])
def test_nothing_of_an_erased_customer_is_left_anywhere(shop: Shop, name: str) -> None:
    shop.run(lambda store: store.ensure_registered())
    with_a_past(shop)
    assert len(places_of(shop, ERASED, "cookie-0815")) >= 9
    stays = {key: shop.contents()[key] for key in (state_key("stays"), record_key("stays"))}
    shop.erase(name)
    assert places_of(shop, ERASED, "cookie-0815") == []
    assert stays.items() <= shop.contents().items()
    assert [item[:2] + item[8:9] for item in shop.log()] == [["e", "stays", "e1"], ["e", "stays", "e2"]]


def test_where_there_is_an_archive_it_is_told_and_nothing_else_is_left(shop: Shop) -> None:
    shop.run(lambda store: store.ensure_registered())
    with_a_past(shop)
    shop.set(ARCHIVED, b"0")
    shop.erase(ERASED)
    position = int(shop.contents()[LOG])
    assert places_of(shop, ERASED, "cookie-0815") == [log_key(position)]
    assert json.loads(shop.contents()[log_key(position)]) == [["d", ["cookie-0815", ERASED], NOW]]
    assert [item[:2] for item in shop.log()][:-1] == [["e", "stays"], ["e", "stays"]]


def test_what_the_archive_has_already_is_not_looked_through_again(shop: Shop) -> None:
    shop.record(visit("c", "1"), visit("stays", "1"))
    shop.record(visit("c", "2"), visit("stays", "2"))
    shop.set(ARCHIVED, b"1")  # the archiver has it, and is about to remove it here
    before = shop.contents()[log_key(1)]
    shop.erase("c")
    assert shop.contents()[log_key(1)] == before
    assert {item[1] for item in json.loads(shop.contents()[log_key(2)])} == {"stays"}


def without_empty_entries(shop: Shop) -> dict[bytes, bytes]:
    """What Redis holds, except the number of commits and those that logged nothing."""
    contents = shop.contents().items()
    return {
        key: value for key, value in contents if key != LOG and value != b"[]" and not key.startswith(TOMBSTONE_PREFIX)
    }


def test_to_erase_again_changes_nothing(shop: Shop) -> None:
    with_a_past(shop)
    shop.erase(ERASED)
    before = without_empty_entries(shop)
    shop.erase(ERASED)
    shop.erase("cookie-0815")
    shop.erase("nobody")
    assert without_empty_entries(shop) == before


@pytest.mark.parametrize("name", [ERASED, "cookie-0815"])
def test_a_later_event_starts_from_nothing(shop: Shop, name: str) -> None:
    with_a_past(shop)
    shop.erase(ERASED)
    with pytest.raises(UnknownCustomerError):
        shop.get(name)
    assert shop.record(visit(name, "e1", at=1.0)) == [ACCEPTED]
    result = shop.get(name)
    assert result.states.slots[0, 0] == 1.0
    assert result.customer_id == name
    assert (result.profile.automated_response, result.profile.aliases, result.profile.channels) == (True, [], {})
    assert len(result.profile.counted) == 1


def test_other_ids_of_which_the_erased_one_is_a_part_stay(shop: Shop) -> None:
    shop.record(*(visit(name) for name in ("c", "c1", "1c", "c:c", "C", '"c"')))
    shop.erase("c")
    assert [item[1] for item in shop.log()] == ["c1", "1c", "c:c", "C", '"c"']
    for name in ("c1", "1c", "c:c", "C", '"c"'):
        assert shop.slots(name)[0] == 1.0


@pytest.mark.parametrize("of", [state_key, record_key])
def test_what_cannot_be_read_can_be_erased(shop: Shop, of: Callable[[str], bytes]) -> None:
    shop.record(visit("unread"), visit("stays"))
    shop.set(of("unread"), b"tr torn")
    shop.erase("unread")
    assert places_of(shop, "unread") == []
    assert shop.record(visit("unread", at=1.0)) == [ACCEPTED]


def test_an_erasure_among_many_writers_leaves_only_what_came_after_it(shop: Shop) -> None:
    async def meet(*stores: CustomerStore) -> None:
        async def write(number: int, store: CustomerStore) -> None:
            for turn in range(15):
                await store.record([visit("c", f"{number}-{turn}")])

        async def erase(store: CustomerStore) -> None:
            for _ in range(4):
                await asyncio.sleep(0.004)
                await store.erase("c")

        await asyncio.gather(*(write(*single) for single in enumerate(stores[1:])), erase(stores[0]))

    shop.set(ARCHIVED, b"0")
    shop.at_once(4, meet)
    log = shop.log()
    last = max(at for at, item in enumerate(log) if item[0] == "d")
    assert all(item[0] == "d" for item in log[:last])  # what was before is gone from the log
    after = [item for item in log[last + 1 :] if item[0] == "e"]
    if after:
        assert shop.slots("c")[0] == len(after)
        assert len(shop.get("c").profile.counted) == len(after)
    else:
        assert record_key("c") not in shop.contents()


# --- consent and showing --------------------------------------------------------------------------------------------


def test_consent_is_kept_as_it_was_where_nothing_is_said(shop: Shop) -> None:
    for scoring, response, expected in (
        (None, False, (True, False)),
        (False, None, (False, False)),
        (None, True, (False, True)),
        (True, None, (True, True)),
    ):
        record = shop.consent("c", scoring, response)
        assert (record.scoring, record.automated_response) == expected
        assert shop.get("c").profile == record


def test_consent_withdrawn_stops_events_and_leaves_the_state_until_it_is_given_again(shop: Shop) -> None:
    shop.record(visit("c"))
    shop.consent("c", scoring=False)
    assert shop.record(visit("c")) == [Outcome(Verdict.REJECTED, WITHHELD)]
    assert shop.slots("c")[0] == 1.0
    shop.consent("c", scoring=True)
    assert shop.record(visit("c")) == [ACCEPTED]
    assert shop.slots("c")[0] == 2.0


def test_nobody_is_shown_who_is_unknown_and_nothing_that_cannot_be_read(shop: Shop) -> None:
    with pytest.raises(UnknownCustomerError):
        shop.get("c")
    for key, value in ((state_key("c"), b"torn"), (record_key("c"), b"torn")):
        shop.record(visit("c"))
        shop.set(key, value)
        with pytest.raises(UnreadableProfileError):
            shop.get("c")
        with redis.Redis.from_url(shop.url) as connection:
            connection.delete(state_key("c"), record_key("c"))


def test_who_has_a_record_and_no_state_is_shown_without_one(shop: Shop) -> None:
    shop.consent("c", response=False)
    result = shop.get("c")
    assert not result.states.found.any()
    assert result.profile.automated_response is False


# --- reading for scores ---------------------------------------------------------------------------------------------


def test_an_alias_is_scored_as_the_customer_it_belongs_to(shop: Shop) -> None:
    shop.record(visit("a", item_id="lamp"), visit("b"), visit("plain"))
    shop.merge("a", "b")
    batch = shop.read("a", "plain", "b", "nobody", "a")
    assert batch.found.tolist() == [True, True, True, False, True]
    assert batch.slots[:, 0].tolist() == [2.0, 1.0, 2.0, 0.0, 2.0]
    assert sorted(batch.profiles) == []  # a visit is no view
    shop.record(Event("a", "view", NOW, item_id="lamp"))
    reported = shop.read("plain", "a", "b").profiles
    assert {row: said.top.item_id for row, said in reported.items() if said.top} == {1: "lamp", 2: "lamp"}


def test_consent_withheld_is_told_under_every_id(shop: Shop) -> None:
    shop.record(visit("a"), visit("b"))
    shop.merge("a", "b")
    shop.consent("a", scoring=False)
    assert {row: said.scoring for row, said in shop.read("a", "b", "plain").profiles.items()} == {0: False, 1: False}


@pytest.mark.parametrize("value", [b"", b"tr", b"tr\2\4", b"tr\2\0" + bytes(36), b"torn" * 20])
def test_who_has_a_record_that_cannot_be_read_is_not_scored_and_disturbs_nobody(shop: Shop, value: bytes) -> None:
    shop.record(visit("a"), visit("torn"), visit("b"))
    shop.merge("a", "torn")
    shop.set(record_key("torn"), value)
    batch = shop.read("b", "torn", "a", "nobody")
    assert batch.found.tolist() == [True, True, True, False]
    assert batch.valid.tolist() == [True, False, False, False]


def test_an_alias_of_nobody_is_nobody(shop: Shop) -> None:
    shop.set(record_key("a"), with_checksum(record_key("a"), Profile(alias_of="nobody").pack()))
    assert shop.read("a").found.tolist() == [False]
    assert shop.record(visit("a")) == [ACCEPTED]
    assert shop.slots("nobody")[0] == 1.0


def test_a_batch_without_aliases_is_one_question(shop: Shop) -> None:
    shop.record(*(visit(f"c{n}") for n in range(50)))
    shop.consent("c7", scoring=False)
    with redis.Redis.from_url(shop.url) as connection:
        connection.config_resetstat()
        shop.read(*(f"c{n}" for n in range(60)))
        assert connection.info("commandstats")["cmdstat_mget"]["calls"] == 1


# --- commits --------------------------------------------------------------------------------------------------------


def test_a_commit_writes_a_group_whole_or_not_at_all(shop: Shop) -> None:
    old, new = b"head0000" + bytes(8) + b"old", b"head1111" + bytes(8) + b"new"

    async def commit(groups: Sequence[Group]) -> list[int]:
        store = RedisStore(shop.url, 5.0)
        try:
            return (await store.commit(groups)).conflicts
        finally:
            await store.close()

    assert asyncio.run(commit([Group([Write(b"a", None, old), Write(b"b", None, old)])])) == []
    stored = shop.contents()
    assert without_checksum(b"a", stored[b"a"]) == b"head0000" + (1).to_bytes(8, "little") + b"old"
    groups = [
        Group([Write(b"a", stored[b"a"], new), Write(b"b", old, new)], ['"lost"']),  # b has another position
        Group([Write(b"a", stored[b"a"], new), Write(b"c", None, new)], ['"kept"', '"too"']),
        Group([Write(b"b", None, None, unconditional=True)]),
        Group([Write(b"d", new, None)], ['"lost as well"']),
    ]
    assert asyncio.run(commit(groups)) == [0, 3]
    contents = shop.contents()
    assert re.fullmatch(rb"1 [0-9a-f]{40}", contents[LOG_EPOCHS])
    assert contents == {
        LOG: b"2",
        LOG_RUN: contents[LOG_RUN],
        LOG_EPOCHS: contents[LOG_EPOCHS],
        log_key(1): b"[]",
        b"a": with_checksum(b"a", b"head1111" + (2).to_bytes(8, "little") + b"new"),
        b"c": with_checksum(b"c", b"head1111" + (2).to_bytes(8, "little") + b"new"),
        log_key(2): b'["kept","too"]',
    }


def test_when_too_much_waits_for_the_archive_events_are_refused_and_nothing_else(shop: Shop) -> None:
    shop.options = {"max_waiting": 3}
    for n in range(3):
        shop.record(visit("c", str(n)))
    before = shop.everything()
    with pytest.raises(ArchiveBehindError):
        shop.record(visit("c", "3"))
    assert shop.everything() == before
    shop.consent("c", response=False)
    shop.merge("a", "c")
    shop.set(ARCHIVED, shop.contents()[LOG])
    assert shop.record(visit("c", "3")) == [ACCEPTED]
    shop.erase("c")


def test_a_redis_that_has_lost_the_script_is_taught_it_again(shop: Shop) -> None:
    async def record(store: CustomerStore) -> None:
        for _ in range(3):
            assert await store.record([visit("c")]) == [ACCEPTED]
            with redis.Redis.from_url(shop.url) as connection:
                connection.script_flush()

    shop.run(record)
    assert shop.slots("c")[0] == 3.0


def test_a_server_says_which_layout_it_has(shop: Shop) -> None:
    for layout in (LAYOUT, OTHER, LAYOUT):
        Shop(shop.url, layout=layout).run(lambda store: store.ensure_registered())
    with redis.Redis.from_url(shop.url) as connection:
        assert connection.smembers(STORED_LAYOUTS) == {LAYOUT.fingerprint.encode(), OTHER.fingerprint.encode()}


@contextmanager
def durable(*arguments: str) -> Iterator[Shop]:
    with embedded_redis(*arguments) as url:
        yield Shop(url, {"durable": True})


def test_what_is_acknowledged_is_there_after_redis_was_killed(tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with durable(*options) as shop:
        shop.run(lambda store: store.ensure_registered())
        assert shop.record(visit("c", "1"), visit("d", "1")) == [ACCEPTED] * 2
        assert shop.merge("d", "c") == "c"
        shop.consent("c", response=False)
        with redis.Redis.from_url(shop.url) as connection:
            os.kill(connection.info("server")["process_id"], signal.SIGKILL)
    with durable(*options) as shop:
        assert shop.slots("d")[0] == 2.0
        assert shop.get("d").profile.automated_response is False
        assert [item[0] for item in shop.log()] == ["e", "e", "m", "c"]


def test_a_redis_that_cannot_keep_what_it_acknowledges_is_refused_at_the_start() -> None:
    with durable("--appendonly", "no") as shop:
        with pytest.raises(StoreUnavailableError, match="appendonly"):
            shop.run(lambda store: store.ensure_registered())
        with pytest.raises(StoreUnavailableError):
            shop.record(visit("c"))
        shop.options = {}
        shop.run(lambda store: store.ensure_registered())


def test_what_is_not_on_disk_in_time_is_not_acknowledged() -> None:
    with durable("--appendonly", "yes", "--appendfsync", "no") as shop:
        shop.timeout_s = 1.0
        with pytest.raises(StoreUnavailableError):
            shop.record(visit("c", "1"))
        with redis.Redis.from_url(shop.url) as connection:
            connection.config_set("appendfsync", "always")
        shop.timeout_s = PATIENCE_S
        assert shop.record(visit("c", "1")) == [DUPLICATE]
        assert shop.slots("c")[0] == 1.0
