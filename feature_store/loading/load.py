"""Loads states from the source into Redis while events come in, and verifies that Redis holds the right states.

A load computes every state from the source and from the events recorded before it began. It writes a state only over a
value that it knows about: if an event changed the customer in the meantime, that event is taken from the log and folded
in first. So nothing is counted twice or lost, and no server has to stop. The states may belong to a bundle that no
server serves yet: from the beginning of the load, servers fold live events into its layout as well
(``feature_store.online.active_layouts``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feature_store.errors import InputError
from feature_store.loading.event_history import EventHistory, LoadPoint
from feature_store.loading.expected_states import ExpectedStates
from feature_store.offline.store import OfflineStore
from feature_store.online.active_layouts import announce
from feature_store.online.commit import Group, Write, position_of
from feature_store.online.erased_customers import ErasedCustomers, read_erased_customers
from feature_store.online.keys import Keys, profile_keys, tombstone_keys
from feature_store.online.state_writer import StateWriter
from feature_store.state.events import HOUR_S
from feature_store.state.folding import StoredCustomer
from feature_store.state.layout import Floats, StateBatch, StateLayout, with_profile
from feature_store.state.log_entries import encode_link
from feature_store.state.profile import Profile, UnreadableProfileError, hash_event_id, hash_event_type, hour_of
from feature_store.state.tombstone import Tombstone
from feature_store.timestamps import utc_text

TOLERANCE = 1e-6
"""Largest relative difference allowed between a stored and a recomputed slot."""
MIN_MAGNITUDE = 1e-3
"""Differences are relative to at least this much: sums that cancel out leave rounding errors only."""
CLOCK_S = 1e-3
"""Seconds by which the ``as_of`` of a stored state may differ from the expected one."""
CHUNK = 500
"""Customers written in one commit."""
REMEMBER_S = 72 * HOUR_S
"""How long event ids are remembered: as long as a server accepts late events, by default."""
MAX_ROUNDS = 1000
"""Rounds of catching up with customers that change while they are written; a small round takes milliseconds."""


@dataclass(frozen=True)
class LoadSummary:
    """What a load did.

    Attributes:
        customers: Number of customers loaded.
        removed: Customers removed, because nothing is known about them.
        withheld: Customers left as they were, because they do not allow scoring.
        lost: Customers left as they were, because their profile was lost and nobody knows what they allow.
        changed: Customers that events changed during the load.
        as_of: Unix seconds in the source's time.
        shift: Seconds by which the source's times were moved.
    """

    customers: int
    removed: int
    withheld: int
    lost: int
    changed: int
    as_of: float
    shift: float


@dataclass(frozen=True)
class Verification:
    """Result of comparing Redis with the states computed offline, in numbers of customers.

    Attributes:
        lost: Customers whose profile was lost.
    """

    customers: int
    compared: int
    mismatches: int
    missing: int
    extra: int
    largest_difference: float
    lost: int = 0

    @property
    def ok(self) -> bool:
        """Whether Redis holds exactly the expected states."""
        return not (self.mismatches or self.missing or self.extra or self.lost)


class Loader:
    """Writes the expected states of one load."""

    def __init__(
        self, history: EventHistory, redis: StateWriter, layout: StateLayout, point: LoadPoint, remember_s: float
    ) -> None:
        """Compute the states.

        Args:
            history: Source and live events.
            redis: Where to write.
            layout: What to write.
            point: What to take from the source.
            remember_s: Ids of the source's events that are not older than this are added to profiles, so that the same
                events are recognised as duplicates if they come in live as well.
        """
        self._redis = redis
        self._keys = Keys(layout.fingerprint)
        self._expected = ExpectedStates(history, layout, point)
        self._erased = history.erased
        self._recent = history.source_events_since(time.time() - remember_s)
        self.withheld: set[str] = set()
        self.lost: set[str] = set()
        self.removed: set[str] = set()
        self.changed: set[str] = set()

    def write(self) -> int:
        """Write all customers.

        Returns:
            Number of customers loaded.

        Raises:
            InputError: Customers change faster than they can be written.
        """
        waiting = sorted(self._expected.customers.union(self._redis.customer_ids()))
        for _ in range(MAX_ROUNDS):
            waiting = [name for chunk in _chunks(waiting) for name in self._write_chunk(chunk)]
            if not waiting:
                self._remove_erased()
                return len(self._expected.customers - self.withheld - self.lost)
            self.changed.update(waiting)
            waiting = sorted(self._expected.catch_up(self._redis.log).union(waiting))
        raise InputError("customers change faster than they can be loaded: load at a quieter time")

    def _write_chunk(self, names: Sequence[str]) -> list[str]:
        """Write customers, and return those that were changed by commits after the expected states."""
        position = self._expected.position
        self._redis.log.hold(position)
        states, profiles = self._redis.read(names), self._redis.read_profiles(names)
        tombstones = self._tombstones(names, profiles)
        newest = self._redis.log.position()  # a larger position is not of this log
        groups, writing, ahead = [], [], []
        for name, new, state, profile in zip(names, self._expected.packed(names), states, profiles, strict=True):
            customer = StoredCustomer(name, [state], profile, tombstones.get(name))
            if position < max(map(position_of, (state, profile, customer.tombstone))) <= newest:
                ahead.append(name)
            elif (group := self._group(customer, new)).writes:
                groups.append(group)
                writing.append(name)
        if groups:
            ahead += [writing[at] for at in self._redis.commit(groups).conflicts]
        return ahead

    def _tombstones(self, names: Sequence[str], profiles: Sequence[bytes | None]) -> dict[str, bytes | None]:
        """What is kept of customers without a profile that were erased."""
        new = [name for name, profile in zip(names, profiles, strict=True) if profile is None]
        return dict(zip(new, self._redis.read_tombstones(self._erased.key, new), strict=True))

    def _remove_erased(self) -> None:
        """Remove customers that were erased during the load of a cluster, which has no log that names them."""
        if self._redis.client.is_cluster:
            erased = read_erased_customers(self._redis.client)
            since = {name: at for name, at in erased.times.items() if self._erased.times.get(name) != at}
            self._redis.delete(sorted(ErasedCustomers(erased.key, since).among(self._expected.customers)))

    def _is_missed(self, name: str, tombstone: bytes) -> bool:
        """Whether a customer was erased during the load, and its erasure is not in the expected states."""
        known = self._erased.among([name]).get(name)
        erasure = Tombstone.from_stored(tombstone)
        return erasure is not None and erasure.erased_at != known and name not in self._expected.erased

    def _group(self, customer: StoredCustomer, new: bytes | None) -> Group:
        """The writes of one customer: its new state, over the stored one.

        Args:
            customer: As it is stored, with the state of this layout alone.
            new: Its new state; None to remove it.

        Raises:
            InputError: The log no longer has an erasure of this customer.
        """
        name, (state,), tombstone = customer.customer_id, customer.states, customer.tombstone
        if customer.has_lost_profile:
            self.lost.add(name)
            return Group()
        self.lost.discard(name)
        if tombstone is not None and new is not None and self._is_missed(name, tombstone):
            if not self._redis.client.is_cluster:
                raise InputError("the log lost erasures during the load, which took too long: start again")
            new = None
        profile = _profile(customer)
        if not profile.scoring:
            self.withheld.add(name)
            return Group()
        if new is not None:
            return self._loaded(customer, new, profile)
        if state is None:
            return Group()
        self.removed.add(name)
        return Group([Write(self._keys.states([name])[0], state, None)])

    def _loaded(self, customer: StoredCustomer, new: bytes, profile: Profile) -> Group:
        """The writes of a new state, and of the profile if it learns of events of the source."""
        name, (state,), packed = customer.customer_id, customer.states, customer.profile
        (state_key,), (profile_key,) = self._keys.states([name]), profile_keys([name])
        is_remembering = self._remember(name, profile)
        if is_remembering or packed is not None:
            new = with_profile(new)
        writes = [Write(state_key, state, new)]
        if is_remembering:
            # Before the state: a cluster writes key by key, and the state must not be used without the profile.
            writes.insert(0, Write(profile_key, packed, profile.pack()))
        elif packed is None or state is None:
            writes.append(Write(profile_key, packed, None, check_only=True))
        if packed is None:  # the customer may be erased before this is written: then there is another tombstone
            key = tombstone_keys(self._erased.key, [name])[0]
            writes.append(Write(key, customer.tombstone, None, check_only=True))
        is_logged = is_remembering and not self._redis.client.is_cluster
        return Group(writes, [encode_link(name, position_of(packed))] if is_logged else [])

    def _remember(self, name: str, profile: Profile) -> bool:
        """Add the ids of the source's recent events to a profile, and return whether there were new ones."""
        seen = profile.counted.ids
        new = [event for event in self._recent.get(name, ()) if hash_event_id(event[2]) not in seen]
        for t, event_type, event_id in new:
            profile.counted.add(hour_of(max(t, 0.0)), hash_event_type(event_type), hash_event_id(event_id))
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
    """Write the states of all customers as of a time, live events included.

    Customers about whom nothing is known are removed; those that do not allow scoring are left as they are, and so are
    those whose profile was lost.

    Args:
        source: The source.
        redis: Where to write.
        layout: What to write.
        as_of: Unix seconds; the newest event by default.
        shift_to_now: Move all times of the source so that ``as_of`` becomes now: decayed sums and ages stay as they
            were, and an old data set can be served as if it ended today.
        archive: Folder of the archive of live events, if there is one.
        remember_s: How long ids of the source's events are remembered, to recognise them if they come in live as well.

    Raises:
        InputError: No customer is known as of that time, or the archive is not the right one.
        StoreUnavailableError: Redis does not answer.
    """
    as_of = _checked(source, source.summary.end if as_of is None else as_of)
    with redis.log.holding():
        announce(redis.client, layout)  # before the history is read: servers fold in whatever is recorded later
        history = EventHistory(source, redis.log, archive, read_erased_customers(redis.client))
        point = LoadPoint(as_of, time.time() - as_of if shift_to_now else 0.0, history.position)
        loader = Loader(history, redis, layout, point, remember_s)
        customers = loader.write()
    redis.record_load({"as_of": point.as_of, "shift": point.shift, "position": point.position})
    return LoadSummary(
        customers=customers,
        removed=len(loader.removed),
        withheld=len(loader.withheld),
        lost=len(loader.lost),
        changed=len(loader.changed),
        as_of=point.as_of,
        shift=point.shift,
    )


def verify_states(
    source: OfflineStore,
    redis: StateWriter,
    layout: StateLayout,
    *,
    sample: int | None = None,
    as_of: float | None = None,
    archive: Path | None = None,
) -> Verification:
    """Recompute states and compare them with those in Redis.

    Customers that do not allow scoring are left out.

    Args:
        source: The source.
        redis: Where to read.
        layout: What to read.
        sample: Compare at most this many customers, chosen at random. Missing states are searched among them, extra
            ones always among all.
        as_of: Compare with the source alone up to this time (unix seconds), however its events came into Redis, for
            example after a replay; attributes, which only a load brings, are not compared. By default, compare with the
            source of the last load and all live events.
        archive: Folder of the archive of live events, if there is one.

    Raises:
        InputError: Nothing was loaded and ``as_of`` is not given, or no customer is known as of that time, or the
            archive is not the right one.
        StoreUnavailableError: Redis does not answer.
    """
    with redis.log.holding():
        history = EventHistory(source, redis.log, archive, read_erased_customers(redis.client))
        expected = ExpectedStates(history, layout, _load_point(source, redis, history, as_of))
        names, comparison = sorted(expected.customers), _Comparison()
        waiting = sorted(random.sample(names, sample)) if sample is not None and sample < len(names) else names
        for _ in range(MAX_ROUNDS):
            waiting = [name for chunk in _chunks(waiting) for name in comparison.add(chunk, expected, redis, layout)]
            if not waiting:
                break
            expected.catch_up(redis.log)
    return Verification(
        customers=len(names),
        compared=comparison.compared,
        mismatches=comparison.mismatches + len(waiting),
        missing=comparison.missing,
        extra=len(set(redis.customer_ids()) - expected.customers - comparison.withheld),
        largest_difference=comparison.largest,
        lost=len(comparison.lost),
    )


def _load_point(source: OfflineStore, redis: StateWriter, history: EventHistory, as_of: float | None) -> LoadPoint:
    """The point of the last load, or of the source alone up to a time."""
    if as_of is not None:
        return LoadPoint(_checked(source, as_of), 0.0, history.position, source_only=True)
    if (load := redis.last_load()) is None:
        raise InputError(
            "Redis holds no load of this bundle's features: run 'tidemark load' first, or compare with "
            "the source alone (--as-of)"
        )
    return LoadPoint(_checked(source, load["as_of"]), load["shift"], int(load["position"]))


@dataclass
class _Comparison:
    """The comparison so far, in numbers of customers.

    Attributes:
        withheld: Customers that do not allow scoring.
        lost: Customers whose profile was lost.
    """

    compared: int = 0
    mismatches: int = 0
    missing: int = 0
    largest: float = 0.0
    withheld: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def add(self, names: Sequence[str], expected: ExpectedStates, redis: StateWriter, layout: StateLayout) -> list[str]:
        """Compare customers, and return those that were changed by commits after the expected states."""
        redis.log.hold(expected.position)
        point = expected.point
        values, profiles = redis.read(names), redis.read_profiles(names)
        newest = expected.position if point.source_only else redis.log.position()  # a larger one is not of this log
        ahead = [n for n, value in zip(names, values, strict=True) if expected.position < position_of(value) <= newest]
        customers = [
            StoredCustomer(n, [value], packed) for n, value, packed in zip(names, values, profiles, strict=True)
        ]
        self.lost.update(customer.customer_id for customer in customers if customer.has_lost_profile)
        self.withheld.update(customer.customer_id for customer in customers if not _profile(customer).scoring)
        is_ahead = set(ahead)
        rows = [at for at, name in enumerate(names) if name not in is_ahead and name not in self.withheld]
        as_of, slots = expected.states([names[at] for at in rows])
        stored = layout.unpack([values[at] for at in rows])
        is_expected = ~np.isnan(as_of)
        differences = _differences(layout, stored, as_of, slots, point)[stored.found & is_expected]
        self.compared += len(differences)
        self.mismatches += int((differences > TOLERANCE).sum())
        self.missing += int((~stored.found & is_expected).sum())
        self.largest = max(self.largest, float(differences.max(initial=0.0)))
        return ahead


def _differences(layout: StateLayout, stored: StateBatch, as_of: Floats, expected: Floats, point: LoadPoint) -> Floats:
    """Largest relative difference of each row's slots as of ``as_of``; infinite if the state is not of that time."""
    with np.errstate(over="ignore", invalid="ignore"):  # a valid header may be followed by garbage
        slots = layout.advance(stored.slots, as_of - stored.as_of)
    same = (slots == expected) | (np.isnan(slots) & np.isnan(expected))
    if point.source_only:
        same |= layout.is_attribute
    with np.errstate(invalid="ignore"):
        difference = np.abs(slots - expected) / np.maximum(np.abs(expected), MIN_MAGNITUDE)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    lag_s = as_of - stored.as_of
    right_time = stored.valid & (lag_s > -CLOCK_S) & (point.source_only | (lag_s < CLOCK_S))
    return np.where(right_time, np.where(same, 0.0, difference).max(axis=1, initial=0.0), np.inf)


def _profile(customer: StoredCustomer) -> Profile:
    try:
        return customer.unpacked_profile()
    except UnreadableProfileError:
        return Profile(scoring=False)  # an unreadable profile may forbid scoring


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + CHUNK] for at in range(0, len(names), CHUNK))


def _checked(source: OfflineStore, as_of: float) -> float:
    if source.summary.events and as_of < source.summary.start:  # a snapshot has no event times
        start = utc_text(source.summary.start)
        raise InputError(f"no customer is known as of {utc_text(as_of)}: the source begins {start}")
    return as_of
