"""Customer state: a commutative monoid of decayed sums and times, one packed value per customer.

A state is ``(as_of, slots)``: events are known up to ``as_of``, and every slot is meant as of then. Moving the slots to
another time (:meth:`StateLayout.advance`) does not change what they say:

======== ============================================ ================== ==========
slot      value                                        merge              identity
======== ============================================ ================== ==========
count     sum of ``2**(-(as_of - t) / half_life)``     add                0
sum       the same, times the field's clipped value    add                0
latest    latest event time minus as_of, seconds       max                -inf
earliest  earliest event time minus as_of, seconds     min                +inf
attribute the number                                   max, missing loses NaN
======== ============================================ ================== ==========

Because merging is associative and commutative, events may arrive in any order, two identities merge by adding their
states, and the offline aggregate over a history equals the online fold of its events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.definitions import STATE_FORMAT, Feature, fingerprint
from feature_store.state.events import Event
from feature_store.state.profile import Told

Floats = npt.NDArray[np.float64]

DAY_S: Final = 86_400.0
MAGIC: Final = b"tm"


@dataclass(frozen=True)
class State:
    """One customer's state.

    as_of: unix seconds up to which events are known, and as of which the slots are meant; slots: float64 ``[slots]`` in
    the order of the feature lines; position: of the newest log entry that it knows
    (``feature_store.online.customer_store``).
    """

    as_of: float
    slots: Floats
    position: int = 0


class Missing(Enum):
    """Why there is no state where none is found."""

    UNKNOWN = "nothing is known about the customer"
    NOT_LOADED = "the store holds no features of these definitions, of anybody"
    STORE_AWAY = "the store does not answer, and the state was not read lately enough"


@dataclass(slots=True, eq=False)
class StateBatch:
    """Decoded states of many customers, row by row. Not to be changed.

    found and valid: bool ``[n]``; as_of: float64 ``[n]`` unix seconds; slots: float64 ``[n, slots]``. Rows that are not
    valid hold the identity and must not be used. all_valid: surely none is like that. told: by row, what a customer's
    record has to say. missing: why rows are not found. stale: they are of an earlier read, for Redis does not answer.
    """

    found: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]
    as_of: Floats
    slots: Floats
    all_valid: bool = False
    told: Mapping[int, Told] = field(default_factory=dict)
    missing: Missing = Missing.UNKNOWN
    stale: bool = False


@dataclass(frozen=True)
class _Plan:
    """Where the events of one type go: decayed sums (column, field or None, clip, 1 / half-life), latest, earliest."""

    sums: npt.NDArray[np.intp]
    fields: Sequence[tuple[int, str, float]]
    rates: Floats
    latest: Sequence[int]
    earliest: Sequence[int]


def finite(numbers: Floats) -> bool:
    """Whether all numbers are surely finite: one that is not makes the sum of squares so; a huge one is no proof."""
    return math.isfinite(np.vdot(numbers, numbers))


class StateLayout:
    """How states of one list of features are folded, merged, moved in time, packed and unpacked."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features: Final = tuple(features)
        self.fingerprint: Final = fingerprint(features)
        self._half_life_s = np.array([(f.half_life_days or np.inf) * DAY_S for f in features])
        self._latest = np.array([f.aggregate == "latest" for f in features])
        self._earliest = np.array([f.aggregate == "earliest" for f in features])
        self.of_attributes: Final = np.array([f.aggregate == "attribute" for f in features])
        self._additive = np.array([f.decayed for f in features])
        self._timed = self._latest | self._earliest
        self.identity: Final = np.select(
            [self._latest, self._earliest, self.of_attributes], [-np.inf, np.inf, np.nan], default=0.0
        )
        self.dtype: Final = np.dtype(
            [
                ("magic", "S2"),
                ("version", "<u2"),
                ("fingerprint", "V4"),
                ("position", "<u8"),
                ("as_of", "<f8"),
                ("slots", "<f8", (len(self.features),)),
            ]
        )
        self.header: Final = MAGIC + STATE_FORMAT.to_bytes(2, "little") + bytes.fromhex(self.fingerprint)
        self.clips: Final = _clips(self.features)
        self._plans = {kind: self._plan(kind) for kind in {f.event for f in self.features if f.event}}
        self._blank = self.pack(State(0.0, self.identity))

    # --- algebra ------------------------------------------------------------------------------------------------

    def advance(self, slots: Floats, seconds: Floats | float) -> Floats:
        """Slots (``[..., slots]``) as of a reference that lies ``seconds`` (``[...]``) later; the meaning stays."""
        later = np.asarray(seconds, dtype=np.float64)[..., np.newaxis]
        decayed = slots * np.exp2(-later / self._half_life_s)
        return np.where(self._timed, slots - later, decayed)

    def merge(self, a: State, b: State) -> State:
        """The state of one customer who is both ``a`` and ``b``. Associative and commutative."""
        as_of = max(a.as_of, b.as_of)
        x = self.advance(a.slots, as_of - a.as_of)
        y = self.advance(b.slots, as_of - b.as_of)
        slots = np.select(
            [self._latest | self.of_attributes, self._earliest], [np.fmax(x, y), np.minimum(x, y)], default=x + y
        )
        return State(as_of, slots, max(a.position, b.position))

    def fold(self, as_of: Floats, slots: Floats, rows: Sequence[int], events: Sequence[Event]) -> tuple[Floats, Floats]:
        """States (``[n]``, ``[n, slots]``) after events, of which the i-th belongs to row ``rows[i]``.

        Events may be older than those folded before. A state that knows nothing yet has ``as_of`` -inf.
        """
        row = np.array(rows, dtype=np.intp)
        t = np.array([event.event_time for event in events])
        newest = as_of.copy()
        np.maximum.at(newest, row, t)
        moved = self.advance(slots, np.subtract(newest, as_of, out=np.zeros_like(as_of), where=np.isfinite(as_of)))
        later = newest[row] - t
        of_type: dict[str, list[int]] = {}
        for at, event in enumerate(events):
            of_type.setdefault(event.event_type, []).append(at)
        for kind, places in of_type.items():
            if (plan := self._plans.get(kind)) is not None:
                self._add(moved, plan, row[places], later[places], [events[at] for at in places])
        return newest, moved

    def _add(
        self, slots: Floats, plan: _Plan, row: npt.NDArray[np.intp], later: Floats, events: Sequence[Event]
    ) -> None:
        """Add events of one type to ``slots``, which are as of ``later`` (``[events]`` seconds) after each of them."""
        if len(plan.sums):
            weights = np.exp2(-later[:, np.newaxis] * plan.rates)
            for column, name, clip in plan.fields:
                values = np.array([getattr(event, name) or 0.0 for event in events])
                weights[:, column] *= np.clip(values, -clip, clip)
            np.add.at(slots, (row[:, np.newaxis], plan.sums), weights)
        for column in plan.latest:
            np.maximum.at(slots[:, column], row, -later)
        for column in plan.earliest:
            np.minimum.at(slots[:, column], row, -later)

    def _plan(self, kind: str) -> _Plan:
        mine = [(i, feature) for i, feature in enumerate(self.features) if feature.event == kind]
        sums = [(i, feature) for i, feature in mine if feature.decayed]
        return _Plan(
            sums=np.array([i for i, _ in sums], dtype=np.intp),
            fields=[(at, f.field, f.clip or math.inf) for at, (_, f) in enumerate(sums) if f.field],
            rates=1 / self._half_life_s[[i for i, _ in sums]],
            latest=[i for i, feature in mine if feature.aggregate == "latest"],
            earliest=[i for i, feature in mine if feature.aggregate == "earliest"],
        )

    def _possible(self, slots: Floats) -> npt.NDArray[np.bool_]:
        """Which rows hold only numbers that a state can: finite ones, the identity, and any missing attribute."""
        possible = np.isfinite(slots) | (slots == self.identity) | (np.isnan(slots) & self.of_attributes)
        return np.asarray(possible.all(axis=1))

    # --- packing ------------------------------------------------------------------------------------------------

    def pack(self, state: State) -> bytes:
        """Header (magic, format, fingerprint, position, as_of) and slots, little-endian: ``24 + 8 * slots`` bytes."""
        return self.pack_many(np.array([state.as_of]), state.slots[np.newaxis], state.position)[0]

    def pack_many(self, as_of: Floats, slots: Floats, position: int = 0) -> list[bytes]:
        """Packed values of ``[n]`` and ``[n, slots]``."""
        records = np.zeros(len(slots), dtype=self.dtype)
        records["magic"], records["version"] = MAGIC, STATE_FORMAT
        records["fingerprint"] = np.void(bytes.fromhex(self.fingerprint))
        records["position"], records["as_of"], records["slots"] = position, as_of, slots
        whole, size = records.tobytes(), self.dtype.itemsize
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    def unpack(self, values: Sequence[bytes | None]) -> StateBatch:
        """Decode stored values, None for an absent one, without a loop over customers or fields.

        A value of another length, format or fingerprint, or with a number that no state can hold, is found, not valid.
        """
        size, header = self.dtype.itemsize, self.header
        sized = [value if value is not None and len(value) == size else self._blank for value in values]
        numbers = np.frombuffer(b"".join(sized), dtype="<f8").reshape(len(sized), size // 8)[:, 2:]
        # The usual case with as few array operations as it takes: in small batches it is their number that costs.
        if sized == values and finite(numbers) and all(value.startswith(header) for value in sized):
            every = np.ones(len(sized), dtype=np.bool_)
            return StateBatch(every, every, numbers[:, 0], numbers[:, 1:], all_valid=True)
        found = np.array([value is not None for value in values], dtype=np.bool_)
        own = np.array([value.startswith(header) for value in sized], dtype=np.bool_)
        own &= np.isfinite(numbers[:, 0]) & self._possible(numbers[:, 1:])
        valid = own & np.array([value is not None and len(value) == size for value in values], dtype=np.bool_)
        if not own.all():
            numbers = numbers.copy()
            numbers[~own] = np.frombuffer(self._blank, dtype="<f8")[2:]
        return StateBatch(found, valid, numbers[:, 0], numbers[:, 1:])


def _clips(features: Sequence[Feature]) -> dict[str, dict[str, float]]:
    """By event type and field, the most that is taken from one event (where its features differ, by any of them)."""
    found: dict[str, dict[str, float]] = {}
    for feature in features:
        if feature.clip is not None and feature.event and feature.field:
            fields = found.setdefault(feature.event, {})
            fields[feature.field] = min(feature.clip, fields.get(feature.field, math.inf))
    return found
