"""Customer states are a commutative monoid, and at every prefix say what a plain recomputation from the events says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.state import DAY_S, Event, State, StateLayout

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits_1d", aggregate="count", event="visit", half_life_days=1),
    Feature(name="visits_90d", aggregate="count", event="visit", half_life_days=90),
    Feature(name="spend_30d", aggregate="sum", event="purchase", field="amount", half_life_days=30),
    Feature(name="dwell_7d", aggregate="sum", event="visit", field="duration_s", half_life_days=7),
    Feature(name="age", aggregate="attribute"),
]
LAYOUT = StateLayout(FEATURES)
START = 1.6e9

# Eighths of a second are exact in binary, so that times can be compared exactly.
times = st.integers(0, 2 * 365 * 86_400 * 8).map(lambda n: START + n / 8)
values = st.dictionaries(
    st.sampled_from(["amount", "duration_s", "other"]), st.integers(-100_000, 100_000).map(lambda n: n / 100)
)
events = st.builds(Event, times, st.sampled_from(["visit", "purchase", "other"]), values)
histories = st.lists(events, max_size=12)


def plain(feature: Feature, history: Sequence[Event], reference: float) -> float:
    """The definition of a slot, word for word."""
    mine = [event for event in history if event.event_type == feature.event]
    if feature.aggregate in ("latest", "earliest"):
        never = -math.inf if feature.aggregate == "latest" else math.inf
        pick = max if feature.aggregate == "latest" else min
        return pick((event.event_time - reference for event in mine), default=never)
    half_life_s = (feature.half_life_days or math.nan) * DAY_S
    weights = [2 ** (-(reference - event.event_time) / half_life_s) for event in mine]
    if feature.aggregate == "count":
        return sum(weights)
    return sum(w * event.values.get(str(feature.field), 0.0) for w, event in zip(weights, mine, strict=True))


def recomputed(history: Sequence[Event], reference: float) -> list[float]:
    return [plain(f, history, reference) if f.event else math.nan for f in FEATURES]


def folded(history: Sequence[Event], state: State | None = None) -> State:
    state = state or State(START, START, LAYOUT.identity)
    for event in history:
        state = LAYOUT.fold(state, event)
    return state


def with_age(state: State, age: float) -> State:
    slots = state.slots.copy()
    slots[-1] = age
    return replace(state, slots=slots)


states = st.builds(with_age, histories.map(folded), st.just(math.nan) | st.integers(18, 99).map(float))


def assert_same(a: State, b: State) -> None:
    """The two say the same, whatever their references."""
    at = max(a.reference, b.reference)
    x, y = LAYOUT.advance(a.slots, at - a.reference), LAYOUT.advance(b.slots, at - b.reference)
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-9)
    assert a.as_of == b.as_of


@given(histories)
def test_a_fold_says_at_every_prefix_what_a_plain_recomputation_says(history: list[Event]) -> None:
    state = State(START, START, LAYOUT.identity)
    for n, event in enumerate(history, 1):
        state = LAYOUT.fold(state, event)
        assert state.reference == state.as_of == max(START, *(e.event_time for e in history[:n]))
        np.testing.assert_allclose(state.slots, recomputed(history[:n], state.reference), rtol=1e-12, atol=1e-9)


@given(st.data(), histories)
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, history: list[Event]) -> None:
    assert_same(folded(history), folded(data.draw(st.permutations(history))))


@given(states, states)
def test_merge_is_commutative(a: State, b: State) -> None:
    ab, ba = LAYOUT.merge(a, b), LAYOUT.merge(b, a)
    assert (ab.reference, ab.as_of) == (ba.reference, ba.as_of)
    np.testing.assert_array_equal(ab.slots, ba.slots)


@given(states, states, states)
def test_merge_is_associative(a: State, b: State, c: State) -> None:
    assert_same(LAYOUT.merge(LAYOUT.merge(a, b), c), LAYOUT.merge(a, LAYOUT.merge(b, c)))


@given(states, times)
def test_the_identity_adds_nothing_whatever_its_reference(a: State, reference: float) -> None:
    nobody = State(reference, START, LAYOUT.identity)
    assert_same(LAYOUT.merge(a, nobody), a)
    assert_same(LAYOUT.merge(nobody, a), a)


@given(histories, histories)
def test_two_identities_merge_into_the_customer_who_did_all_of_it(mine: list[Event], yours: list[Event]) -> None:
    assert_same(LAYOUT.merge(folded(mine), folded(yours)), folded([*mine, *yours]))


@given(states, st.floats(-100, 3650), st.floats(-100, 3650))
def test_advance_is_additive(a: State, days: float, more: float) -> None:
    twice = LAYOUT.advance(LAYOUT.advance(a.slots, days * DAY_S), more * DAY_S)
    np.testing.assert_allclose(twice, LAYOUT.advance(a.slots, (days + more) * DAY_S), rtol=1e-9, atol=1e-6)


@given(histories, st.integers(0, 3650))
def test_advance_moves_the_reference_and_keeps_the_meaning(history: list[Event], days: int) -> None:
    state = folded(history)
    later = state.reference + days * DAY_S
    moved = LAYOUT.advance(state.slots, later - state.reference)
    np.testing.assert_allclose(moved, recomputed(history, later), rtol=1e-9, atol=1e-9)


@given(st.lists(states, min_size=1, max_size=5), st.data())
def test_many_states_advance_as_each_does_alone(many: list[State], data: st.DataObject) -> None:
    seconds = np.array([data.draw(st.integers(-86_400, 10**8)) for _ in many], dtype=np.float64)
    together = LAYOUT.advance(np.array([state.slots for state in many]), seconds)
    alone = [LAYOUT.advance(state.slots, by) for state, by in zip(many, seconds, strict=True)]
    np.testing.assert_array_equal(together, np.array(alone))


def test_a_late_event_adds_its_value_as_decayed_since() -> None:
    state = folded([Event(START + 60 * DAY_S, "purchase", {"amount": 10.0})])
    late = LAYOUT.fold(state, Event(START, "purchase", {"amount": 8.0}))
    assert late.slots[4] == 10.0 + 8.0 * 2**-2
    assert (late.reference, late.as_of) == (state.reference, state.as_of)


def test_a_late_event_may_be_the_first_but_not_the_last() -> None:
    state = LAYOUT.fold(folded([Event(START + 100.0, "visit")]), Event(START + 40.0, "visit"))
    assert list(state.slots[:2]) == [0.0, -60.0]


def test_an_event_of_another_type_changes_no_slot_but_moves_the_reference() -> None:
    before = folded([Event(START, "visit")])
    after = LAYOUT.fold(before, Event(START + DAY_S, "newsletter"))
    assert after.as_of == START + DAY_S
    np.testing.assert_array_equal(after.slots, LAYOUT.advance(before.slots, DAY_S))


def test_a_missing_value_counts_as_nothing_in_a_sum() -> None:
    state = folded([Event(START, "purchase", {"amount": 5.0}), Event(START, "purchase")])
    assert state.slots[4] == 5.0


@pytest.mark.parametrize("years", [1, 50, 5_000, 5_000_000])
def test_references_that_lie_far_apart_neither_overflow_nor_lose_a_time(years: int) -> None:
    # Warnings are errors: an overflow inside would show.
    apart = years * 365 * DAY_S
    state = folded([Event(START + apart, "visit"), Event(START, "visit")])
    assert np.isfinite(state.slots[:-1]).all()
    assert state.slots[0] == 0.0
    assert state.slots[1] == -apart
    assert state.slots[2] == 1.0


@given(states, states)
def test_a_known_attribute_wins_over_a_missing_one_and_the_larger_over_the_smaller(a: State, b: State) -> None:
    known = [age for age in (a.slots[-1], b.slots[-1]) if not math.isnan(age)]
    merged = LAYOUT.merge(a, b).slots[-1]
    assert merged == max(known) if known else math.isnan(merged)


@given(states, states)
def test_merging_leaves_its_arguments_as_they_were(a: State, b: State) -> None:
    before = a.slots.copy(), b.slots.copy()
    LAYOUT.merge(a, b)
    np.testing.assert_array_equal(a.slots, before[0])
    np.testing.assert_array_equal(b.slots, before[1])
