"""Customer state: a commutative monoid of decayed sums and times, one packed value per customer.

A state is ``(as_of, slots)``: it contains events up to ``as_of``, and the values of its slots refer to that time.
:meth:`StateLayout.advance` converts slots to another reference time without changing their meaning:

======== ============================================ ================== ==========
slot      value                                        merge              identity
======== ============================================ ================== ==========
count     sum of ``2**(-(as_of - t) / half_life)``     add                0
sum       the same, times the field's clipped value    add                0
latest    latest event time minus as_of, seconds       max                -inf
earliest  earliest event time minus as_of, seconds     min                +inf
attribute the number                                   max, NaN loses     NaN
======== ============================================ ================== ==========

Merging is associative and commutative. Therefore events may arrive in any order, two ids of one customer merge by
merging their states, and the offline aggregate over a history equals the online fold of its events. The offline
counterpart of :meth:`StateLayout.fold` is ``feature_store.offline.point_in_time``, a second implementation that is much
faster for whole histories; tests hold the two equal.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.definitions import STATE_FORMAT, Feature, fingerprint
from feature_store.state.events import Event
from feature_store.state.packed import PackedField, struct_format
from feature_store.state.profile import ProfileSummary

Floats = npt.NDArray[np.float64]

DAY_S: Final = 86_400.0
MAGIC: Final = b"tm"
FLAGS_AT: Final = 3
HAS_PROFILE: Final = 1
"""A flag: the customer has a profile, so the state must not be used without it."""
HEADER_FIELDS: Final = (
    PackedField("magic", "S2", "The letters tm."),
    PackedField("version", "u1", "Version of the format."),
    PackedField("flags", "u1", "Bit 0: the customer has a profile, without which the state must not be used."),
    PackedField("fingerprint", "V4", "Fingerprint of the features, in Redis combined with the checksum."),
    PackedField("position", "<u8", "Position of the commit that wrote the value."),
    PackedField("as_of", "<f8", "Reference time of the slots in unix seconds."),
)
"""What precedes the slots, one ``<f8`` per feature, in a packed state."""
_HEADER: Final = struct.Struct(struct_format(HEADER_FIELDS))


@dataclass(frozen=True)
class State:
    """One customer's state.

    Attributes:
        as_of: Unix seconds up to which events are contained; the reference time of the slots.
        slots: Float64 ``[slots]`` in the order of the feature lines.
        position: Position of the commit that wrote it.
    """

    as_of: float
    slots: Floats
    position: int = 0


class MissingReason(Enum):
    """Why a customer has no state."""

    UNKNOWN = "nothing is known about the customer"
    NOT_LOADED = "the store holds no features of this layout for any customer"
    STORE_AWAY = "the store does not answer, and the state was not read recently enough"


@dataclass(slots=True, eq=False)
class StateBatch:
    """Unpacked states of many customers, one per row. Read-only.

    Attributes:
        found: Bool ``[n]``: whether there is a stored value.
        valid: Bool ``[n]``: whether it is a state of this layout. Other rows hold the identity and must not be used.
        as_of: Float64 ``[n]``, unix seconds.
        slots: Float64 ``[n, slots]``.
        all_valid: True only if every row is valid; it may be false although every row is.
        profiles: By row, the parts of the customer's profile that scoring needs; absent where it has nothing to say.
        missing: Why rows are not found.
        stale: Whether the states are from an earlier read, because Redis does not answer.
    """

    found: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]
    as_of: Floats
    slots: Floats
    all_valid: bool = False
    profiles: Mapping[int, ProfileSummary] = field(default_factory=dict)
    missing: MissingReason = MissingReason.UNKNOWN
    stale: bool = False


@dataclass(frozen=True)
class _TypeSlots:
    """The slots that events of one type are added to.

    Attributes:
        sums: Columns of decayed sums.
        fields: Of the sums over a field: index in ``sums``, name of the field, clip.
        rates: Per sum, 1 / half-life in seconds.
        latest: Columns of latest times.
        earliest: Columns of earliest times.
    """

    sums: npt.NDArray[np.intp]
    fields: Sequence[tuple[int, str, float]]
    rates: Floats
    latest: Sequence[int]
    earliest: Sequence[int]


def surely_finite(numbers: Floats) -> bool:
    """Whether all numbers are certainly finite: fast, but false as well if squares overflow."""
    return math.isfinite(np.vdot(numbers, numbers))


class StateLayout:
    """Folds, merges, advances, packs and unpacks the states of one list of features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features: Final = tuple(features)
        self.fingerprint: Final = fingerprint(features)
        self._half_life_s = np.array([(f.half_life_days or np.inf) * DAY_S for f in features])
        self._latest = np.array([f.aggregate == "latest" for f in features])
        self._earliest = np.array([f.aggregate == "earliest" for f in features])
        self.is_attribute: Final = np.array([f.aggregate == "attribute" for f in features])
        self._additive = np.array([f.decayed for f in features])
        self._timed = self._latest | self._earliest
        self.identity: Final = np.select(
            [self._latest, self._earliest, self.is_attribute], [-np.inf, np.inf, np.nan], default=0.0
        )
        self.dtype: Final = np.dtype(
            [*((field.name, field.kind) for field in HEADER_FIELDS), ("slots", "<f8", (len(self.features),))]
        )
        self.headers: Final = tuple(
            MAGIC + bytes((STATE_FORMAT, flags)) + bytes.fromhex(self.fingerprint) for flags in (0, HAS_PROFILE)
        )
        self.clips: Final = _clips(self.features)
        self._type_slots = {kind: self._slots_of(kind) for kind in {f.event for f in self.features if f.event}}
        self._blank = self.pack(State(0.0, self.identity))

    # --- algebra ------------------------------------------------------------------------------------------------

    def advance(self, slots: Floats, seconds: Floats | float) -> Floats:
        """Slots (``[..., slots]``) of the same meaning for a reference time ``seconds`` (``[...]``) later."""
        later = np.asarray(seconds, dtype=np.float64)[..., np.newaxis]
        decayed = slots * np.exp2(-later / self._half_life_s)
        return np.where(self._timed, slots - later, decayed)

    def merge(self, a: State, b: State) -> State:
        """The state of one customer who is both ``a`` and ``b``. Associative and commutative."""
        as_of = max(a.as_of, b.as_of)
        x = self.advance(a.slots, as_of - a.as_of)
        y = self.advance(b.slots, as_of - b.as_of)
        slots = np.select(
            [self._latest | self.is_attribute, self._earliest], [np.fmax(x, y), np.minimum(x, y)], default=x + y
        )
        return State(as_of, slots, max(a.position, b.position))

    def fold(self, as_of: Floats, slots: Floats, rows: Sequence[int], events: Sequence[Event]) -> tuple[Floats, Floats]:
        """States after more events, which may be older than those folded before.

        Args:
            as_of: Float64 ``[n]``, unix seconds; -inf for a state without events.
            slots: Float64 ``[n, slots]``.
            rows: Row of each event's customer.
            events: In any order.

        Returns:
            The new ``as_of`` and ``slots``.
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
            if (type_slots := self._type_slots.get(kind)) is not None:
                self._add(moved, type_slots, row[places], later[places], [events[at] for at in places])
        return newest, moved

    def _add(
        self, slots: Floats, type_slots: _TypeSlots, row: npt.NDArray[np.intp], later: Floats, events: Sequence[Event]
    ) -> None:
        """Add events of one type to ``slots``, whose reference time is ``later[i]`` seconds after event ``i``."""
        if len(type_slots.sums):
            weights = np.exp2(-later[:, np.newaxis] * type_slots.rates)
            for column, name, clip in type_slots.fields:
                values = np.array([getattr(event, name) or 0.0 for event in events])
                weights[:, column] *= np.clip(values, -clip, clip)
            np.add.at(slots, (row[:, np.newaxis], type_slots.sums), weights)
        for column in type_slots.latest:
            np.maximum.at(slots[:, column], row, -later)
        for column in type_slots.earliest:
            np.minimum.at(slots[:, column], row, -later)

    def _slots_of(self, event_type: str) -> _TypeSlots:
        slots = [(i, feature) for i, feature in enumerate(self.features) if feature.event == event_type]
        sums = [(i, feature) for i, feature in slots if feature.decayed]
        return _TypeSlots(
            sums=np.array([i for i, _ in sums], dtype=np.intp),
            fields=[(at, f.field, f.clip or math.inf) for at, (_, f) in enumerate(sums) if f.field],
            rates=1 / self._half_life_s[[i for i, _ in sums]],
            latest=[i for i, feature in slots if feature.aggregate == "latest"],
            earliest=[i for i, feature in slots if feature.aggregate == "earliest"],
        )

    def _possible(self, slots: Floats) -> npt.NDArray[np.bool_]:
        """Which rows hold only possible values: finite numbers, the identity, and NaN for attributes."""
        possible = np.isfinite(slots) | (slots == self.identity) | (np.isnan(slots) & self.is_attribute)
        return np.asarray(possible.all(axis=1))

    # --- packing ------------------------------------------------------------------------------------------------

    def pack(self, state: State) -> bytes:
        """Header (:data:`HEADER_FIELDS`) and slots, little-endian: ``24 + 8 * slots`` bytes."""
        return self.pack_many(np.array([state.as_of]), state.slots[np.newaxis], state.position)[0]

    def pack_many(self, as_of: Floats, slots: Floats, position: int = 0, *, has_profile: bool = False) -> list[bytes]:
        """Packed values of states.

        Args:
            as_of: Float64 ``[n]``, unix seconds.
            slots: Float64 ``[n, slots]``.
            position: Position of the commit that wrote them.
            has_profile: Whether these customers have profiles.
        """
        values = np.zeros(len(slots), dtype=self.dtype)
        values["magic"], values["version"], values["flags"] = MAGIC, STATE_FORMAT, HAS_PROFILE if has_profile else 0
        values["fingerprint"] = np.void(bytes.fromhex(self.fingerprint))
        values["position"], values["as_of"], values["slots"] = position, as_of, slots
        whole, size = values.tobytes(), self.dtype.itemsize
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    def unpack(self, values: Sequence[bytes | None]) -> StateBatch:
        """Unpack stored values (None: no value) without a loop over customers or slots.

        A value of another length, format or fingerprint, or with an impossible number, is found but not valid.
        """
        size, headers = self.dtype.itemsize, self.headers
        sized = [value if value is not None and len(value) == size else self._blank for value in values]
        numbers = np.frombuffer(b"".join(sized), dtype="<f8").reshape(len(sized), size // 8)[:, 2:]
        # The usual case takes as few array operations as possible: their number dominates the cost of small batches.
        if sized == values and surely_finite(numbers) and all(value.startswith(headers) for value in sized):
            every = np.ones(len(sized), dtype=np.bool_)
            return StateBatch(every, every, numbers[:, 0], numbers[:, 1:], all_valid=True)
        found = np.array([value is not None for value in values], dtype=np.bool_)
        intact = np.array([value.startswith(headers) for value in sized], dtype=np.bool_)
        intact &= np.isfinite(numbers[:, 0]) & self._possible(numbers[:, 1:])
        valid = intact & np.array([value is not None and len(value) == size for value in values], dtype=np.bool_)
        if not intact.all():
            numbers = numbers.copy()
            numbers[~intact] = np.frombuffer(self._blank, dtype="<f8")[2:]
        return StateBatch(found, valid, numbers[:, 0], numbers[:, 1:])


def needs_profile(value: bytes | None) -> bool:
    """Whether a packed state, of any layout, says that its customer has a profile.

    If the profile is missing all the same, it was lost: nobody knows what the customer allows.
    """
    return value is not None and len(value) > FLAGS_AT and bool(value[FLAGS_AT] & HAS_PROFILE)


def with_profile(value: bytes) -> bytes:
    """A packed state, of any layout, that says that its customer has a profile."""
    return b"%b%c%b" % (value[:FLAGS_AT], value[FLAGS_AT] | HAS_PROFILE, value[FLAGS_AT + 1 :])


def as_of_packed(value: bytes) -> float:
    """The reference time of a packed state, of any layout, in unix seconds; -inf if it has none."""
    if len(value) < _HEADER.size:
        return -math.inf
    as_of = float(_HEADER.unpack_from(value)[-1])
    return as_of if math.isfinite(as_of) else -math.inf


def _clips(features: Sequence[Feature]) -> dict[str, dict[str, float]]:
    """Clip by event type and field; the smallest one if features of the same field differ."""
    clips: dict[str, dict[str, float]] = {}
    for feature in features:
        if feature.clip is not None and feature.event and feature.field:
            fields = clips.setdefault(feature.event, {})
            fields[feature.field] = min(feature.clip, fields.get(feature.field, math.inf))
    return clips
