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

from feature_store.commit import Group, Write
from feature_store.errors import NotInClusterError, StoreUnavailableError
from feature_store.events import Event, erase_item, merge_item
from feature_store.live import Fold, Known, Outcome, Verdict
from feature_store.online import ARCHIVED, LAYOUTS, Keys, Redis
from feature_store.record import MOST_ALIASES, Record, UnreadableRecordError, alias_of
from feature_store.state import State, StateBatch

ATTEMPTS: Final = 100
"""So often somebody else may be faster; each time at least one commit got through."""
PAUSE_S: Final = 0.002
PAGE: Final = 200
"""Log entries looked through at a time."""


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
    """All that is known about a customer; ``states`` has one row, which is valid only if ``found``."""

    customer_id: str
    states: StateBatch
    record: Record


class CustomerStore:
    """Reads and changes customers under one layout."""

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
        self._fold = fold
        self._layout = fold.layout
        self._keys = Keys(fold.layout.fingerprint)
        self._most_waiting = most_waiting
        self._durable = durable
        self._clock = clock
        self._forget = forget

    async def register(self) -> None:
        """Say that there are states of this layout, so that whoever erases a customer finds them.

        StoreUnavailableError where Redis does not answer, or cannot keep what it acknowledges though it has to.
        """
        await self._redis.ask(b"SADD", LAYOUTS, self._layout.fingerprint.encode())
        if self._durable and not await self._redis.has_append_only_file():
            raise StoreUnavailableError("--durable needs a Redis with appendonly")

    async def record(self, events: Sequence[Event]) -> list[Outcome]:
        """Record events that were checked before, and say what became of each.

        ArchiveBehindError, StoreUnavailableError (then some may be recorded), ConflictError or NotInClusterError.
        """
        self._refuse_cluster()
        outcomes: list[Outcome | None] = [None] * len(events)
        waiting = list(range(len(events)))
        for attempt in range(ATTEMPTS):
            known, of_customer = await self._group([events[at].customer_id for at in waiting], waiting)
            mine = [[events[at] for at in places] for places in of_customer]
            changes = self._fold(known, mine, self._clock())
            groups, committing = [], []
            for customer, change, places in zip(known, changes, of_customer, strict=True):
                for at, outcome in zip(places, change.outcomes, strict=True):
                    outcomes[at] = outcome
                if change.log:
                    writes = self._writes(customer, change.state, change.record) if change.state is not None else []
                    groups.append(Group(writes, change.log))
                    committing.append(places)
            if not groups:
                if Verdict.DUPLICATE in {outcome.verdict for outcome in outcomes if outcome is not None}:
                    await self._settle()
                break
            done = await self._redis.commit(groups, self._most_waiting, durable=self._durable)
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
            found = await self._read([given_up, stays])
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
            if await self._commit(await self._merged(source, target)) is not None:
                self._forget(names)  # again: somebody may have read in between what was there before
                return target.customer_id
        raise ConflictError

    async def _merged(self, source: Known, target: Known) -> Group:
        given_up, stays = Record.stored(source.record), Record.stored(target.record)
        now, fold = self._clock(), self._fold
        merged = stays.merged(given_up, fold.interests, now, fold.rules.max_lateness_s)
        merged.aliases.append(source.customer_id)
        if len(merged.aliases) > MOST_ALIASES:
            raise MergeRefusedError(TOO_MANY)
        states = self._layout.unpack([source.state, target.state])
        if (states.found & ~states.valid).any():
            raise UnreadableRecordError
        state = None
        if states.found.any():
            parts = [State(float(states.as_of[row]), states.slots[row]) for row in (0, 1) if states.found[row]]
            state = self._layout.pack(parts[0] if len(parts) == 1 else self._layout.merge(*parts))
        alias = Record(alias_of=target.customer_id).pack()
        writes = self._writes(target, state, merged.pack())
        writes += self._writes(source, None, alias)
        if given_up.aliases:
            keys = Keys.records(given_up.aliases)
            old = await self._redis.ask(b"MGET", *keys)
            writes += [Write(key, value, alias) for key, value in zip(keys, old, strict=True)]
        return Group(writes, [merge_item(source.customer_id, target.customer_id)])

    async def erase(self, customer_id: str) -> None:
        """Erase a customer and all ids that were merged into it; ConflictError."""
        self._forget([customer_id])  # whatever comes of it: Redis may be away
        for _ in range(ATTEMPTS):
            customer = (await self._read([customer_id]))[customer_id]
            try:
                aliases = Record.stored(customer.record).aliases
            except UnreadableRecordError:
                aliases = []
            ids = sorted({customer_id, customer.customer_id, *aliases})
            layouts = {name.decode() for name in await self._redis.ask(b"SMEMBERS", LAYOUTS)}
            writes = self._writes(customer, None, None)
            writes += [Write(key, None, None, anyway=True) for key in Keys.records(ids)]
            for layout in layouts | {self._layout.fingerprint}:
                writes += [Write(key, None, None, anyway=True) for key in Keys(layout).of(ids)]
            self._forget(ids)
            log = [] if self._redis.is_cluster else [erase_item(ids)]  # in a cluster nothing waits for an archive
            position = await self._commit(Group(writes, log))
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
            customer = (await self._read([customer_id]))[customer_id]
            record = Record.stored(customer.record)
            if scoring is not None:
                record.scoring = scoring
            if automated_response is not None:
                record.automated_response = automated_response
            (key,) = Keys.records([customer.customer_id])
            names = {customer_id, *_names(customer)}
            self._forget(names)
            if await self._commit(Group([Write(key, customer.record, record.pack())])) is not None:
                self._forget(names)
                return record
        raise ConflictError

    async def get(self, customer_id: str) -> Customer:
        """All that is known about a customer; UnknownCustomerError or UnreadableRecordError."""
        found = (await self._read([customer_id]))[customer_id]
        if found.state is None and found.record is None:
            raise UnknownCustomerError
        states = self._layout.unpack([found.state])
        if states.found[0] and not states.valid[0]:
            raise UnreadableRecordError
        return Customer(found.customer_id, states, Record.stored(found.record))

    def _refuse_cluster(self) -> None:
        if self._redis.is_cluster:
            raise NotInClusterError

    async def _settle(self) -> None:
        """Before saying that something was done before: it may not be on disk yet. An empty commit waits for all."""
        if self._durable:
            await self._redis.commit([], durable=True)

    async def _commit(self, group: Group) -> int | None:
        """The position of the commit, None where somebody else was faster."""
        done = await self._redis.commit([group], durable=self._durable)
        return None if done.overtaken else done.position

    def _writes(self, customer: Known, state: bytes | None, record: bytes | None) -> list[Write]:
        """Both values of a customer, if they are still as they were read."""
        (state_key,), (record_key,) = self._keys.of([customer.customer_id]), Keys.records([customer.customer_id])
        return [Write(state_key, customer.state, state), Write(record_key, customer.record, record)]

    async def _group(self, ids: Sequence[str], places: Sequence[int]) -> tuple[list[Known], list[list[int]]]:
        """The customers that ids belong to, each once, and the places of each one's ids."""
        found = await self._read(list(dict.fromkeys(ids)))
        customers: dict[str, tuple[Known, list[int]]] = {}
        for customer_id, place in zip(ids, places, strict=True):
            known = found[customer_id]
            customers.setdefault(known.customer_id, (known, []))[1].append(place)
        return [known for known, _ in customers.values()], [mine for _, mine in customers.values()]

    async def _read(self, ids: Sequence[str]) -> dict[str, Known]:
        """What is stored of the customers that ids belong to, by id."""
        found: dict[str, Known] = {}
        names = {customer_id: customer_id for customer_id in ids}  # an id, and what is to be read for it
        while names:
            asked = list(names.values())
            values = await self._redis.values([*self._keys.of(asked), *Keys.records(asked)])
            further = {}
            for (customer_id, name), state, record in zip(
                names.items(), values[: len(asked)], values[len(asked) :], strict=True
            ):
                if (root := _alias_of(record)) is not None:
                    further[customer_id] = root
                else:
                    found[customer_id] = Known(name, state, record)
            names = further
        return found


FORGET_UNLESS_ARCHIVED: Final = b"if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', KEYS[2]) end"


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
