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
from feature_store.errors import LayoutsChangedError, NotInClusterError, StoreFullError, StoreUnavailableError
from feature_store.online import active_layouts
from feature_store.online.commit import CommitResult, Group, Write, position_of
from feature_store.online.customer_reader import LayoutView, known_ids, read_customers, read_grouped
from feature_store.online.customer_writes import changed_writes, flag_writes, merged_writes, profile_writes
from feature_store.online.erasure import complete_erasure, plan_erasure
from feature_store.online.keys import profile_keys
from feature_store.online.store import RedisStore
from feature_store.state.events import Event
from feature_store.state.folding import EventFolder, Outcome, StoredCustomer, Verdict
from feature_store.state.layout import StateBatch, StateLayout
from feature_store.state.log_entries import encode_consent, encode_link, encode_merge
from feature_store.state.profile import MAX_ALIASES, Profile, UnreadableProfileError

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
        self._view = LayoutView(folder, UNKNOWN_VERSION)
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
        if self._durable and (problem := await self._store.durability_problem()):
            raise StoreUnavailableError(problem)

    async def use(self, layout: StateLayout, interests: Interests) -> None:
        """Switch to the layout and interests of another model; StoreUnavailableError."""
        refused: StoreFullError | None = None
        try:
            await active_layouts.register(self._store, layout)
        except StoreFullError as error:  # erasures and consents need the active layouts even then
            refused = error
        known = {known.fingerprint: known for known in self._view.layouts}
        active = await active_layouts.read_active(self._store, known)
        if refused is not None and not (layout.fingerprint in active.layouts and active.erasure_key):
            raise refused
        others = [other for name, other in sorted(active.layouts.items()) if name != layout.fingerprint]
        folder = EventFolder([layout, *others], interests, self._view.folder.rules)
        self._view = LayoutView(folder, active.version, active.erasure_key)
        if refused is not None:
            raise refused

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
            ids = [events[at].customer_id for at in waiting]
            # Customers without a profile are rarely erased ones. The commit finds out, and then they are read again.
            customers, of_customer = await read_grouped(self._store, view, ids, waiting, tombstones=attempt > 0)
            their_events = [[events[at] for at in indexes] for indexes in of_customer]
            await self._yield_turn(waiting)
            changes = view.folder.fold(customers, their_events, self._clock())
            await self._yield_turn(waiting)
            groups, committing = [], []
            for customer, change, indexes in zip(customers, changes, of_customer, strict=True):
                for at, outcome in zip(indexes, change.outcomes, strict=True):
                    outcomes[at] = outcome
                if change.log:
                    link = encode_link(customer.customer_id, position_of(customer.profile))
                    groups.append(Group(changed_writes(view, customer, change), [*change.log, link]))
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

        States are added up, so an event that was recorded under both ids counts twice: record each event under one id.

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
            customers = await read_customers(self._store, view, [given_up, stays], tombstones=True)
            source, target = customers[given_up], customers[stays]
            if source.customer_id != given_up:
                if source.customer_id == target.customer_id:
                    await self._settle()
                    return target.customer_id
                raise MergeRefusedError(ALREADY)
            if target.customer_id == given_up:
                raise MergeRefusedError(CYCLE)
            ids = {given_up, stays, *known_ids(source), *known_ids(target)}
            self._forget(ids)
            if await self._commit(view, await self._merged(view, source, target)) is not None:
                self._forget(ids)  # again: the old state may have been read in between
                return target.customer_id
        raise ConflictError

    async def _merged(self, view: LayoutView, source: StoredCustomer, target: StoredCustomer) -> Group:
        given_up, stays = source.unpacked_profile(), target.unpacked_profile()
        folder = view.folder
        merged = stays.merged(given_up, folder.interests, self._clock(), folder.rules.max_lateness_s)
        merged.aliases.append(source.customer_id)
        if len(merged.aliases) > MAX_ALIASES:
            raise MergeRefusedError(TOO_MANY)
        alias = Profile(alias_of=target.customer_id).pack()
        writes = merged_writes(view, source, target)
        writes += profile_writes(view, source, alias) + profile_writes(view, target, merged.pack())
        if given_up.aliases:
            keys = profile_keys(given_up.aliases)
            old = await self._store.values(keys)
            writes += [Write(key, value, alias) for key, value in zip(keys, old, strict=True)]
        log = [encode_merge(source.customer_id, target.customer_id)]
        if not (merged.scoring and merged.automated_response):
            log += _consent_items(target, merged)[:1]
        log += [encode_link(customer.customer_id, position_of(customer.profile)) for customer in (source, target)]
        return Group(writes, log)

    async def erase(self, customer_id: str) -> None:
        """Erase a customer and all ids that were merged into it.

        Nothing of it is left in Redis, except a keyed hash of each id with the time of the erasure, so that neither an
        event from before nor a load brings the customer back. If there is an archive, the ids also stay in one log
        entry until the archiver has erased them there. After an error, call again: what was left undone is then done.

        Args:
            customer_id: Any id of the customer, which need not be known.

        Raises:
            ConflictError: Other processes kept changing the customer.
            StoreUnavailableError: Redis does not answer.
        """
        self._forget([customer_id])  # even if the erasure fails because Redis does not answer
        if self._view.version == UNKNOWN_VERSION:
            await self._read_layouts()
        for _ in range(MAX_ATTEMPTS):
            view = self._view
            erasure = await plan_erasure(self._store, view, customer_id, self._clock())
            self._forget(erasure.ids)
            position = await self._commit(view, erasure.group, when_full=True)
            self._forget(erasure.ids)  # again: the old state may have been read in between
            if position is not None:
                await complete_erasure(self._store, erasure, position)
                return
        raise ConflictError

    async def consent(self, customer_id: str, scoring: bool | None, automated_response: bool | None) -> Profile:
        """Store what a customer allows.

        A customer whose profile was lost gets a new one. It does not allow what is not named, because nobody knows what
        it allowed before, and it takes no events up to the time of its states, because nobody knows which were counted.

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
            customer = (await read_customers(self._store, view, [customer_id], tombstones=True))[customer_id]
            profile = _profile_for_consent(customer)
            if scoring is not None:
                profile.scoring = scoring
            if automated_response is not None:
                profile.automated_response = automated_response
            writes = profile_writes(view, customer, profile.pack())
            if customer.profile is None:
                state_keys = [key for keys in view.keys for key in keys.states([customer.customer_id])]
                writes += flag_writes(state_keys, customer.states)
            log = [] if self._store.is_cluster else _consent_items(customer, profile)
            ids = {customer_id, *known_ids(customer)}
            self._forget(ids)
            if await self._commit(view, Group(writes, log), when_full=True) is not None:
                self._forget(ids)
                return profile
        raise ConflictError

    async def get(self, customer_id: str) -> Customer:
        """All that is stored for a customer; UnknownCustomerError or UnreadableProfileError."""
        view = self._view
        layout = view.layouts[0]
        customer = (await read_customers(self._store, view, [customer_id]))[customer_id]
        if customer.states[0] is None and customer.profile is None:
            raise UnknownCustomerError
        states = layout.unpack([customer.states[0]])
        if (states.found[0] and not states.valid[0]) or customer.has_lost_profile:
            raise UnreadableProfileError
        return Customer(customer.customer_id, states, Profile.from_stored(customer.profile), layout)

    def _refuse_cluster(self) -> None:
        if self._store.is_cluster:
            raise NotInClusterError

    async def _settle(self) -> None:
        """Wait until earlier commits are on disk, before reporting that something was done already."""
        if self._durable:
            await self._store.commit([], durable=True)

    async def _commit(self, view: LayoutView, group: Group, *, when_full: bool = False) -> int | None:
        """The position of the commit; None after a conflict."""
        result = await self._try_commit(view, [group], when_full=when_full)
        return None if result is None or result.conflicts else result.position

    async def _try_commit(
        self, view: LayoutView, groups: Sequence[Group], max_waiting: int = 0, *, when_full: bool = False
    ) -> CommitResult | None:
        """Commit; None if the active layouts have changed, after reading them for the next attempt."""
        try:
            return await self._store.commit(
                groups, max_waiting, layouts_version=view.version, durable=self._durable, when_full=when_full
            )
        except LayoutsChangedError:
            await self._read_layouts()
            return None

    async def _read_layouts(self) -> None:
        """Register, or at least read the active layouts if memory is full; StoreUnavailableError."""
        before = self._view
        try:
            await self.ensure_registered()
        except StoreFullError:
            if self._view is before:
                raise


def _profile_for_consent(customer: StoredCustomer) -> Profile:
    """The profile in which a consent is stored, a new one if it was lost; UnreadableProfileError."""
    if not customer.has_lost_profile:
        return customer.unpacked_profile()
    return Profile(scoring=False, automated_response=False, not_before=customer.as_of)


def _consent_items(customer: StoredCustomer, profile: Profile) -> list[str]:
    name, scoring, automated_response = customer.customer_id, profile.scoring, profile.automated_response
    return [
        encode_consent(name, scoring=scoring, automated_response=automated_response),
        encode_link(name, position_of(customer.profile)),
    ]
