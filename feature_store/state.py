"""Customer state: a commutative monoid of decayed sums and times, one packed value per customer.

A state is ``(reference, slots)``. Every slot is meant *as of the reference time*, which may be moved freely
(:func:`advance`) without changing what the state says:

======== ============================================ ================== ==========
slot      value                                        merge              identity
======== ============================================ ================== ==========
count     sum of ``2**(-(reference - t) / half_life)`` add                0
sum       the same, times the field's value            add                0
latest    latest event time minus reference, seconds   max                -inf
earliest  earliest event time minus reference, seconds min                +inf
attribute the number                                   max, missing loses NaN
======== ============================================ ================== ==========

Because merging is associative and commutative, events may arrive in any order, two identities merge by adding their
states, and the offline aggregate over a history equals the online fold of its events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.definitions import STATE_FORMAT, Feature, fingerprint

Floats = npt.NDArray[np.float64]

DAY_S: Final = 86_400.0
MAGIC: Final = b"tm"


@dataclass(frozen=True)
class State:
    """One customer's state.

    reference: unix seconds as of which the slots are meant; as_of: unix seconds up to which events are known;
    slots: float64 ``[slots]`` in the order of the feature lines.
    """

    reference: float
    as_of: float
    slots: Floats


@dataclass(frozen=True)
class Event:
    """The part of a canonical event that a fold needs (``event_time`` in unix seconds)."""

    event_time: float
    event_type: str
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class StateBatch:
    """Decoded states of many customers, row by row. Not to be changed.

    found and valid: bool ``[n]``; reference and as_of: float64 ``[n]`` unix seconds; slots: float64 ``[n, slots]``.
    Rows that are not valid hold the identity and must not be used. all_valid: surely none is like that.
    """

    found: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]
    reference: Floats
    as_of: Floats
    slots: Floats
    all_valid: bool = False


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
        self._attribute = np.array([f.aggregate == "attribute" for f in features])
        self._additive = np.array([f.decayed for f in features])
        self._timed = self._latest | self._earliest
        self.identity: Final = np.select(
            [self._latest, self._earliest, self._attribute], [-np.inf, np.inf, np.nan], default=0.0
        )
        self.dtype: Final = np.dtype(
            [
                ("magic", "S2"),
                ("version", "<u2"),
                ("fingerprint", "V4"),
                ("reference", "<f8"),
                ("as_of", "<f8"),
                ("slots", "<f8", (len(self.features),)),
            ]
        )
        self.header: Final = MAGIC + STATE_FORMAT.to_bytes(2, "little") + bytes.fromhex(self.fingerprint)
        self._blank = self.pack(State(0.0, 0.0, self.identity))

    # --- algebra ------------------------------------------------------------------------------------------------

    def advance(self, slots: Floats, seconds: Floats | float) -> Floats:
        """Slots (``[..., slots]``) as of a reference that lies ``seconds`` (``[...]``) later; the meaning stays."""
        later = np.asarray(seconds, dtype=np.float64)[..., np.newaxis]
        decayed = slots * np.exp2(-later / self._half_life_s)
        return np.where(self._timed, slots - later, decayed)

    def merge(self, a: State, b: State) -> State:
        """The state of one customer who is both ``a`` and ``b``. Associative and commutative."""
        reference = max(a.reference, b.reference)
        x = self.advance(a.slots, reference - a.reference)
        y = self.advance(b.slots, reference - b.reference)
        slots = np.select(
            [self._latest | self._attribute, self._earliest], [np.fmax(x, y), np.minimum(x, y)], default=x + y
        )
        return State(reference, max(a.as_of, b.as_of), slots)

    def of_event(self, event: Event) -> State:
        """The state that says just this one event."""
        slots = self.identity.copy()
        for i, feature in enumerate(self.features):
            if feature.event == event.event_type:
                slots[i] = event.values.get(feature.field, 0.0) if feature.field else float(feature.decayed)
        return State(event.event_time, event.event_time, slots)

    def fold(self, state: State, event: Event) -> State:
        """``state`` after ``event``, which may be older than events folded before."""
        return self.merge(state, self.of_event(event))

    def _possible(self, slots: Floats) -> npt.NDArray[np.bool_]:
        """Which rows hold only numbers that a state can: finite ones, the identity, and any missing attribute."""
        possible = np.isfinite(slots) | (slots == self.identity) | (np.isnan(slots) & self._attribute)
        return np.asarray(possible.all(axis=1))

    # --- packing ------------------------------------------------------------------------------------------------

    def pack(self, state: State) -> bytes:
        """Header (magic, format, fingerprint, reference, as_of) and slots, little-endian: ``24 + 8 * slots`` bytes."""
        return self.pack_many(np.array([state.reference]), np.array([state.as_of]), state.slots[np.newaxis])[0]

    def pack_many(self, reference: Floats, as_of: Floats, slots: Floats) -> list[bytes]:
        """Packed values of ``[n]``, ``[n]`` and ``[n, slots]``."""
        records = np.zeros(len(slots), dtype=self.dtype)
        records["magic"], records["version"] = MAGIC, STATE_FORMAT
        records["fingerprint"] = np.void(bytes.fromhex(self.fingerprint))
        records["reference"], records["as_of"], records["slots"] = reference, as_of, slots
        whole, size = records.tobytes(), self.dtype.itemsize
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    def unpack(self, values: Sequence[bytes | None]) -> StateBatch:
        """Decode stored values, None for an absent one, without a loop over customers or fields.

        A value of another length, format or fingerprint, or with a number that no state can hold, is found, not valid.
        """
        size, header = self.dtype.itemsize, self.header
        sized = [value if value is not None and len(value) == size else self._blank for value in values]
        numbers = np.frombuffer(b"".join(sized), dtype="<f8").reshape(len(sized), size // 8)[:, 1:]
        # The usual case with as few array operations as it takes: in small batches it is their number that costs.
        if sized == values and finite(numbers) and all(value.startswith(header) for value in sized):
            every = np.ones(len(sized), dtype=np.bool_)
            return StateBatch(every, every, numbers[:, 0], numbers[:, 1], numbers[:, 2:], all_valid=True)
        found = np.array([value is not None for value in values], dtype=np.bool_)
        own = np.array([value.startswith(header) for value in sized], dtype=np.bool_)
        own &= np.isfinite(numbers[:, :2]).all(axis=1) & self._possible(numbers[:, 2:])
        valid = own & np.array([value is not None and len(value) == size for value in values], dtype=np.bool_)
        if not own.all():
            numbers = numbers.copy()
            numbers[~own] = np.frombuffer(self._blank, dtype="<f8")[1:]
        return StateBatch(found, valid, numbers[:, 0], numbers[:, 1], numbers[:, 2:])
