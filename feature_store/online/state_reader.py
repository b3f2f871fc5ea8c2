"""Reads customers for scoring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from feature_store.online.keys import Keys, profile_keys
from feature_store.online.stale_cache import StaleStateCache
from feature_store.online.store import RedisStore
from feature_store.state.layout import MissingReason, StateBatch, StateLayout, needs_profile
from feature_store.state.profile import ProfileSummary, UnreadableProfileError, read_summary

MAX_ALIAS_DEPTH: Final = 4
"""An alias normally names a customer that is not an alias; longer chains exist only while two merges race."""


class StateReader:
    """Reads states and the parts of profiles that scoring needs: one MGET per batch.

    With a ``cache`` it remembers what it has read, for the time when Redis does not answer.
    """

    def __init__(self, store: RedisStore, layout: StateLayout, cache: StaleStateCache | None = None) -> None:
        self._store = store
        self._keys = Keys(layout.fingerprint)
        self._layout = layout
        self._cache = cache

    async def read(self, customer_ids: Sequence[str]) -> StateBatch:
        """States of customers, in order; an alias gets the state of its customer.

        Raises:
            StoreUnavailableError: Redis does not answer in time. The time limit covers all round trips together.
        """
        until = time.monotonic() + self._store.timeout_s
        epoch = 0 if self._cache is None else self._cache.epoch
        values = await self._values(customer_ids)
        states, packed = values[: len(customer_ids)], values[len(customer_ids) :]
        without_any = packed.count(None) == len(packed) and not any(map(needs_profile, states))
        profiles = {} if without_any else await self._resolve(states, packed, until)
        if self._cache is not None:
            self._cache.put(customer_ids, states, profiles, epoch)
        batch = self._layout.unpack(states)
        if profiles:
            batch.profiles = profiles
        if not (batch.all_valid or batch.found.any() or await self._store.holds_features(self._keys)):
            batch.missing = MissingReason.NOT_LOADED
        return batch

    def read_stale(self, customer_ids: Sequence[str], max_age_s: Sequence[float]) -> StateBatch | None:
        """States from the cache, each no older than its own limit; None if there is no cache."""
        if self._cache is None:
            return None
        states, profiles = self._cache.get(customer_ids, max_age_s)
        batch = self._layout.unpack(states)
        batch.profiles, batch.missing, batch.stale = profiles, MissingReason.STORE_AWAY, True
        return batch

    async def _resolve(
        self, states: list[bytes | None], packed: Sequence[bytes | None], until: float
    ) -> dict[int, ProfileSummary]:
        """Summaries of profiles, by row; replaces the states of aliases by those of their customers."""
        summaries = {}
        rows: Sequence[int] = range(len(packed))
        for _ in range(MAX_ALIAS_DEPTH):
            aliases = {}
            for row, value in zip(rows, packed, strict=True):
                try:
                    summary = _summary(states[row], value)
                except UnreadableProfileError:
                    states[row] = b""  # invalid: the profile may forbid scoring
                    continue
                if isinstance(summary, str):
                    aliases[row] = summary
                elif summary is not None:
                    summaries[row] = summary
            if not aliases:
                break
            budget_s = max(until - time.monotonic(), 0.0)
            rows, values = list(aliases), await self._values(list(aliases.values()), budget_s)
            packed = values[len(rows) :]
            for row, state in zip(rows, values, strict=False):
                states[row] = state
        return summaries

    async def _values(self, customer_ids: Sequence[str], budget_s: float | None = None) -> list[bytes | None]:
        """Packed states of customers, followed by their profiles."""
        keys = [*self._keys.states(customer_ids), *profile_keys(customer_ids)]
        return await self._store.values(keys, budget_s, urgent=True)


def _summary(state: bytes | None, profile: bytes | None) -> ProfileSummary | str | None:
    """What :func:`read_summary` returns for a profile; UnreadableProfileError also if the profile was lost."""
    if profile is not None:
        return read_summary(profile)
    if needs_profile(state):
        raise UnreadableProfileError
    return None
