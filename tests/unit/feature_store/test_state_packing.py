"""One packed value per customer: an exact round trip, and whatever else Redis may hold is found but never valid."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.online.commit import position_of
from feature_store.state.layout import State, StateLayout, as_of_packed, needs_profile, with_profile

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
    Feature(name="age", aggregate="attribute"),
]
LAYOUT = StateLayout(FEATURES)
OTHER = StateLayout(FEATURES[::-1])
SIZE = 24 + 8 * len(FEATURES)
STATE = State(1.7e9, np.array([-5.0, -7.5, 1.25, np.nan]), position=2**40 + 7)
PACKED = LAYOUT.pack(STATE)

floats = st.floats(allow_nan=False, allow_infinity=False)
states = st.builds(
    lambda as_of, slots, position: State(as_of, np.array(slots), position),
    floats,
    st.tuples(*(floats | st.just(float(nothing)) for nothing in LAYOUT.identity)),
    st.integers(0, 2**64 - 1),
)


def holds_a_state(value: bytes | None) -> bool:
    """The same in plain words: our header, a time, and in each slot a finite number or what stands for nothing."""
    if value is None or len(value) != SIZE or value[:8] not in LAYOUT.headers:
        return False
    _, as_of, *slots = struct.unpack("<Qd4d", value[8:])
    nothing = [
        number == none or (np.isnan(number) and np.isnan(none))
        for number, none in zip(slots, LAYOUT.identity, strict=True)
    ]
    return bool(np.isfinite(as_of)) and all(n or np.isfinite(s) for n, s in zip(nothing, slots, strict=True))


# Half of the values that look right, and all that can go wrong with them.
damaged = st.one_of(
    st.none(),
    st.binary(max_size=2 * SIZE),
    st.binary(min_size=SIZE, max_size=SIZE),
    st.binary(min_size=SIZE - 8, max_size=SIZE - 8).map(lambda rest: LAYOUT.headers[0] + rest),
    st.integers(0, SIZE - 1).map(lambda n: PACKED[:n]),
    st.binary(min_size=1).map(lambda more: PACKED + more),
    st.integers(0, 63).map(lambda bit: (int.from_bytes(PACKED, "little") ^ 1 << bit).to_bytes(SIZE, "little")),
    st.just(PACKED),
)


def test_a_packed_state_is_a_fixed_header_and_eight_bytes_a_slot() -> None:
    magic, version, flags, fingerprint, position, as_of, *slots = struct.unpack("<2sBB4sQd4d", PACKED)
    assert (magic, version, flags, fingerprint.hex()) == (b"tm", 4, 0, LAYOUT.fingerprint)
    assert (position, as_of) == (STATE.position, STATE.as_of)
    np.testing.assert_array_equal(slots, STATE.slots)
    assert len(PACKED) == SIZE == LAYOUT.dtype.itemsize


def test_a_state_can_say_that_there_is_a_profile_and_is_otherwise_the_same() -> None:
    flagged = with_profile(PACKED)
    assert flagged == with_profile(flagged)
    assert [needs_profile(value) for value in (None, b"", b"tm", PACKED, flagged)] == [False, False, False, False, True]
    plain, both = LAYOUT.unpack([PACKED]), LAYOUT.unpack([flagged, PACKED])
    assert both.valid.all()
    np.testing.assert_array_equal(both.slots, np.tile(plain.slots, (2, 1)))
    assert as_of_packed(flagged) == as_of_packed(PACKED) == STATE.as_of
    assert LAYOUT.pack_many(plain.as_of, plain.slots, STATE.position, has_profile=True) == [flagged]


@pytest.mark.parametrize("value", [b"", PACKED[:23], LAYOUT.headers[1] + b"\xff" * 16])
def test_a_damaged_state_has_no_time(value: bytes) -> None:
    assert as_of_packed(value) == -np.inf


@given(st.lists(states))
def test_the_round_trip_is_exact_to_the_bit(many: list[State]) -> None:
    values = [LAYOUT.pack(state) for state in many]
    assert [position_of(value) for value in values] == [state.position for state in many]
    batch = LAYOUT.unpack(values)
    assert batch.found.all()
    assert batch.valid.all()
    assert batch.as_of.tobytes() == np.array([state.as_of for state in many], dtype=np.float64).tobytes()
    assert batch.slots.tobytes() == b"".join(state.slots.tobytes() for state in many)
    assert batch.slots.shape == (len(many), len(FEATURES))


@given(st.lists(states, max_size=5), st.integers(0, 2**64 - 1))
def test_many_pack_as_each_does_alone(many: list[State], position: int) -> None:
    as_of = np.array([state.as_of for state in many])
    slots = np.array([state.slots for state in many]).reshape(-1, len(FEATURES))
    assert LAYOUT.pack_many(as_of, slots, position) == [LAYOUT.pack(replace(s, position=position)) for s in many]
    assert LAYOUT.pack_many(as_of, slots) == [LAYOUT.pack(replace(s, position=0)) for s in many]


@given(st.lists(damaged))
def test_unpacking_never_fails_and_only_the_right_header_and_length_are_valid(values: list[bytes | None]) -> None:
    batch = LAYOUT.unpack(values)
    assert batch.found.tolist() == [value is not None for value in values]
    right = [holds_a_state(value) for value in values]
    assert batch.valid.tolist() == right
    assert len(batch.as_of) == len(batch.slots) == len(values)
    assert not batch.all_valid or batch.valid.all()
    for row, value in enumerate(values):
        if right[row] and value is not None:
            assert batch.slots[row].tobytes() == value[24:]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="absent"),
        pytest.param(b"", id="empty"),
        pytest.param(PACKED[:-1], id="torn"),
        pytest.param(PACKED + b"\0", id="too long"),
        pytest.param(OTHER.pack(STATE), id="of other features"),
    ],
)
def test_a_row_that_is_not_valid_holds_the_identity(value: bytes | None) -> None:
    batch = LAYOUT.unpack([PACKED, value, PACKED])
    assert batch.valid.tolist() == [True, False, True]
    assert batch.found.tolist() == [True, value is not None, True]
    np.testing.assert_array_equal(batch.slots[1], LAYOUT.identity)
    np.testing.assert_array_equal(batch.slots[2], STATE.slots)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"xx" + PACKED[2:], id="magic"),
        pytest.param(PACKED[:2] + b"\1\0" + PACKED[4:], id="format"),
        pytest.param(PACKED[:4] + bytes(4) + PACKED[8:], id="fingerprint"),
        pytest.param(OTHER.pack(STATE), id="other features of the same number"),
    ],
)
def test_a_foreign_header_is_not_valid(value: bytes) -> None:
    assert len(value) == SIZE
    batch = LAYOUT.unpack([value])
    assert batch.found.tolist() == [True]
    assert batch.valid.tolist() == [False]


def test_values_may_come_as_any_sequence() -> None:
    batch = LAYOUT.unpack((PACKED, None))
    assert batch.valid.tolist() == [True, False]


@pytest.mark.parametrize("slot", range(len(LAYOUT.features)))
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_no_state_can_hold_is_not_valid(slot: int, number: float) -> None:
    slots = STATE.slots.copy()
    slots[slot] = number
    identity = LAYOUT.identity[slot]
    possible = number == identity or (np.isnan(number) and np.isnan(identity))
    assert LAYOUT.unpack([LAYOUT.pack(State(1.0, slots))]).valid.tolist() == [possible]


@pytest.mark.parametrize("as_of", [np.nan, np.inf, -np.inf])
def test_a_time_that_is_none_is_not_valid(as_of: float) -> None:
    assert LAYOUT.unpack([LAYOUT.pack(State(as_of, STATE.slots))]).valid.tolist() == [False]


@given(st.integers(0, 2**64 - 1))
def test_a_position_may_be_any_and_changes_nothing_else(position: int) -> None:
    # Some look like NaN where they are taken for a float.
    value = LAYOUT.pack(replace(STATE, position=position))
    batch = LAYOUT.unpack([value])
    assert batch.valid.tolist() == [True]
    assert (batch.as_of[0], batch.slots[0].tobytes()) == (STATE.as_of, STATE.slots.tobytes())
    assert value[:8] + value[16:] == PACKED[:8] + PACKED[16:]
    assert position_of(value) == position


@pytest.mark.parametrize("value", [None, b"", b"tm", PACKED[:15]])
def test_what_is_too_short_to_hold_a_position_has_none(value: bytes | None) -> None:
    assert position_of(value) == 0
