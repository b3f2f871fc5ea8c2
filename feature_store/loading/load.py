"""Loading states from the source into Redis while events come in, and proving that Redis holds what it should.

A load computes every state from the source and from what was recorded before it began, and writes each only over what
it has seen: where a customer was changed meanwhile, the log says by what, and that is folded in first. So nothing is
counted twice and nothing is dropped, and nobody has to stop. The states may be of a bundle that no server serves yet:
from the beginning of the load on all of them fold what comes in into these states too (``layouts``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_store.errors import InputError
from feature_store.loading.event_history import Cut, History
from feature_store.loading.expected_states import Ledger
from feature_store.offline.store import OfflineStore
from feature_store.online.active_layouts import announce
from feature_store.online.commit import Group, Write, position_of
from feature_store.online.store import Keys, StateWriter
from feature_store.state.events import HOUR_S
from feature_store.state.layout import Floats, StateBatch, StateLayout
from feature_store.state.profile import Record, UnreadableRecordError, hashed, hashed_type, hour_of
from feature_store.timestamps import utc_text

TOLERANCE = 1e-6
"""Largest relative difference between a stored and a recomputed slot."""
NOTHING = 1e-3
"""Smaller slots are compared as if they were this large: what cancels out leaves nothing but rounding."""
CLOCK_S = 1e-3
"""Seconds by which the time that a state says it is of may be off."""
AT_ONCE = 500
"""Customers written in one commit."""
REMEMBER_S = 72 * HOUR_S
"""How long ids are remembered: as long as a server takes late events, by default."""
ROUNDS = 1000
"""So often customers may change while they are written; a round with few of them takes milliseconds."""


@dataclass(frozen=True)
class LoadSummary:
    """What a load did, in customers; times in unix seconds.

    removed: nothing is known of them; withheld: left as they were, because they do not allow scoring; changed: by
    events that came in meanwhile.
    """

    customers: int
    removed: int
    withheld: int
    changed: int
    as_of: float
    shift: float


@dataclass(frozen=True)
class Verification:
    """What a comparison of Redis with what is known offline found, in customers."""

    customers: int
    compared: int
    mismatches: int
    missing: int
    extra: int
    largest_difference: float

    @property
    def ok(self) -> bool:
        """Whether Redis holds exactly what it should."""
        return not (self.mismatches or self.missing or self.extra)


class Loader:
    """One load: what customers should have, and how it is written."""

    def __init__(self, history: History, redis: StateWriter, layout: StateLayout, cut: Cut, remember_s: float) -> None:
        """``remember_s``: newer events of the source are remembered by their ids, should they come in live as well."""
        self._redis = redis
        self._layout = layout
        self._keys = Keys(layout.fingerprint)
        self._ledger = Ledger(history, layout, cut)
        self._ids = history.ids_since(time.time() - remember_s)
        self.withheld: set[str] = set()
        self.removed: set[str] = set()
        self.changed: set[str] = set()

    def write(self) -> int:
        """Write all customers, and return how many they are; InputError where they never stand still."""
        waiting = sorted(self._ledger.customers.union(self._redis.customer_ids()))
        for _ in range(ROUNDS):
            waiting = [name for some in _chunks(waiting) for name in self._write_some(some)]
            if not waiting:
                return len(self._ledger.customers - self.withheld)
            self.changed.update(waiting)
            waiting = sorted(self._ledger.catch_up(self._redis).union(waiting))
        raise InputError("customers change faster than they can be loaded: load at a quieter time")

    def _write_some(self, names: Sequence[str]) -> list[str]:
        """Write customers, and return those who know of commits that the ledger does not."""
        self._redis.hold_log(self._ledger.position)
        states, records = self._redis.read(names), self._redis.read_records(names)
        newest = self._redis.log_position()  # a position beyond was made by nobody
        groups, writing, left = [], [], []
        for name, new, state, record in zip(names, self._ledger.packed(names), states, records, strict=True):
            if self._ledger.position < max(position_of(state), position_of(record)) <= newest:
                left.append(name)
            elif (group := self._group(name, new, state, record)).writes:
                groups.append(group)
                writing.append(name)
        if groups:
            left += [writing[at] for at in self._redis.commit(groups).overtaken]
        return left

    def _group(self, name: str, new: bytes | None, state: bytes | None, packed: bytes | None) -> Group:
        """What is to be written of a customer."""
        (state_key,), (record_key,) = self._keys.of([name]), Keys.records([name])
        record = _record(packed)
        if not record.scoring:
            self.withheld.add(name)
            return Group()
        if new is None:
            if state is not None:
                self.removed.add(name)
                return Group([Write(state_key, state, None)])
            return Group()
        writes = [Write(state_key, state, new)]
        if self._remember(name, record):
            writes.append(Write(record_key, packed, record.pack()))
        return Group(writes)

    def _remember(self, name: str, record: Record) -> bool:
        """Take the ids of the source's newest events into a record; whether there were new ones."""
        seen = record.counted.ids
        new = [event for event in self._ids.get(name, ()) if hashed(event[2]) not in seen]
        for t, event_type, event_id in new:
            record.counted.add(hour_of(max(t, 0.0)), hashed_type(event_type), hashed(event_id))
        return bool(new)


def load_states(
    source: OfflineStore,
    redis: StateWriter,
    layout: StateLayout,
    as_of: float | None = None,
    *,
    shift_to_now: bool = False,
    archive: Path | None = None,
    remember_s: float = REMEMBER_S,
) -> LoadSummary:
    """Write the states of all customers as of a time (the newest event by default), with what came in live.

    Customers of whom nothing is known are removed; who does not allow scoring is left as they are. With
    ``shift_to_now`` all times of the source move so that ``as_of`` becomes now: what is decayed or counted in days
    stays as it was, and an old data set can be served as if it ended today. ``archive`` is the folder that live events
    are archived in, if they are.
    """
    as_of = _checked(source, source.summary.end if as_of is None else as_of)
    with redis.holding_log():
        announce(redis, layout)  # before the history is read: what is recorded later, servers fold in
        history = History(source, redis, archive)
        cut = Cut(as_of, time.time() - as_of if shift_to_now else 0.0, history.position)
        loader = Loader(history, redis, layout, cut, remember_s)
        customers = loader.write()
    redis.record_load({"as_of": cut.as_of, "shift": cut.shift, "position": cut.position})
    return LoadSummary(customers, len(loader.removed), len(loader.withheld), len(loader.changed), cut.as_of, cut.shift)


def verify_states(
    source: OfflineStore,
    redis: StateWriter,
    layout: StateLayout,
    *,
    sample: int | None = None,
    as_of: float | None = None,
    archive: Path | None = None,
) -> Verification:
    """Recompute states and compare them with what Redis holds.

    They are those of the last load and of what came in live before and since. With ``as_of`` they are those of the
    source alone up to then, however its events came into Redis: after a replay of the source, for example (attributes,
    which only a load brings, are not compared). ``sample`` limits the comparison to that many customers drawn at
    random; missing ones are looked for among them, extra ones always among all. Who does not allow scoring is left out.
    """
    with redis.holding_log():
        history = History(source, redis, archive)
        ledger = Ledger(history, layout, _cut(source, redis, history, as_of))
        names, found = sorted(ledger.customers), _Found()
        waiting = sorted(random.sample(names, sample)) if sample is not None and sample < len(names) else names
        for _ in range(ROUNDS):
            waiting = [name for some in _chunks(waiting) for name in found.compare(some, ledger, redis, layout)]
            if not waiting:
                break
            ledger.catch_up(redis)
    return Verification(
        customers=len(names),
        compared=found.compared,
        mismatches=found.mismatches + len(waiting),
        missing=found.missing,
        extra=len(set(redis.customer_ids()) - ledger.customers - found.withheld),
        largest_difference=found.largest,
    )


def _cut(source: OfflineStore, redis: StateWriter, history: History, as_of: float | None) -> Cut:
    """The last load's cut, or that of the source alone up to a time."""
    if as_of is not None:
        return Cut(_checked(source, as_of), 0.0, history.position, alone=True)
    if (load := redis.last_load()) is None:
        raise InputError(
            "Redis holds no load of this bundle's features: run 'tidemark load' first, or compare with "
            "the source alone (--as-of)"
        )
    return Cut(_checked(source, load["as_of"]), load["shift"], int(load["position"]))


@dataclass
class _Found:
    """What a comparison has found so far, in customers."""

    compared: int = 0
    mismatches: int = 0
    missing: int = 0
    largest: float = 0.0
    withheld: set[str] = field(default_factory=set)

    def compare(self, names: Sequence[str], ledger: Ledger, redis: StateWriter, layout: StateLayout) -> list[str]:
        """Compare customers, and return those who know of commits that the ledger does not."""
        redis.hold_log(ledger.position)
        cut = ledger.cut
        values, records = redis.read(names), redis.read_records(names)
        newest = ledger.position if cut.alone else redis.log_position()  # a position beyond was made by nobody
        left = [n for n, value in zip(names, values, strict=True) if ledger.position < position_of(value) <= newest]
        ahead = set(left)
        self.withheld.update(n for n, packed in zip(names, records, strict=True) if not _record(packed).scoring)
        rows = [at for at, name in enumerate(names) if name not in ahead and name not in self.withheld]
        as_of, slots = ledger.states([names[at] for at in rows])
        stored = layout.unpack([values[at] for at in rows])
        expected = ~np.isnan(as_of)
        difference = _differences(layout, stored, as_of, slots, cut)
        compared = difference[stored.found & expected]
        self.compared += len(compared)
        self.mismatches += int((compared > TOLERANCE).sum())
        self.missing += int((~stored.found & expected).sum())
        self.largest = max(self.largest, float(compared.max(initial=0.0)))
        return left


def _differences(layout: StateLayout, stored: StateBatch, as_of: Floats, expected: Floats, cut: Cut) -> Floats:
    """Largest relative difference of each row's slots as of ``as_of``; infinite where a state is not of that time."""
    with np.errstate(over="ignore", invalid="ignore"):  # rubbish may stand behind a right header
        found = layout.advance(stored.slots, as_of - stored.as_of)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if cut.alone:
        same |= layout.of_attributes
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - expected) / np.maximum(np.abs(expected), NOTHING)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    early = as_of - stored.as_of
    as_told = stored.valid & (early > -CLOCK_S) & (cut.alone | (early < CLOCK_S))
    return np.where(as_told, np.where(same, 0.0, difference).max(axis=1, initial=0.0), np.inf)


def _record(packed: bytes | None) -> Record:
    try:
        return Record.stored(packed)
    except UnreadableRecordError:
        return Record(scoring=False)  # it may say so


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE))


def _checked(source: OfflineStore, as_of: float) -> float:
    if source.summary.events and as_of < source.summary.start:  # a snapshot is as of whenever it was read
        raise InputError(
            f"no customer is known as of {utc_text(as_of)}: the source begins {utc_text(source.summary.start)}"
        )
    return as_of
