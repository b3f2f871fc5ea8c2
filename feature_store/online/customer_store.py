"""Single customers in Redis: events recorded, two merged, one erased, consent kept, all shown.

Each operation reads what is stored, computes what is to be stored (``live``, ``record``, ``state``: no I/O), and
commits it if nobody else was faster (``commit``); else it reads again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.definitions import Interests
from feature_store.errors import LayoutsChangedError, NotInClusterError, StoreUnavailableError
from feature_store.online import active_layouts as layouts
from feature_store.online.commit import Group, Write
from feature_store.online.store import ARCHIVED, LAYOUTS, Committed, Keys, Redis
from feature_store.state.events import Event, erase_item, merge_item
from feature_store.state.folding import Change, Fold, Known, Outcome, Verdict
from feature_store.state.layout import State, StateBatch, StateLayout
from feature_store.state.profile import MOST_ALIASES, Record, UnreadableRecordError, alias_of

ATTEMPTS: Final = 100
"""So often somebody else may be faster; each time at least one commit got through."""
PAUSE_S: Final = 0.002
PAGE: Final = 200
"""Log entries looked through at a time."""


UNKNOWN: Final = b"unknown"
"""Tag of the layouts before any were asked for: the first commit makes that good."""


class ConflictError(Exception):
    """Others kept changing this customer."""


class UnknownCustomerError(Exception):
    """Nothing is known about this customer."""


class MergeRefusedError(Exception):
    """Two ids cannot become one customer; ``args[0]`` is why (one of the constants below)."""


ITSELF: Final = "MERGE_WITH_ITSELF"
CYCLE: Final = "MERGE_CYCLE"
ALREADY: Final = "ALREADY_MERGED"
TOO_MANY: Final = "TOO_MANY_ALIASES"


@dataclass(frozen=True)
class Customer:
    """All that is known about a customer; ``states`` has one row of ``layout``, which is valid only if ``found``."""

    customer_id: str
    states: StateBatch
    record: Record
    layout: StateLayout


class _View:
    """The layouts that a change is computed for, the first in charge of it; a commit holds only while these do."""

    def __init__(self, fold: Fold, tag: bytes) -> None:
        self.fold: Final = fold
        self.tag: Final = tag
        self.layouts: Final = (fold.layout, *fold.others)
        self.keys: Final = [Keys(layout.fingerprint) for layout in self.layouts]


class CustomerStore:
    """Reads and changes customers under one layout, and keeps up their states of all others that there are."""

    def __init__(
        self,
        store: Redis,
        fold: Fold,
        *,
        most_waiting: int = 0,
        durable: bool = False,
        clock: Callable[[], float] = time.time,
        forget: Callable[[Iterable[str]], None] = lambda _ids: None,
    ) -> None:
        """``most_waiting``: commits that may wait for the archive, 0 for any number; ``durable``: answer from disk.

        ``forget`` is told the ids of customers of whom nothing that was read before may be used any more.
        """
        self._redis = store
        self._view = _View(fold, UNKNOWN)
        self._most_waiting = most_waiting
        self._durable = durable
        self._clock = clock
        self._forget = forget

    async def ensure_registered(self) -> None:
        """Register this layout, so that all servers keep its states up to date, and read which others there are.

        Both are known again after Redis has lost its data. Asked regularly, this also shows whether Redis takes writes.

        StoreUnavailableError where Redis does not answer, or cannot keep what it acknowledges though it has to.
        """
        await self.use(self._view.fold.layout, self._view.fold.interests)
        if self._durable and not await self._redis.has_append_only_file():
            raise StoreUnavailableError("--durable-events needs a Redis with appendonly")

    async def use(self, layout: StateLayout, interests: Interests) -> None:
        """Go over to the layout and interests of a model; StoreUnavailableError."""
        await layouts.register(self._redis, layout)
        found = await layouts.folded(self._redis, {one.fingerprint: one for one in self._view.layouts})
        others = [other for name, other in sorted(found.layouts.items()) if name != layout.fingerprint]
        self._view = _View(Fold(layout, interests, self._view.fold.rules, others), found.tag)

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        """Record events that were checked before, and say what became of each.

        ArchiveBehindError, StoreUnavailableError (then some may be recorded), ConflictError or NotInClusterError.
        """
        self._refuse_cluster()
        outcomes: list[Outcome | None] = [None] * len(events)
        waiting = list(range(len(events)))
        for attempt in range(ATTEMPTS):
            view = self._view
            known, of_customer = await self._group(view, [events[at].customer_id for at in waiting], waiting)
            mine = [[events[at] for at in places] for places in of_customer]
            changes = view.fold(known, mine, self._clock())
            groups, committing = [], []
            for customer, change, places in zip(known, changes, of_customer, strict=True):
                for at, outcome in zip(places, change.outcomes, strict=True):
                    outcomes[at] = outcome
                if change.log:
                    writes = [] if change.state is None else _changed(view, customer, change)
                    groups.append(Group(writes, change.log))
                    committing.append(places)
            if not groups:
                if Verdict.DUPLICATE in {outcome.verdict for outcome in outcomes if outcome is not None}:
                    await self._settle()
                break
            if (done := await self._committed(view, groups, self._most_waiting)) is None:
                continue
            waiting = sorted(at for group in done.overtaken for at in committing[group])
            if not waiting:
                break
            await asyncio.sleep(random.uniform(0, PAUSE_S * min(attempt, 10)))  # noqa: S311  # no secret
        else:
            raise ConflictError
        return [outcome for outcome in outcomes if outcome is not None]

    async def merge(self, given_up: str, stays: str) -> str:
        """Make one customer of two and return its id.

        MergeRefusedError, UnreadableRecordError, ConflictError or NotInClusterError.
        """
        self._refuse_cluster()
        if given_up == stays:
            raise MergeRefusedError(ITSELF)
        for _ in range(ATTEMPTS):
            view = self._view
            found = await self._read(view, [given_up, stays])
            source, target = found[given_up], found[stays]
            if source.customer_id != given_up:
                if source.customer_id == target.customer_id:
                    await self._settle()
                    return target.customer_id
                raise MergeRefusedError(ALREADY)
            if target.customer_id == given_up:
                raise MergeRefusedError(CYCLE)
            names = {given_up, stays, *_names(source), *_names(target)}
            self._forget(names)
            if await self._commit(view, await self._merged(view, source, target)) is not None:
                self._forget(names)  # again: somebody may have read in between what was there before
                return target.customer_id
        raise ConflictError

    async def _merged(self, view: _View, source: Known, target: Known) -> Group:
        given_up, stays = Record.stored(source.record), Record.stored(target.record)
        now, fold = self._clock(), view.fold
        merged = stays.merged(given_up, fold.interests, now, fold.rules.max_lateness_s)
        merged.aliases.append(source.customer_id)
        if len(merged.aliases) > MOST_ALIASES:
            raise MergeRefusedError(TOO_MANY)
        state = _merged_state(fold.layout, source.state, target.state)
        alias = Record(alias_of=target.customer_id).pack()
        writes = _writes(view, target, state, merged.pack())
        writes += _writes(view, source, None, alias)
        writes += _merged_beside(view, source, target)
        if given_up.aliases:
            keys = Keys.records(given_up.aliases)
            old = await self._redis.ask(b"MGET", *keys)
            writes += [Write(key, value, alias) for key, value in zip(keys, old, strict=True)]
        return Group(writes, [merge_item(source.customer_id, target.customer_id)])

    async def erase(self, customer_id: str) -> None:
        """Erase a customer and all ids that were merged into it; ConflictError."""
        self._forget([customer_id])  # whatever comes of it: Redis may be away
        for _ in range(ATTEMPTS):
            view = self._view
            customer = (await self._read(view, [customer_id]))[customer_id]
            try:
                aliases = Record.stored(customer.record).aliases
            except UnreadableRecordError:
                aliases = []
            ids = sorted({customer_id, customer.customer_id, *aliases})
            names = {name.decode() for name in await self._redis.ask(b"SMEMBERS", LAYOUTS)}
            writes = _writes(view, customer, None, None)
            writes += [Write(key, None, None, anyway=True) for key in Keys.records(ids)]
            for name in names | {layout.fingerprint for layout in view.layouts}:
                writes += [Write(key, None, None, anyway=True) for key in Keys(name).of(ids)]
            self._forget(ids)
            log = [] if self._redis.is_cluster else [erase_item(ids)]  # in a cluster nothing waits for an archive
            position = await self._commit(view, Group(writes, log))
            self._forget(ids)
            if position is not None:
                if log:
                    await self._scrub(set(ids), position)
                return
        raise ConflictError

    async def _scrub(self, ids: Collection[str], erased: int) -> None:
        """Take customers out of what waits for the archive, where the item at ``erased`` does not have to."""
        start = int(await self._redis.ask(b"GET", ARCHIVED) or 0) + 1
        wanted = [json.dumps(customer_id, ensure_ascii=False).encode() for customer_id in ids]
        for first in range(start, erased, PAGE):
            keys = [Keys.log(position) for position in range(first, min(first + PAGE, erased))]
            for key, entry in zip(keys, await self._redis.ask(b"MGET", *keys), strict=True):
                if entry is not None and any(name in entry for name in wanted):
                    items = [item for item in json.loads(entry) if not _of(item, ids)]
                    new = json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode()
                    await self._redis.ask(b"SET", key, new, b"XX")  # gone meanwhile: then the archive erases it
        # Where nobody archives, nobody needs to be told. An archiver says that it is there before it reads.
        await self._redis.ask(b"EVAL", FORGET_UNLESS_ARCHIVED, b"2", ARCHIVED, Keys.log(erased))

    async def consent(self, customer_id: str, scoring: bool | None, automated_response: bool | None) -> Record:
        """Keep what a customer allows (None: as it was), return the record; UnreadableRecordError or ConflictError."""
        self._forget([customer_id])  # whatever comes of it: Redis may be away
        for _ in range(ATTEMPTS):
            view = self._view
            customer = (await self._read(view, [customer_id]))[customer_id]
            record = Record.stored(customer.record)
            if scoring is not None:
                record.scoring = scoring
            if automated_response is not None:
                record.automated_response = automated_response
            (key,) = Keys.records([customer.customer_id])
            names = {customer_id, *_names(customer)}
            self._forget(names)
            if await self._commit(view, Group([Write(key, customer.record, record.pack())])) is not None:
                self._forget(names)
                return record
        raise ConflictError

    async def get(self, customer_id: str) -> Customer:
        """All that is known about a customer; UnknownCustomerError or UnreadableRecordError."""
        view = self._view
        layout, found = view.fold.layout, (await self._read(view, [customer_id]))[customer_id]
        if found.state is None and found.record is None:
            raise UnknownCustomerError
        states = layout.unpack([found.state])
        if states.found[0] and not states.valid[0]:
            raise UnreadableRecordError
        return Customer(found.customer_id, states, Record.stored(found.record), layout)

    def _refuse_cluster(self) -> None:
        if self._redis.is_cluster:
            raise NotInClusterError

    async def _settle(self) -> None:
        """Before saying that something was done before: it may not be on disk yet. An empty commit waits for all."""
        if self._durable:
            await self._redis.commit([], durable=True)

    async def _commit(self, view: _View, group: Group) -> int | None:
        """The position of the commit, None where somebody else was faster."""
        done = await self._committed(view, [group])
        return None if done is None or done.overtaken else done.position

    async def _committed(self, view: _View, groups: Sequence[Group], most_waiting: int = 0) -> Committed | None:
        """A commit, None where there are other layouts by now than it was computed for: the next one knows them."""
        try:
            return await self._redis.commit(groups, most_waiting, tag=view.tag, durable=self._durable)
        except LayoutsChangedError:
            await self.ensure_registered()
            return None

    async def _group(
        self, view: _View, ids: Sequence[str], places: Sequence[int]
    ) -> tuple[list[Known], list[list[int]]]:
        """The customers that ids belong to, each once, and the places of each one's ids."""
        found = await self._read(view, list(dict.fromkeys(ids)))
        customers: dict[str, tuple[Known, list[int]]] = {}
        for customer_id, place in zip(ids, places, strict=True):
            known = found[customer_id]
            customers.setdefault(known.customer_id, (known, []))[1].append(place)
        return [known for known, _ in customers.values()], [mine for _, mine in customers.values()]

    async def _read(self, view: _View, ids: Sequence[str]) -> dict[str, Known]:
        """What is stored of the customers that ids belong to, by id."""
        found: dict[str, Known] = {}
        names = {customer_id: customer_id for customer_id in ids}  # an id, and what is to be read for it
        while names:
            asked = list(names.values())
            wanted = [key for keys in view.keys for key in keys.of(asked)]
            values = await self._redis.values([*wanted, *Keys.records(asked)])
            columns = [values[at : at + len(asked)] for at in range(0, len(values), len(asked))]
            further = {}
            for (customer_id, name), state, *others, record in zip(names.items(), *columns, strict=True):
                if (root := _alias_of(record)) is not None:
                    further[customer_id] = root
                else:
                    found[customer_id] = Known(name, state, record, others)
            names = further
        return found


FORGET_UNLESS_ARCHIVED: Final = b"if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', KEYS[2]) end"


def _changed(view: _View, customer: Known, change: Change) -> list[Write]:
    """All that events change of a customer."""
    writes = _writes(view, customer, change.state, change.record)
    for keys, old, new in zip(view.keys[1:], customer.others, change.others, strict=True):
        if new is not None:
            (key,) = keys.of([customer.customer_id])
            writes.append(Write(key, old, new))
    return writes


def _writes(view: _View, customer: Known, state: bytes | None, record: bytes | None) -> list[Write]:
    """State of the first layout and record of a customer, if they are still as they were read."""
    (state_key,), (record_key,) = view.keys[0].of([customer.customer_id]), Keys.records([customer.customer_id])
    return [Write(state_key, customer.state, state), Write(record_key, customer.record, record)]


def _merged_beside(view: _View, source: Known, target: Known) -> list[Write]:
    """What a merge changes in the other layouts; what cannot be read there is left to a load."""
    writes = []
    for layout, keys, given_up, stays in zip(
        view.layouts[1:], view.keys[1:], source.others, target.others, strict=True
    ):
        from_key, into_key = keys.of([source.customer_id, target.customer_id])
        try:
            state = _merged_state(layout, given_up, stays)
        except UnreadableRecordError:
            state = stays
        writes += [Write(from_key, given_up, None), Write(into_key, stays, state)]
    return writes


def _merged_state(layout: StateLayout, given_up: bytes | None, stays: bytes | None) -> bytes | None:
    """The packed state of both; UnreadableRecordError where one cannot be read."""
    states = layout.unpack([given_up, stays])
    if (states.found & ~states.valid).any():
        raise UnreadableRecordError
    parts = [State(float(states.as_of[row]), states.slots[row]) for row in (0, 1) if states.found[row]]
    if not parts:
        return None
    return layout.pack(parts[0] if len(parts) == 1 else layout.merge(*parts))


def _alias_of(record: bytes | None) -> str | None:
    try:
        return alias_of(record)
    except UnreadableRecordError:
        return None


def _names(customer: Known) -> set[str]:
    """All ids of a customer, as far as they can be read."""
    try:
        return {customer.customer_id, *Record.stored(customer.record).aliases}
    except UnreadableRecordError:
        return {customer.customer_id}


def _of(item: list[object], ids: Collection[str]) -> bool:
    """Whether a log item is about one of the customers."""
    return (item[0] == "e" and item[1] in ids) or (item[0] == "m" and (item[1] in ids or item[2] in ids))
