"""Removes erased customers from the log entries that wait for the archive."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from feature_store.online.keys import ARCHIVED, HELD, log_key
from feature_store.online.store import RedisStore
from feature_store.state.log_entries import without_customers

PAGE: Final = 200
"""Log entries searched at a time."""
REPLACE: Final = b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""KEYS: an entry. ARGV: what it was computed from, and what it becomes. Returns whether it was still the same."""
EMPTY_UNLESS_NEEDED: Final = b"""
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
    redis.call('SET', KEYS[3], '[]', 'XX')
end
"""
"""KEYS: archived, held, an entry."""


async def erase_from_log(store: RedisStore, ids: Collection[str], erased: int) -> None:
    """Remove customers from the entries before the erasure, and then the erasure itself if nobody needs it.

    The archive needs it, and so does a load that is running. An archiver or a load announces itself before it reads the
    log, so it either sees the erasure or finds nothing of the customers.

    Args:
        store: Redis.
        ids: All ids of the customers.
        erased: Position of the commit that erased them.

    Raises:
        InputError: An entry is malformed.
        StoreUnavailableError: Redis does not answer.
    """
    start = int(await store.ask(b"GET", ARCHIVED) or 0) + 1
    for first in range(start, erased, PAGE):
        positions = range(first, min(first + PAGE, erased))
        entries = await store.ask(b"MGET", *map(log_key, positions))
        for position, entry in zip(positions, entries, strict=True):
            await _scrub(store, position, entry, ids)
    await store.ask(b"EVAL", EMPTY_UNLESS_NEEDED, b"3", ARCHIVED, HELD, log_key(erased))


async def _scrub(store: RedisStore, position: int, entry: bytes | None, ids: Collection[str]) -> None:
    """Remove customers from one entry. If it was archived in the meantime, the archive erases them itself."""
    key = log_key(position)
    while entry is not None and (scrubbed := without_customers(position, entry, ids)) is not None:
        if await store.ask(b"EVAL", REPLACE, b"1", key, entry, scrubbed):
            return
        entry = await store.ask(b"GET", key)  # another erasure has changed it
