"""States read recently, for callers that prefer an old score to none while Redis does not answer.

Packed values, as they were read, in bounded memory; the entries that were read longest ago are dropped first. Nothing
is looked up here while Redis answers. An entry is dropped when a read finds no state any more, and at once when this
process erases or merges the customer or changes its consent. Changes by other processes show only at the next read;
that is why callers limit the age of what they accept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import getsizeof
from typing import Final, NamedTuple

from feature_store.state.profile import ProfileSummary

ENTRY_BYTES: Final = 280
"""Estimated memory of an entry besides its id and its value: tuple, time, and its place in the order."""
SUMMARY_BYTES: Final = 220
"""Estimated memory of a profile's summary and its top interest, besides the item's id."""


class _Entry(NamedTuple):
    state: bytes
    profile: ProfileSummary | None
    read_at: float
    size: int


class StaleStateCache:
    """States by customer id. ``bytes``, ``hits`` and ``len()`` may be read at any time."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        """States returned so far."""
        self.epoch = 0
        """Incremented when customers are forgotten: the results of reads that began before must not be put."""

    def __len__(self) -> int:
        return len(self._entries)

    def put(
        self,
        customer_ids: Sequence[str],
        states: Sequence[bytes | None],
        profiles: Mapping[int, ProfileSummary],
        epoch: int,
    ) -> None:
        """Keep what was just read.

        Args:
            customer_ids: The customers.
            states: Their packed states.
            profiles: Summaries of their profiles, by row.
            epoch: The epoch when the read began.
        """
        if epoch != self.epoch:
            return
        now = self._clock()
        for row, (customer_id, state) in enumerate(zip(customer_ids, states, strict=True)):
            self._drop(customer_id)
            if state:
                self._add(customer_id, state, profiles.get(row) if profiles else None, now)
        while self.bytes > self._max_bytes:
            _, entry = self._entries.popitem(last=False)
            self.bytes -= entry.size

    def get(
        self, customer_ids: Sequence[str], max_age_s: Sequence[float]
    ) -> tuple[list[bytes | None], dict[int, ProfileSummary]]:
        """Packed states that are no older than each one's limit, None for others; and profile summaries by row."""
        now, states, profiles = self._clock(), list[bytes | None](), dict[int, ProfileSummary]()
        for row, (customer_id, max_age) in enumerate(zip(customer_ids, max_age_s, strict=True)):
            entry = self._entries.get(customer_id)
            if entry is None or now - entry.read_at > max_age:
                states.append(None)
                continue
            self.hits += 1
            states.append(entry.state)
            if entry.profile is not None:
                profiles[row] = entry.profile
        return states, profiles

    def forget(self, customer_ids: Iterable[str]) -> None:
        """Drop customers, and prevent reads that are under way from putting them back."""
        self.epoch += 1
        for customer_id in customer_ids:
            self._drop(customer_id)

    def _add(self, customer_id: str, state: bytes, profile: ProfileSummary | None, now: float) -> None:
        size = ENTRY_BYTES + getsizeof(customer_id) + getsizeof(state)
        if profile is not None:
            size += SUMMARY_BYTES + (getsizeof(profile.top.item_id) if profile.top is not None else 0)
        self._entries[customer_id] = _Entry(state, profile, now, size)
        self.bytes += size

    def _drop(self, customer_id: str) -> None:
        if (entry := self._entries.pop(customer_id, None)) is not None:
            self.bytes -= entry.size
