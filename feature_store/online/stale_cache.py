"""States that were read a moment ago, for callers who would rather have an old score than none while Redis is away.

Packed values, as they were read, in bounded memory; what was read longest ago goes first. Nothing is looked up here
while Redis answers. A customer of whom Redis has nothing any more is dropped with the read that says so, and whom this
process erases, merges, or changes the consent of is dropped at once. What other processes did is not known before the
customer is read again: that is what the caller's bound is for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import getsizeof
from typing import Final, NamedTuple

from feature_store.state.profile import Told

ENTRY_BYTES: Final = 280
"""What an entry takes beside its id and its value, and some more: its tuple and time, and its place in the order."""
TOLD_BYTES: Final = 220
"""The same of what the record said, and of the top interest in it, beside its name."""


class _Entry(NamedTuple):
    state: bytes
    told: Told | None
    read_at: float
    size: int


class RecentStates:
    """Up to ``most_bytes`` of states by customer id. ``bytes``, ``len()`` and ``answers`` may be read at any time."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.bytes = 0
        self.answers = 0
        """States given so far."""
        self.epoch = 0
        """Goes up when something is forgotten: what was asked for before must not be kept after."""

    def __len__(self) -> int:
        return len(self._entries)

    def keep(
        self, customer_ids: Sequence[str], states: Sequence[bytes | None], told: Mapping[int, Told], epoch: int
    ) -> None:
        """Keep what was just read: packed states in the order of the ids, and by position what records say."""
        if epoch != self.epoch:
            return
        now = self._clock()
        for row, (customer_id, state) in enumerate(zip(customer_ids, states, strict=True)):
            self._drop(customer_id)
            if state:
                self._add(customer_id, state, told.get(row) if told else None, now)
        while self.bytes > self._most_bytes:
            _, entry = self._entries.popitem(last=False)
            self.bytes -= entry.size

    def states(
        self, customer_ids: Sequence[str], within_s: Sequence[float]
    ) -> tuple[list[bytes | None], dict[int, Told]]:
        """States that were read so lately, each by its own bound, None for others; and by position what records say."""
        now, values, said = self._clock(), list[bytes | None](), dict[int, Told]()
        for row, (customer_id, bound) in enumerate(zip(customer_ids, within_s, strict=True)):
            entry = self._entries.get(customer_id)
            if entry is None or now - entry.read_at > bound:
                values.append(None)
                continue
            self.answers += 1
            values.append(entry.state)
            if entry.told is not None:
                said[row] = entry.told
        return values, said

    def forget(self, customer_ids: Iterable[str]) -> None:
        """Drop customers, and what is being read of them at this moment."""
        self.epoch += 1
        for customer_id in customer_ids:
            self._drop(customer_id)

    def _add(self, customer_id: str, state: bytes, told: Told | None, now: float) -> None:
        size = ENTRY_BYTES + getsizeof(customer_id) + getsizeof(state)
        if told is not None:
            size += TOLD_BYTES + (getsizeof(told.top.item_id) if told.top is not None else 0)
        self._entries[customer_id] = _Entry(state, told, now, size)
        self.bytes += size

    def _drop(self, customer_id: str) -> None:
        if (entry := self._entries.pop(customer_id, None)) is not None:
            self.bytes -= entry.size
