"""The log in Redis, for commands (synchronous): entries of commits that wait for the archive.

Every commit has an entry, if only an empty one. So an entry that is missing although it was not archived was lost,
for example deleted, evicted, or never replicated, and the events in it are in no archive. Reading the log then fails
instead of going on without them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from feature_store.errors import InputError
from feature_store.online.command_client import CommandClient
from feature_store.online.epochs import Epoch, parse_epochs
from feature_store.online.keys import ARCHIVED, CHUNK, ERASURE_KEY, HELD, LOG, LOG_EPOCHS, log_key

HOLD_S: Final = 600
"""A running load renews its hold on the log; after a killed one, the hold ends after this time."""
FORGET: Final = b"""
local first, last, held = tonumber(ARGV[1]), tonumber(ARGV[2]), redis.call('GET', KEYS[2])
if held then
    last = math.min(last, tonumber(held))
end
for position = first, last do
    redis.call('UNLINK', KEYS[3] .. ':' .. position)
end
if last > tonumber(redis.call('GET', KEYS[1]) or 0) then
    redis.call('SET', KEYS[1], string.format('%d', last))
end
"""
"""KEYS: archived, held, log. ARGV: the first and the last position. The mark and the entries change together: whoever
is killed leaves neither an entry below the mark, at which nobody looks again, nor a gap above it."""
EMPTY_UNLESS_NEEDED: Final = b"""
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
    redis.call('PERSIST', KEYS[3])
    redis.call('SET', KEYS[3], '[]', 'XX')
end
"""
"""KEYS: archived, held, an entry. Empties the entry of an erasure if neither an archive nor a load needs it, even if
memory is full: PERSIST changes nothing, but is a first write that takes no memory (see ``commit.SCRIPT``)."""
ERASURE_START: Final = b'[["d",'
"""An erasure is the only item of its entry."""
MAX_RANGES: Final = 5
"""Ranges of missing positions that a message names."""


class EventLog:
    """The log entries in Redis that wait for the archive."""

    def __init__(self, client: CommandClient, *, accept_missing: bool = False) -> None:
        """Give access to the log.

        Args:
            client: Redis.
            accept_missing: Go on although entries are missing. The events in them are lost.
        """
        self.client: Final = client
        self._redis = client.redis
        self._accept_missing = accept_missing

    def position(self) -> int:
        """Position of the newest commit; 0 if there was none."""
        return int(self.client.call(self._redis.get, LOG) or 0)

    def epochs(self) -> list[Epoch]:
        """The epochs of the log, oldest first."""
        return parse_epochs(self.client.call(self._redis.get, LOG_EPOCHS))

    def erasure_key(self) -> bytes:
        """Key of the hashes of erased customers, which is made if there is none."""
        self.client.call(self._redis.set, ERASURE_KEY, secrets.token_hex(16), nx=True)
        return bytes(self.client.call(self._redis.get, ERASURE_KEY))

    def entries(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """The entries from ``first`` to ``last`` that are not archived yet, as (position, JSON), in order.

        Raises:
            InputError: Entries are missing that are not archived.
        """
        for start in range(first, last + 1, CHUNK):
            positions = range(start, min(start + CHUNK, last + 1))
            entries = self.client.call(self._redis.mget, [log_key(position) for position in positions])
            if None in entries and not self._accept_missing:
                self._check([at for at, entry in zip(positions, entries, strict=True) if entry is None])
            yield from ((at, entry) for at, entry in zip(positions, entries, strict=True) if entry is not None)

    def archived(self) -> int | None:
        """Position up to which everything is archived; None if there is no archive."""
        position = self.client.call(self._redis.get, ARCHIVED)
        return None if position is None else int(position)

    def announce_archive(self) -> None:
        """Declare that there is an archive, so that later erasures are logged for it."""
        self.client.call(self._redis.set, ARCHIVED, 0, nx=True)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep entries of later commits although they are archived; :meth:`hold` renews it."""
        start = self.position()
        self.hold(start)
        try:
            yield
        finally:
            self.client.call(self._redis.delete, HELD)
            self._empty_erasures(start)

    def hold(self, position: int) -> None:
        """Keep entries after ``position`` for the next HOLD_S seconds."""
        self.client.call(self._redis.set, HELD, position, ex=HOLD_S)

    def forget(self, first: int, last: int) -> None:
        """Note that everything up to ``last`` is archived, and remove the entries from ``first`` that are not held."""
        for start in range(first, last + 1, CHUNK):
            end = min(start + CHUNK - 1, last)
            self.client.evaluate(FORGET, [ARCHIVED, HELD, LOG], b"%d" % start, b"%d" % end)

    def remove_archived(self) -> int:
        """Remove entries that are archived although they are still there, and return their number.

        Releases before 0.2.0 could leave some behind when they were killed.
        """
        archived, removed = self.archived() or 0, 0
        pattern = re.compile(re.escape(LOG) + rb":([0-9]+)")
        scan = self._redis.scan_iter(LOG + b":*", CHUNK)
        while (key := self.client.call(next, scan, None)) is not None:
            if (match := pattern.fullmatch(key)) and int(match[1]) <= archived:
                removed += int(self.client.call(self._redis.unlink, key))
        return removed

    def _empty_erasures(self, start: int) -> None:
        """Remove the erasures after a position, which were kept for a load only, if there is no archive."""
        if self.archived() is not None:
            return
        for first in range(start + 1, self.position() + 1, CHUNK):
            keys = [log_key(at) for at in range(first, min(first + CHUNK, self.position() + 1))]
            for key, entry in zip(keys, self.client.call(self._redis.mget, keys), strict=True):
                if entry is not None and entry.startswith(ERASURE_START):
                    self.client.evaluate(EMPTY_UNLESS_NEEDED, [ARCHIVED, HELD, key])

    def _check(self, missing: list[int]) -> None:
        """Raise InputError if positions are neither archived nor from before every position had an entry."""
        epochs = self.epochs()  # before the mark, which may move on meanwhile
        start, end = max(self.archived() or 0, epochs[0].first - 1 if epochs else self.position()), self.position()
        if lost := [position for position in missing if start < position <= end]:
            raise InputError(
                f"the log in Redis lacks the entries of {len(lost):,} commits that are not archived ({_ranges(lost)}): "
                "they were deleted or evicted, or Redis lost data. Restore Redis from a copy that has them, or go on "
                "without their events with --accept-missing"
            )


def _ranges(positions: list[int]) -> str:
    """Ascending positions as text: ``3 to 5, 9``."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and ranges[-1][-1] == position - 1:
            ranges[-1][1:] = [position]
        else:
            ranges.append([position])
    parts = [" to ".join(f"{position:,}" for position in ends) for ends in ranges[:MAX_RANGES]]
    return ", ".join([*parts, "…"] if len(ranges) > MAX_RANGES else parts)
