"""Online equals offline: whatever happens to live customers, their states are what SQL says of the same events."""

from __future__ import annotations

import asyncio
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from feature_store.config import Source
from feature_store.definitions import Feature, Interests
from feature_store.errors import StoreUnavailableError
from feature_store.offline.store import OfflineStore
from feature_store.online.commit import CommitResult, Group
from feature_store.online.customer_store import ALREADY, CYCLE, ITSELF, CustomerStore, MergeRefusedError
from feature_store.online.keys import LOG, log_key
from feature_store.online.state_reader import StateReader
from feature_store.online.store import RedisStore
from feature_store.state.events import HOUR_S, Event, Rules
from feature_store.state.folding import EventFolder, Outcome, Verdict
from feature_store.state.layout import StateLayout

START = 1_750_000_000.0
CLIP = 90.0
LAYOUT = StateLayout(
    [
        Feature(name="last", aggregate="latest", event="visit"),
        Feature(name="visits_1d", aggregate="count", event="visit", half_life_days=1),
        Feature(name="bounded_9d", aggregate="sum", event="purchase", field="amount", half_life_days=9, clip=CLIP),
        Feature(name="dwell_30d", aggregate="sum", event="visit", field="duration_s", half_life_days=30),
        Feature(name="first", aggregate="earliest", event="purchase"),
        Feature(name="purchases", aggregate="count", event="purchase", half_life_days=200),
    ]
)
NAMES = ["a", "b", "c", "d", "Müller 7"]
RULES = Rules()


class Flaky(RedisStore):
    """Can lose the answer to a commit: it is written, and nobody knows."""

    lose_next = False

    async def commit(self, groups: Sequence[Group], max_waiting: int = 0, **options: Any) -> CommitResult:
        done = await super().commit(groups, max_waiting, **options)
        if self.lose_next and not done.conflicts:
            self.lose_next = False
            raise StoreUnavailableError
        return done


@dataclass
class Truth:
    """What should have been counted: events, under which id, and who is whose alias."""

    now: float = START
    events: list[Event] = field(default_factory=list)
    roots: dict[str, str] = field(default_factory=dict)
    sent: list[Event] = field(default_factory=list)
    erased: dict[str, float] = field(default_factory=dict)

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    def is_new(self, event: Event) -> bool:
        root = self.root(event.customer_id)
        return not event.event_id or not any(
            event.event_id == e.event_id and self.root(e.customer_id) == root for e in self.events
        )

    def take(self, events: Sequence[Event]) -> list[Verdict]:
        """What should become of events that arrive."""
        result = []
        for event in events:
            root = self.root(event.customer_id)
            bound = max((at for name, at in self.erased.items() if self.root(name) == root), default=-math.inf)
            late = Verdict.REJECTED if event.event_time <= bound else Verdict.ACCEPTED
            result.append(late if self.is_new(event) else Verdict.DUPLICATE)
            if result[-1] is Verdict.ACCEPTED:
                self.events.append(event)
            self.sent.append(event)
        return result

    def merge(self, given_up: str, stays: str) -> str:
        """Which id stays, or why none does."""
        if given_up == stays:
            return ITSELF
        if self.root(given_up) != given_up:
            return self.root(stays) if self.root(given_up) == self.root(stays) else ALREADY
        if self.root(stays) == given_up:
            return CYCLE
        root = self.root(stays)
        self.roots.update({name: root for name in NAMES if self.root(name) == given_up})
        return root

    def erase(self, name: str) -> None:
        root = self.root(name)
        times = [event.event_time for event in self.events if self.root(event.customer_id) == root]
        self.erased |= dict.fromkeys((n for n in NAMES if self.root(n) == root), max([self.now, *times]))
        self.events = [event for event in self.events if self.root(event.customer_id) != root]
        self.sent = [event for event in self.sent if self.root(event.customer_id) != root]
        self.roots = {alias: other for alias, other in self.roots.items() if other != root}


@dataclass
class Run:
    """A history that is being made up, on two servers at once."""

    data: st.DataObject
    first: Flaky
    second: Flaky
    truth: Truth = field(default_factory=Truth)
    ids: Iterator[str] = field(default_factory=lambda: map(str, count()))

    def store(self, connection: RedisStore) -> CustomerStore:
        return CustomerStore(connection, EventFolder([LAYOUT], Interests(), RULES), clock=lambda: self.truth.now)

    def batch(self, *, with_ids: bool = False) -> list[Event]:
        """New events, late ones, and some that were sent before, under any of the customer's ids."""
        truth, result = self.truth, []
        for _ in range(self.data.draw(st.integers(1, 6))):
            again = [event for event in truth.sent if event.event_id and event.event_time > truth.now - 72 * HOUR_S]
            if again and self.data.draw(st.integers(0, 3)) == 0:
                event = self.data.draw(st.sampled_from(again))
                names = [name for name in NAMES if truth.root(name) == truth.root(event.customer_id)]
                result.append(replace(event, customer_id=self.data.draw(st.sampled_from(names))))
            else:
                result.append(self.event(with_ids=with_ids))
        return result

    def event(self, *, with_ids: bool) -> Event:
        age, kind, name, cents = self.data.draw(
            st.tuples(
                st.integers(-300, 71 * 3600) | st.just(0),
                st.sampled_from(["visit", "purchase", "hello"]),
                st.sampled_from(NAMES),
                st.none() | st.integers(-20_000, 20_000),
            )
        )
        number = None if cents is None else cents / 100
        has_id = with_ids or self.data.draw(st.booleans())
        return Event(
            *(name, kind, self.truth.now - age, number, None if number is None else abs(number)),
            event_id=next(self.ids) if has_id else "",
        )

    async def step(self) -> None:
        kinds = ["record", "record", "beside", "lost", "wait", "merge", "lost merge", "erase"]
        kind = self.data.draw(st.sampled_from(kinds))
        if kind == "wait":
            self.truth.now += self.data.draw(st.integers(1, 40)) * HOUR_S
        elif kind == "record":
            events = self.batch()
            assert verdicts(await self.store(self.first).record(events)) == self.truth.take(events)
        elif kind == "beside":
            await self.beside()
        elif kind == "lost":
            await self.lost()
        elif kind == "erase":
            name = self.data.draw(st.sampled_from(NAMES))
            await self.store(self.first).erase(name)
            self.truth.erase(name)
        else:
            await self.merge(lost=kind == "lost merge")

    async def beside(self) -> None:
        """Both servers get the same events, and some of their own, at the same time."""
        shared, item, two = self.batch(with_ids=True), self.batch(), self.batch()
        result = await asyncio.gather(
            self.store(self.first).record([*shared, *item]), self.store(self.second).record([*two, *shared])
        )
        expected = self.truth.take([*shared, *item, *two, *shared])
        assert Counter(verdicts([*result[0], *result[1]])) == Counter(expected)

    async def lost(self) -> None:
        """The answer does not arrive, so the caller sends again."""
        events = self.batch(with_ids=True)
        expected = self.truth.take(events)
        self.first.lose_next = Verdict.ACCEPTED in expected
        if self.first.lose_next:
            with pytest.raises(StoreUnavailableError):
                await self.store(self.first).record(events)
        result = await self.store(self.second).record(events)
        again = {Verdict.ACCEPTED: Verdict.DUPLICATE}
        assert verdicts(result) == [again.get(verdict, verdict) for verdict in expected]

    async def merge(self, *, lost: bool) -> None:
        given_up, stays = self.data.draw(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)))
        before = dict(self.truth.roots)
        expected = self.truth.merge(given_up, stays)
        if lost and self.truth.roots != before:
            self.first.lose_next = True
            with pytest.raises(StoreUnavailableError):
                await self.store(self.first).merge(given_up, stays)
        try:
            result = await self.store(self.second).merge(given_up, stays)
        except MergeRefusedError as error:
            result = str(error.args[0])
        assert result == expected


def verdicts(outcomes: Sequence[Outcome]) -> list[Verdict]:
    return [outcome.verdict for outcome in outcomes]


def offline(folder: Path, truth: Truth) -> dict[str, list[float]]:
    """States by customer, as SQL computes them from the events that counted."""
    path = folder / "events.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer_id", "t", "event_type", "amount", "duration_s"])
        for e in truth.events:
            amount = None if e.amount is None else max(-CLIP, min(CLIP, e.amount))
            rows.writerow([truth.root(e.customer_id), repr(e.event_time), e.event_type, amount, e.duration_s])
    columns = "customer_id, to_timestamp(t::DOUBLE) AS event_time, event_type, amount, duration_s"
    kinds = "{'customer_id': VARCHAR, 't': DOUBLE, 'event_type': VARCHAR, 'amount': DOUBLE, 'duration_s': DOUBLE}"
    events = f"SELECT {columns} FROM read_csv('{path}', header = true, columns = {kinds})"
    with OfflineStore(Source(events=events.replace("$", "$$"))) as store:
        states = store.states(LAYOUT, truth.now + RULES.max_future_s)
    return dict(zip(states.customer_ids.tolist(), states.slots.tolist(), strict=True))


async def online(store: RedisStore, truth: Truth) -> dict[str, list[float]]:
    """The same as the server reads them, under each of a customer's ids."""
    batch = await StateReader(store, LAYOUT).read(NAMES)
    assert (batch.valid == batch.found).all()
    slots = LAYOUT.advance(batch.slots, truth.now + RULES.max_future_s - batch.as_of)
    return {name: slots[row].tolist() for row, name in enumerate(NAMES) if batch.found[row]}


def logged(url: str) -> tuple[list[str], dict[str, str]]:
    """The events that wait for the archive, by what tells them apart; and who is whose alias, by the merges there."""
    with redis.Redis.from_url(url) as connection:
        position = int(connection.get(LOG) or 0)
        entries = [connection.get(log_key(at)) or b"[]" for at in range(1, position + 1)]
    events, roots = [], dict[str, str]()
    for kind, *item in (item for entry in entries for item in json.loads(entry)):
        if kind == "e":
            events.append(str([*item[:5], item[7] or ""]))
        elif kind == "m":
            roots = {alias: item[1] if root == item[0] else root for alias, root in roots.items()} | {item[0]: item[1]}
    return events, roots


# Not shrunk: a history that fails takes milliseconds against Redis, thousands of shorter ones take minutes.
@settings(max_examples=2 * settings().max_examples // 3, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), steps=st.integers(1, 14))
def test_whatever_happens_states_are_what_sql_says_of_the_same_events(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, steps: int
) -> None:
    url = f"{redis_url}?db=8"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()

    async def main() -> tuple[Truth, dict[str, list[float]]]:
        run = Run(data, Flaky(url, 5.0), Flaky(url, 5.0))
        try:
            for _ in range(steps):
                await run.step()
            return run.truth, await online(run.first, run.truth)
        finally:
            await run.first.close()
            await run.second.close()

    truth, result = asyncio.run(main())
    expected = offline(tmp_path_factory.mktemp("parity"), truth) if truth.events else {}
    assert result.keys() == {name for name in NAMES if truth.root(name) in expected}
    for name, slots in result.items():
        np.testing.assert_allclose(slots, expected[truth.root(name)], rtol=1e-6, atol=1e-6)
    events, roots = logged(url)
    assert sorted(events) == sorted(
        str([e.customer_id, e.event_time, e.event_type, e.amount, e.duration_s, e.event_id]) for e in truth.events
    )
    assert roots == truth.roots


def test_sql_and_fold_agree_where_a_state_was_never_touched(tmp_path: Path) -> None:
    truth = Truth(events=[Event("a", "hello", START)])
    assert offline(tmp_path, truth) == {"a": [-math.inf, 0.0, 0.0, 0.0, math.inf, 0.0]}
