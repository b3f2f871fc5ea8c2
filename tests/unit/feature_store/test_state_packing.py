"""One packed value per customer: an exact round trip, and whatever else Redis may hold is found but never valid."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.state import State, StateLayout

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits", aggregate="count", event="visit", half_life_days=7),
    Feature(name="age", aggregate="attribute"),
]
LAYOUT = StateLayout(FEATURES)
OTHER = StateLayout(FEATURES[::-1])
SIZE = 24 + 8 * len(FEATURES)
STATE = State(1.7e9, 1.7e9 - 5, np.array([-5.0, -7.5, 1.25, np.nan]))
PACKED = LAYOUT.pack(STATE)

floats = st.floats(allow_nan=False, allow_infinity=False)
states = st.builds(
    lambda reference, as_of, slots: State(reference, as_of, np.array(slots)),
    floats,
    floats,
    st.tuples(*(floats | st.just(float(nothing)) for nothing in LAYOUT.identity)),
)


def holds_a_state(value: bytes | None) -> bool:
    """The same in plain words: our header, times, and in each slot a finite number or what stands for nothing."""
    if value is None or len(value) != SIZE or value[:8] != LAYOUT.header:
        return False
    reference, as_of, *slots = struct.unpack("<2d4d", value[8:])
    nothing = [
        number == none or (np.isnan(number) and np.isnan(none))
        for number, none in zip(slots, LAYOUT.identity, strict=True)
    ]
    return bool(np.isfinite([reference, as_of]).all()) and all(
        n or np.isfinite(s) for n, s in zip(nothing, slots, strict=True)
    )


# Half of the values that look right, and all that can go wrong with them.
damaged = st.one_of(
    st.none(),
    st.binary(max_size=2 * SIZE),
    st.binary(min_size=SIZE, max_size=SIZE),
    st.binary(min_size=SIZE - 8, max_size=SIZE - 8).map(lambda rest: LAYOUT.header + rest),
    st.integers(0, SIZE - 1).map(lambda n: PACKED[:n]),
    st.binary(min_size=1).map(lambda more: PACKED + more),
    st.integers(0, 63).map(lambda bit: (int.from_bytes(PACKED, "little") ^ 1 << bit).to_bytes(SIZE, "little")),
    st.just(PACKED),
)


def test_a_packed_state_is_a_fixed_header_and_eight_bytes_a_slot() -> None:
    magic, version, fingerprint, reference, as_of, *slots = struct.unpack("<2sH4sdd4d", PACKED)
    assert (magic, version, fingerprint.hex()) == (b"tm", 1, LAYOUT.fingerprint)
    assert (reference, as_of) == (STATE.reference, STATE.as_of)
    np.testing.assert_array_equal(slots, STATE.slots)
    assert len(PACKED) == SIZE == LAYOUT.dtype.itemsize


@given(st.lists(states))
def test_the_round_trip_is_exact_to_the_bit(many: list[State]) -> None:
    batch = LAYOUT.unpack([LAYOUT.pack(state) for state in many])
    assert batch.found.all()
    assert batch.valid.all()
    assert batch.reference.tobytes() == np.array([state.reference for state in many], dtype=np.float64).tobytes()
    assert batch.as_of.tobytes() == np.array([state.as_of for state in many], dtype=np.float64).tobytes()
    assert batch.slots.tobytes() == b"".join(state.slots.tobytes() for state in many)
    assert batch.slots.shape == (len(many), len(FEATURES))


@given(st.lists(states, max_size=5))
def test_many_pack_as_each_does_alone(many: list[State]) -> None:
    together = LAYOUT.pack_many(
        np.array([state.reference for state in many]),
        np.array([state.as_of for state in many]),
        np.array([state.slots for state in many]).reshape(-1, len(FEATURES)),
    )
    assert together == [LAYOUT.pack(state) for state in many]


@given(st.lists(damaged))
def test_unpacking_never_fails_and_only_the_right_header_and_length_are_valid(values: list[bytes | None]) -> None:
    batch = LAYOUT.unpack(values)
    assert batch.found.tolist() == [value is not None for value in values]
    right = [holds_a_state(value) for value in values]
    assert batch.valid.tolist() == right
    assert len(batch.reference) == len(batch.as_of) == len(batch.slots) == len(values)
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
        pytest.param(PACKED[:2] + b"\2\0" + PACKED[4:], id="format"),
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
    assert LAYOUT.unpack([LAYOUT.pack(State(1.0, 1.0, slots))]).valid.tolist() == [possible]


@pytest.mark.parametrize(("reference", "as_of"), [(np.nan, 1.0), (1.0, np.inf)])
def test_a_time_that_is_none_is_not_valid(reference: float, as_of: float) -> None:
    assert LAYOUT.unpack([LAYOUT.pack(State(reference, as_of, STATE.slots))]).valid.tolist() == [False]
