"""Loading states from the source into Redis, and proving that Redis holds what the source says."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np

from feature_store.errors import InputError
from feature_store.offline import OfflineStates, OfflineStore, iso
from feature_store.online import StateWriter
from feature_store.state import Floats, StateBatch, StateLayout

TOLERANCE = 1e-6
"""Largest relative difference between a stored and a recomputed slot."""
NOTHING = 1e-3
"""Smaller slots are compared as if they were this large: what cancels out leaves nothing but rounding."""
CLOCK_S = 1e-3
"""Seconds by which the time that a state says it is of may be off."""


@dataclass(frozen=True)
class LoadSummary:
    """What a load did: customers written, customers removed that the source no longer has, times in unix seconds."""

    customers: int
    removed: int
    as_of: float
    shift: float


@dataclass(frozen=True)
class Verification:
    """What a comparison of Redis with the source found, in customers."""

    customers: int
    compared: int
    mismatches: int
    missing: int
    extra: int
    largest_difference: float

    @property
    def ok(self) -> bool:
        """Whether Redis holds exactly what the source says."""
        return not (self.mismatches or self.missing or self.extra)


def load_states(
    source: OfflineStore, redis: StateWriter, layout: StateLayout, as_of: float | None, *, shift_to_now: bool
) -> LoadSummary:
    """Write the states of all customers as of a time (the newest event by default), and remove what is not of them.

    With ``shift_to_now`` all times move so that ``as_of`` becomes now: what is decayed or counted in days stays as it
    was, and an old data set can be served as if it ended today.
    """
    as_of = source.summary.end if as_of is None else as_of
    states = _states(source, layout, as_of)
    shift = time.time() - as_of if shift_to_now else 0.0
    ids = states.customer_ids.tolist()
    moment = np.full(len(ids), as_of + shift)
    gone = set(redis.customer_ids()).difference(ids)
    redis.write(ids, layout.pack_many(moment, states.slots))
    redis.delete(sorted(gone))
    redis.record_load({"as_of": as_of, "shift": shift})
    return LoadSummary(len(ids), len(gone), as_of, shift)


def verify_states(source: OfflineStore, redis: StateWriter, layout: StateLayout, sample: int | None) -> Verification:
    """Recompute states from the source as of the last load and compare them with what Redis holds.

    ``sample`` limits the comparison to that many customers drawn at random; missing ones are looked for among them,
    extra ones always among all.
    """
    load = redis.last_load()
    if load is None:
        raise InputError("Redis holds no load of this bundle's features: run 'python -m feature_store load' first")
    states = _states(source, layout, load["as_of"])
    ids = states.customer_ids.tolist()
    stored_ids = set(redis.customer_ids())
    rows = list(range(len(ids)))
    if sample is not None and sample < len(ids):
        rows = sorted(random.sample(rows, sample))
    stored = layout.unpack(redis.read([ids[row] for row in rows]))
    difference = _differences(layout, stored, states.slots[rows], load["as_of"] + load["shift"])
    compared = difference[stored.found]
    return Verification(
        customers=len(ids),
        compared=len(compared),
        mismatches=int((compared > TOLERANCE).sum()),
        missing=int((~stored.found).sum()),
        extra=len(stored_ids.difference(ids)),
        largest_difference=float(compared.max(initial=0.0)),
    )


def _states(source: OfflineStore, layout: StateLayout, as_of: float) -> OfflineStates:
    if as_of < source.summary.start:
        raise InputError(f"no customer is known as of {iso(as_of)}: the source begins {iso(source.summary.start)}")
    return source.states(layout, as_of)


def _differences(layout: StateLayout, stored: StateBatch, expected: Floats, reference: float) -> Floats:
    """Largest relative difference of each row's slots as of ``reference``; infinite where a state is not of it."""
    with np.errstate(over="ignore", invalid="ignore"):  # rubbish may stand behind a right header
        found = layout.advance(stored.slots, reference - stored.as_of)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(found - expected) / np.maximum(np.abs(expected), NOTHING)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    as_told = stored.valid & (np.abs(stored.as_of - reference) < CLOCK_S)
    return np.where(as_told, np.where(same, 0.0, difference).max(axis=1, initial=0.0), np.inf)
