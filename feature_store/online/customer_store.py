"""Changes to single customers in Redis: record events, merge, erase, store consent; and a customer's data.

Each operation reads what is stored, computes what is to be stored (``feature_store.state``, no I/O), and commits it
under an optimistic lock (``feature_store.online.commit``). After a conflict it reads again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.definitions import Interests
from feature_store.errors import LayoutsChangedError, NotInClusterError, StoreUnavailableError
from feature_store.online import active_layouts
from feature_store.online.commit import CommitResult, Group, Write
from feature_store.online.erasure import erase_from_log
from feature_store.online.keys import STORED_LAYOUTS, Keys, profile_keys
from feature_store.online.store import RedisStore
from feature_store.state.events import Event
from feature_store.state.folding import CustomerChange, EventFolder, Outcome, StoredCustomer, Verdict
from feature_store.state.layout import State, StateBatch, StateLayout
from feature_store.state.log_entries import encode_erasure, encode_merge
from feature_store.state.profile import MAX_ALIASES, Profile, UnreadableProfileError, alias_of

MAX_ATTEMPTS: Final = 100
"""Attempts to commit before a conflict is reported. Each lost race means that another commit succeeded."""
PAUSE_S: Final = 0.002
"""Unit of the random pause before the next attempt, which grows up to ten times this."""
EVENTS_PER_TURN: Final = 16
"""Events that are read, folded and packed in one turn of the event loop. Larger batches yield between these steps."""
UNKNOWN_VERSION: Final = b"unknown"
"""Version of the active layouts before they were read: it makes the first commit fail, and then they are read."""


class ConflictError(Exception):
    """Other processes kept changing this customer."""


class UnknownCustomerError(Exception):
    """Nothing is stored for this customer."""


class MergeRefusedError(Exception):
    """Two ids cannot become one customer; ``args[0]`` is the reason (one of the constants below)."""


ITSELF: Final = "MERGE_WITH_ITSELF"
CYCLE: Final = "MERGE_CYCLE"
ALREADY: Final = "ALREADY_MERGED"
TOO_MANY: Final = "TOO_MANY_ALIASES"


@dataclass(frozen=True)
class Customer:
    """All that is stored for a customer; ``states`` has one row of ``layout``, which is valid only if it is found."""

    customer_id: str
    states: StateBatch
    profile: Profile
    layout: StateLayout


class _View:
    """The active layouts that a change is computed for, the primary one first; commits are refused once they change."""

    def __init__(self, folder: EventFolder, version: bytes) -> None:
        self.folder: Final = folder
        self.version: Final = version
        self.layouts: Final = folder.layouts
        self.keys: Final = [Keys(layout.fingerprint) for layout in self.layouts]


class CustomerStore:
    """Reads and changes customers under one layout, and keeps their states of all other active layouts up to date."""

    def __init__(
        self,
        store: RedisStore,
        folder: EventFolder,
        *,
        max_waiting: int = 0,
        durable: bool = False,
        clock: Callable[[], float] = time.time,
        forget: Callable[[Iterable[str]], None] = lambda _ids: None,
    ) -> None:
        """Create a store; :meth:`ensure_registered` makes it ready.

        Args:
            store: Redis.
            folder: Rules, interests, and the primary layout.
            max_waiting: Maximum number of commits that may wait for the archive; 0 for no limit.
            durable: Return from changes only once they are on disk.
            clock: Unix seconds.
            forget: Called with the ids of customers of whom nothing that was read earlier may be used any more.
        """
        self._store = store
        self._view = _View(folder, UNKNOWN_VERSION)
        self._max_waiting = max_waiting
        self._durable = durable
        self._clock = clock
        self._forget = forget

    async def ensure_registered(self) -> None:
        """Make the primary layout active, and read the other active ones.

        Repeating it restores both after Redis has lost its data, and shows whether Redis accepts writes.

        Raises:
            StoreUnavailableError: Redis does not answer, or changes must be durable and Redis has no append-only file.
        """
        await self.use(self._view.layouts[0], self._view.folder.interests)
        if self._durable and not await self._store.has_append_only_file():
            raise StoreUnavailableError("--durable-events needs a Redis with appendonly")

    async def use(self, layout: StateLayout, interests: Interests) -> None:
        """Switch to the layout and interests of another model; StoreUnavailableError."""
        await active_layouts.register(self._store, layout)
        known = {known.fingerprint: known for known in self._view.layouts}
        active = await active_layouts.read_active(self._store, known)
        others = [other for name, other in sorted(active.layouts.items()) if name != layout.fingerprint]
        self._view = _View(EventFolder([layout, *others], interests, self._view.folder.rules), active.version)

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        """Record events that are valid (``events.problem``).

        Returns:
            What happened to each event, in order.

        Raises:
            ArchiveBehindError: Too many commits wait for the archive.
            ConflictError: Other processes kept changing a customer.
            NotInClusterError: Redis is a cluster.
            StoreUnavailableError: Redis does not answer. Some of the events may have been recorded.
        """
        self._refuse_cluster()
        outcomes: list[Outcome | None] = [None] * len(events)
        waiting = list(range(len(events)))
        for attempt in range(MAX_ATTEMPTS):
            view = self._view
            customers, of_customer = await self._group(view, [events[at].customer_id for at in waiting], waiting)
            their_events = [[events[at] for at in indexes] for indexes in of_customer]
            await self._yield_turn(waiting)
            changes = view.folder.fold(customers, their_events, self._clock())
            await self._yield_turn(waiting)
            groups, committing = [], []
            for customer, change, indexes in zip(customers, changes, of_customer, strict=True):
                for at, outcome in zip(indexes, change.outcomes, strict=True):
                    outcomes[at] = outcome
                if change.log:
                    groups.append(Group(_changed(view, customer, change), change.log))
                    committing.append(indexes)
            if not groups:
                if Verdict.DUPLICATE in {outcome.verdict for outcome in outcomes if outcome is not None}:
                    await self._settle()
                break
            if (result := await self._try_commit(view, groups, self._max_waiting)) is None:
                continue
            waiting = sorted(at for group in result.conflicts for at in committing[group])
            if not waiting:
                break
            await asyncio.sleep(random.uniform(0, PAUSE_S * min(attempt, 10)))  # noqa: S311  # not a secret
        else:
            raise ConflictError
        return [outcome for outcome in outcomes if outcome is not None]

    @staticmethod
    async def _yield_turn(waiting: Sequence[int]) -> None:
        """Give other calls a turn of the event loop if a batch is large."""
        if len(waiting) > EVENTS_PER_TURN:
            await asyncio.sleep(0)

    async def merge(self, given_up: str, stays: str) -> str:
        """Merge a customer into another.

        Args:
            given_up: The id that becomes an alias.
            stays: An id of the customer that remains.

        Returns:
            The id of the merged customer.

        Raises:
            ConflictError: Other processes kept changing a customer.
            MergeRefusedError: The two cannot be merged.
            NotInClusterError: Redis is a cluster.
            UnreadableProfileError: What is stored for one of them cannot be used.
        """
        self._refuse_cluster()
        if given_up == stays:
            raise MergeRefusedError(ITSELF)
        for _ in range(MAX_ATTEMPTS):
            view = self._view
            customers = await self._read(view, [given_up, stays])
            source, target = customers[given_up], customers[stays]
            if source.customer_id != given_up:
                if source.customer_id == target.customer_id:
                    await self._settle()
                    return target.customer_id
                raise MergeRefusedError(ALREADY)
            if target.customer_id == given_up:
                raise MergeRefusedError(CYCLE)
            ids = {given_up, stays, *_known_ids(source), *_known_ids(target)}
            self._forget(ids)
            if await self._commit(view, await self._merged(view, source, target)) is not None:
                self._forget(ids)  # again: the old state may have been read in between
                return target.customer_id
        raise ConflictError

    async def _merged(self, view: _View, source: StoredCustomer, target: StoredCustomer) -> Group:
        given_up, stays = Profile.from_stored(source.profile), Profile.from_stored(target.profile)
        folder = view.folder
        merged = stays.merged(given_up, folder.interests, self._clock(), folder.rules.max_lateness_s)
        merged.aliases.append(source.customer_id)
        if len(merged.aliases) > MAX_ALIASES:
            raise MergeRefusedError(TOO_MANY)
        alias = Profile(alias_of=target.customer_id).pack()
        writes = _merged_states(view, source, target)
        source_key, target_key = profile_keys([source.customer_id, target.customer_id])
        writes += [Write(source_key, source.profile, alias), Write(target_key, target.profile, merged.pack())]
        if given_up.aliases:
            keys = profile_keys(given_up.aliases)
            old = await self._store.ask(b"MGET", *keys)
            writes += [Write(key, value, alias) for key, value in zip(keys, old, strict=True)]
        return Group(writes, [encode_merge(source.customer_id, target.customer_id)])

    async def erase(self, customer_id: str) -> None:
        """Erase a customer and all ids that were merged into it; ConflictError."""
        self._forget([customer_id])  # even if the erasure fails because Redis does not answer
        for _ in range(MAX_ATTEMPTS):
            view = self._view
            customer = (await self._read(view, [customer_id]))[customer_id]
            ids = sorted({customer_id, *_known_ids(customer)})
            fingerprints = {name.decode() for name in await self._store.ask(b"SMEMBERS", STORED_LAYOUTS)}
            fingerprints.update(layout.fingerprint for layout in view.layouts)
            # Conditional on what was read: an event that came in since starts the erasure again.
            writes = [
                Write(key, state, None)
                for keys, state in zip(view.keys, customer.states, strict=True)
                for key in keys.states([customer.customer_id])
            ]
            writes += [Write(key, customer.profile, None) for key in profile_keys([customer.customer_id])]
            writes += [Write(key, None, None, unconditional=True) for key in profile_keys(ids)]
            for fingerprint in fingerprints:
                writes += [Write(key, None, None, unconditional=True) for key in Keys(fingerprint).states(ids)]
            self._forget(ids)
            log = [] if self._store.is_cluster else [encode_erasure(ids)]  # a cluster has no log to archive
            position = await self._commit(view, Group(writes, log))
            self._forget(ids)
            if position is not None:
                if log:
                    await erase_from_log(self._store, set(ids), position)
                return
        raise ConflictError

    async def consent(self, customer_id: str, scoring: bool | None, automated_response: bool | None) -> Profile:
        """Store what a customer allows.

        Args:
            customer_id: The customer.
            scoring: Whether scoring is allowed; None leaves it as it is.
            automated_response: Whether automated responses are allowed; None leaves it as it is.

        Returns:
            The profile as stored.

        Raises:
            ConflictError: Other processes kept changing the customer.
            UnreadableProfileError: The stored profile cannot be used.
        """
        self._forget([customer_id])  # even if the change fails because Redis does not answer
        for _ in range(MAX_ATTEMPTS):
            view = self._view
            customer = (await self._read(view, [customer_id]))[customer_id]
            profile = Profile.from_stored(customer.profile)
            if scoring is not None:
                profile.scoring = scoring
            if automated_response is not None:
                profile.automated_response = automated_response
            (key,) = profile_keys([customer.customer_id])
            ids = {customer_id, *_known_ids(customer)}
            self._forget(ids)
            if await self._commit(view, Group([Write(key, customer.profile, profile.pack())])) is not None:
                self._forget(ids)
                return profile
        raise ConflictError

    async def get(self, customer_id: str) -> Customer:
        """All that is stored for a customer; UnknownCustomerError or UnreadableProfileError."""
        view = self._view
        layout, customer = view.layouts[0], (await self._read(view, [customer_id]))[customer_id]
        if customer.states[0] is None and customer.profile is None:
            raise UnknownCustomerError
        states = layout.unpack([customer.states[0]])
        if states.found[0] and not states.valid[0]:
            raise UnreadableProfileError
        return Customer(customer.customer_id, states, Profile.from_stored(customer.profile), layout)

    def _refuse_cluster(self) -> None:
        if self._store.is_cluster:
            raise NotInClusterError

    async def _settle(self) -> None:
        """Wait until earlier commits are on disk, before reporting that something was done already."""
        if self._durable:
            await self._store.commit([], durable=True)

    async def _commit(self, view: _View, group: Group) -> int | None:
        """The position of the commit; None after a conflict."""
        result = await self._try_commit(view, [group])
        return None if result is None or result.conflicts else result.position

    async def _try_commit(self, view: _View, groups: Sequence[Group], max_waiting: int = 0) -> CommitResult | None:
        """Commit; None if the active layouts have changed, after reading them for the next attempt."""
        try:
            return await self._store.commit(groups, max_waiting, layouts_version=view.version, durable=self._durable)
        except LayoutsChangedError:
            await self.ensure_registered()
            return None

    async def _group(
        self, view: _View, ids: Sequence[str], indexes: Sequence[int]
    ) -> tuple[list[StoredCustomer], list[list[int]]]:
        """The customers that ids belong to, each once, and the indexes of the ids of each."""
        stored = await self._read(view, list(dict.fromkeys(ids)))
        by_customer: dict[str, tuple[StoredCustomer, list[int]]] = {}
        for customer_id, index in zip(ids, indexes, strict=True):
            customer = stored[customer_id]
            by_customer.setdefault(customer.customer_id, (customer, []))[1].append(index)
        return [customer for customer, _ in by_customer.values()], [places for _, places in by_customer.values()]

    async def _read(self, view: _View, ids: Sequence[str]) -> dict[str, StoredCustomer]:
        """The customers that ids belong to, by id."""
        customers: dict[str, StoredCustomer] = {}
        names = {customer_id: customer_id for customer_id in ids}  # the id to read for each id
        while names:
            requested = list(names.values())
            state_keys = [key for keys in view.keys for key in keys.states(requested)]
            values = await self._store.values([*state_keys, *profile_keys(requested)])
            columns = [values[at : at + len(requested)] for at in range(0, len(values), len(requested))]
            aliases = {}
            for (customer_id, name), *states, profile in zip(names.items(), *columns, strict=True):
                if (root := _alias_of(profile)) is not None:
                    aliases[customer_id] = root
                else:
                    customers[customer_id] = StoredCustomer(name, states, profile)
            names = aliases
        return customers


def _changed(view: _View, customer: StoredCustomer, change: CustomerChange) -> list[Write]:
    """The writes of a customer's change. A state that is not rewritten is not checked for conflicts either."""
    if change.profile is None:
        return []
    writes = [
        Write(key, old, new)
        for keys, old, new in zip(view.keys, customer.states, change.states, strict=True)
        if new is not None
        for key in keys.states([customer.customer_id])
    ]
    (key,) = profile_keys([customer.customer_id])
    return [*writes, Write(key, customer.profile, change.profile)]


def _merged_states(view: _View, source: StoredCustomer, target: StoredCustomer) -> list[Write]:
    """The writes that merge the states of two customers in all layouts.

    Raises:
        UnreadableProfileError: A state of the primary layout cannot be read. In another layout the target keeps the
            state that it has until the next load.
    """
    writes = []
    for layout, keys, given_up, stays in zip(view.layouts, view.keys, source.states, target.states, strict=True):
        source_key, target_key = keys.states([source.customer_id, target.customer_id])
        try:
            merged = _merged_state(layout, given_up, stays)
        except UnreadableProfileError:
            if layout is view.layouts[0]:
                raise
            merged = stays
        writes += [Write(source_key, given_up, None), Write(target_key, stays, merged)]
    return writes


def _merged_state(layout: StateLayout, given_up: bytes | None, stays: bytes | None) -> bytes | None:
    """The packed state of both; UnreadableProfileError if one cannot be read."""
    states = layout.unpack([given_up, stays])
    if (states.found & ~states.valid).any():
        raise UnreadableProfileError
    parts = [State(float(states.as_of[row]), states.slots[row]) for row in (0, 1) if states.found[row]]
    if not parts:
        return None
    return layout.pack(parts[0] if len(parts) == 1 else layout.merge(*parts))


def _alias_of(profile: bytes | None) -> str | None:
    try:
        return alias_of(profile)
    except UnreadableProfileError:
        return None


def _known_ids(customer: StoredCustomer) -> set[str]:
    """All ids of a customer, as far as its profile can be read."""
    try:
        return {customer.customer_id, *Profile.from_stored(customer.profile).aliases}
    except UnreadableProfileError:
        return {customer.customer_id}
