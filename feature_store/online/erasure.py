"""Erases a customer: from states and profiles in one commit, then from the log entries that wait for the archive.

::

    profile ──position──► entry ──link──► entry ──link──► … : all entries that mention the customer, newest first

Each log entry names the previous entry of every customer that it mentions, and a profile holds the position of the
newest one. So an erasure reads only the customer's own entries, however many wait for the archive. Until they are all
rewritten, the tombstone of the customer names those that are left: an erasure that is interrupted is completed by the
next one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.online.commit import POSITION, Group, Write, position_of
from feature_store.online.customer_reader import LayoutView, known_ids, read_customers
from feature_store.online.epochs import parse_epochs
from feature_store.online.event_log import EMPTY_UNLESS_NEEDED
from feature_store.online.keys import (
    ARCHIVED,
    HELD,
    LOG,
    LOG_EPOCHS,
    STORED_LAYOUTS,
    Keys,
    log_key,
    profile_keys,
    tombstone_keys,
)
from feature_store.online.store import RedisStore
from feature_store.state.checksum import with_checksum
from feature_store.state.log_entries import (
    LoggedErasure,
    LoggedLink,
    decode_entry,
    encode_erasure,
    without_customers,
)
from feature_store.state.profile import Profile, UnreadableProfileError
from feature_store.state.tombstone import KEEP_S, Tombstone

EVERYWHERE: Final = 0
"""Stands for the positions of all entries, if the profile cannot be read or was lost."""
PAGE: Final = 200
"""Log entries read at a time."""
REPLACE: Final = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('PERSIST', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""KEYS: an entry. ARGV: what it was computed from, and what it becomes. Returns whether it was still the same. PERSIST
changes nothing: as the first write it lets the script finish even if memory is full (see ``commit.SCRIPT``)."""
COMPLETE: Final = b"""
if redis.call('GETRANGE', KEYS[1], 8, 15) == ARGV[1] then
    redis.call('PERSIST', KEYS[1])
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
"""
"""KEYS: a tombstone. ARGV: its position, its new value, seconds until it expires."""


@dataclass(frozen=True)
class Erasure:
    """An erasure that is about to be committed.

    Attributes:
        ids: All ids of the customer.
        group: What is to be committed.
        tombstones: Keys of the tombstones.
        erased_at: Unix seconds.
        pending: Positions of log entries that lead to all entries that mention the customer.
        unfinished: Position of an earlier erasure of the customer that was not completed; 0 if there was none.
    """

    ids: Sequence[str]
    group: Group
    tombstones: Sequence[bytes]
    erased_at: float
    pending: Sequence[int]
    unfinished: int


async def plan_erasure(store: RedisStore, view: LayoutView, customer_id: str, now: float) -> Erasure:
    """What the erasure of a customer writes.

    Args:
        store: Redis.
        view: The active layouts.
        customer_id: Any id of the customer.
        now: Unix seconds.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    customer = (await read_customers(store, view, [customer_id]))[customer_id]
    unfinished, earlier_ids = await _unfinished(store, view, customer_id)
    ids = sorted({customer_id, *known_ids(customer), *earlier_ids})
    keys = tombstone_keys(view.erasure_key, ids)
    stored = await store.values(keys)
    before = [tombstone for value in stored if (tombstone := Tombstone.from_stored(value)) is not None]
    pending = {at for old in before for at in old.pending}
    erased_at = now
    try:
        # An event may be ahead of the server's clock.
        erased_at = max(now, customer.as_of, Profile.from_stored(customer.profile).last_seen)
        pending |= {EVERYWHERE} if customer.has_lost_profile else {position_of(customer.profile)} - {0}
    except UnreadableProfileError:
        pending.add(EVERYWHERE)
    packed = Tombstone(erased_at, sorted(pending)).pack()
    fingerprints = {name.decode() for name in await store.ask(b"SMEMBERS", STORED_LAYOUTS)}
    fingerprints.update(layout.fingerprint for layout in view.layouts)
    # Tombstones first: in a cluster, where keys are written one by one, a load looks at them after its last write.
    writes = [Write(key, old, packed) for key, old in zip(keys, stored, strict=True)]
    # Conditional on what was read: an event that came in since starts the erasure again.
    writes += [
        Write(key, state, None)
        for layout, state in zip(view.keys, customer.states, strict=True)
        for key in layout.states([customer.customer_id])
    ]
    writes += [Write(key, customer.profile, None) for key in profile_keys([customer.customer_id])]
    writes += [Write(key, None, None, unconditional=True) for key in profile_keys(ids)]
    for fingerprint in fingerprints:
        writes += [Write(key, None, None, unconditional=True) for key in Keys(fingerprint).states(ids)]
    log = [] if store.is_cluster else [encode_erasure(ids, erased_at)]  # a cluster has no log to archive
    return Erasure(ids, Group(writes, log), keys, erased_at, sorted(pending), unfinished)


async def complete_erasure(store: RedisStore, erasure: Erasure, position: int) -> None:
    """Remove the customer from the log, and note that nothing is left to do.

    The archive needs the entry of the erasure itself, and so does a load that is running. An archiver or a load
    announces itself before it reads the log, so it either sees the erasure or finds nothing of the customer.

    Args:
        store: Redis.
        erasure: What was committed.
        position: Position of the commit.

    Raises:
        InputError: An entry is malformed.
        StoreUnavailableError: Redis does not answer.
    """
    if store.is_cluster:
        for key in erasure.tombstones:
            await store.ask(b"EXPIRE", key, b"%d" % KEEP_S)
        return
    await _scrub_all(store, set(erasure.ids), erasure.pending)
    for erased in (erasure.unfinished, position):
        await store.ask(b"EVAL", EMPTY_UNLESS_NEEDED, b"3", ARCHIVED, HELD, log_key(erased))
    stamp, value = position.to_bytes(8, "little"), Tombstone(erasure.erased_at).pack()
    for key in erasure.tombstones:
        stored = with_checksum(key, value[: POSITION.start] + stamp + value[POSITION.stop :])
        await store.ask(b"EVAL", COMPLETE, b"1", key, stamp, stored, b"%d" % KEEP_S)


async def _unfinished(store: RedisStore, view: LayoutView, customer_id: str) -> tuple[int, set[str]]:
    """Position and ids of an earlier erasure of the customer that was not completed; 0 and no ids if there is none."""
    (value,) = await store.values(tombstone_keys(view.erasure_key, [customer_id]))
    tombstone = Tombstone.from_stored(value)
    if tombstone is None or not tombstone.pending:
        return 0, set()
    position = position_of(value)
    entry = await store.ask(b"GET", log_key(position))
    items = [] if entry is None else decode_entry(position, entry)
    return position, {name for item in items if isinstance(item, LoggedErasure) for name in item.customer_ids}


async def _scrub_all(store: RedisStore, ids: Collection[str], pending: Sequence[int]) -> None:
    """Remove customers from all entries that wait for the archive and that ``pending`` leads to."""
    if not pending:
        return
    archived, epochs = await store.ask(b"MGET", ARCHIVED, LOG_EPOCHS)
    start = int(archived or 0) + 1
    # Entries of earlier releases have no links: they are searched one by one.
    linked = next((epoch.first for epoch in parse_epochs(epochs)), start)
    if EVERYWHERE in pending:
        pending = range(start, int(await store.ask(b"GET", LOG) or 0) + 1)
    positions, done = sorted({at for at in pending if at >= start}), set[int]()
    while positions:
        page = positions[-PAGE:]
        del positions[-PAGE:]
        done.update(page)
        entries = await store.ask(b"MGET", *map(log_key, page))
        following: set[int] = set()
        for position, entry in zip(page, entries, strict=True):
            following |= await _scrub(store, position, entry, ids)
        if min(following, default=linked) < linked:
            following = {at for at in following if at >= linked} | set(range(start, linked))
        positions = sorted({*positions, *(at for at in following if at >= start)} - done)


async def _scrub(store: RedisStore, position: int, entry: bytes | None, ids: Collection[str]) -> set[int]:
    """Remove customers from one entry, and return the positions of the entries before it that mention them.

    If the entry was archived in the meantime, the archive erases them itself.
    """
    key, linked = log_key(position), set[int]()
    while entry is not None and (scrubbed := without_customers(position, entry, ids)) is not None:
        items = decode_entry(position, entry)
        linked |= {item.position for item in items if isinstance(item, LoggedLink) and item.customer_id in ids}
        if scrubbed == entry or await store.ask(b"EVAL", REPLACE, b"1", key, entry, scrubbed):
            break
        entry = await store.ask(b"GET", key)  # another erasure has changed it
    return linked - {0}
