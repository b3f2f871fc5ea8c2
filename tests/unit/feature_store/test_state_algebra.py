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
from feature_store.state.events import Event
from feature_store.state.layout import DAY_S, State, StateLayout

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits_1d", aggregate="count", event="visit", half_life_days=1),
    Feature(name="visits_90d", aggregate="count", event="visit", half_life_days=90),
    Feature(name="spend_30d", aggregate="sum", event="purchase", field="amount", half_life_days=30),
    Feature(name="dwell_7d", aggregate="sum", event="visit", field="duration_s", half_life_days=7),
    Feature(name="bounded_9d", aggregate="sum", event="purchase", field="amount", half_life_days=9, clip=250.5),
    Feature(name="age", aggregate="attribute"),
]
LAYOUT = StateLayout(FEATURES)
START = 1.6e9

# Eighths of a second are exact in binary, so that times can be compared exactly.
times = st.integers(0, 2 * 365 * 86_400 * 8).map(lambda n: START + n / 8)
values = st.none() | st.integers(-100_000, 100_000).map(lambda n: n / 100)
kinds = st.sampled_from(["visit", "purchase", "other"])
events = st.builds(Event, st.just("c"), kinds, times, amount=values, duration_s=values)
histories = st.lists(events, max_size=12)


def plain(feature: Feature, history: Sequence[Event], as_of: float) -> float:
    """The definition of a slot, word for word."""
    ours = [event for event in history if event.event_type == feature.event]
    if feature.aggregate in ("latest", "earliest"):
        never = -math.inf if feature.aggregate == "latest" else math.inf
        pick = max if feature.aggregate == "latest" else min
        return pick((event.event_time - as_of for event in ours), default=never)
    half_life_s = (feature.half_life_days or math.nan) * DAY_S
    weights = [2 ** (-(as_of - event.event_time) / half_life_s) for event in ours]
    if feature.aggregate == "count":
        return sum(weights)
    amounts = [getattr(event, str(feature.field)) or 0.0 for event in ours]
    if feature.clip is not None:
        amounts = [max(-feature.clip, min(feature.clip, amount)) for amount in amounts]
    return sum(w * amount for w, amount in zip(weights, amounts, strict=True))


def recomputed(history: Sequence[Event], as_of: float) -> list[float]:
    return [plain(f, history, as_of) if f.event else math.nan for f in FEATURES]


def after(state: State, *more: Event) -> State:
    """The state after more events, folded at once."""
    as_of, slots = LAYOUT.fold(np.array([state.as_of]), state.slots[np.newaxis], [0] * len(more), more)
    return State(float(as_of[0]), slots[0])


def folded(history: Sequence[Event], state: State | None = None) -> State:
    """The same, folded one by one."""
    state = state or State(START, LAYOUT.identity)
    for event in history:
        state = after(state, event)
    return state


def visit(at: float) -> Event:
    return Event("c", "visit", at)


def purchase(at: float, amount: float | None = None) -> Event:
    return Event("c", "purchase", at, amount)


def with_age(state: State, age: float) -> State:
    slots = state.slots.copy()
    slots[-1] = age
    return replace(state, slots=slots)


states = st.builds(with_age, histories.map(folded), st.just(math.nan) | st.integers(18, 99).map(float))


def assert_same(a: State, b: State) -> None:
    """The two say the same, whatever their references."""
    at = max(a.as_of, b.as_of)
    x, y = LAYOUT.advance(a.slots, at - a.as_of), LAYOUT.advance(b.slots, at - b.as_of)
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-9)


@given(histories)
def test_a_fold_says_at_every_prefix_what_a_plain_recomputation_says(history: list[Event]) -> None:
    state = State(START, LAYOUT.identity)
    for n, event in enumerate(history, 1):
        state = after(state, event)
        assert state.as_of == max(START, *(e.event_time for e in history[:n]))
        np.testing.assert_allclose(state.slots, recomputed(history[:n], state.as_of), rtol=1e-12, atol=1e-9)


@given(st.data(), histories)
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, history: list[Event]) -> None:
    a, b = folded(history), folded(data.draw(st.permutations(history)))
    assert a.as_of == b.as_of
    assert_same(a, b)


@given(states, states)
def test_merge_is_commutative(a: State, b: State) -> None:
    ab, ba = LAYOUT.merge(a, b), LAYOUT.merge(b, a)
    assert ab.as_of == ba.as_of == max(a.as_of, b.as_of)
    np.testing.assert_array_equal(ab.slots, ba.slots)


@given(states, states, states)
def test_merge_is_associative(a: State, b: State, c: State) -> None:
    assert_same(LAYOUT.merge(LAYOUT.merge(a, b), c), LAYOUT.merge(a, LAYOUT.merge(b, c)))


@given(states, times)
def test_the_identity_adds_nothing_whatever_its_time(a: State, as_of: float) -> None:
    nobody = State(as_of, LAYOUT.identity)
    assert_same(LAYOUT.merge(a, nobody), a)
    assert_same(LAYOUT.merge(nobody, a), a)


@given(histories, histories)
def test_two_identities_merge_into_the_customer_who_did_all_of_it(mine: list[Event], yours: list[Event]) -> None:
    both, all_of_it = LAYOUT.merge(folded(mine), folded(yours)), folded([*mine, *yours])
    assert both.as_of == all_of_it.as_of
    assert_same(both, all_of_it)


@given(states, st.floats(-100, 3650), st.floats(-100, 3650))
def test_advance_is_additive(a: State, days: float, more: float) -> None:
    twice = LAYOUT.advance(LAYOUT.advance(a.slots, days * DAY_S), more * DAY_S)
    np.testing.assert_allclose(twice, LAYOUT.advance(a.slots, (days + more) * DAY_S), rtol=1e-9, atol=1e-6)


@given(histories, st.integers(0, 3650))
def test_advance_moves_the_time_and_keeps_the_meaning(history: list[Event], days: int) -> None:
    state = folded(history)
    later = state.as_of + days * DAY_S
    moved = LAYOUT.advance(state.slots, later - state.as_of)
    np.testing.assert_allclose(moved, recomputed(history, later), rtol=1e-9, atol=1e-9)


@given(st.lists(states, min_size=1, max_size=5), st.data())
def test_many_states_advance_as_each_does_alone(many: list[State], data: st.DataObject) -> None:
    seconds = np.array([data.draw(st.integers(-86_400, 10**8)) for _ in many], dtype=np.float64)
    together = LAYOUT.advance(np.array([state.slots for state in many]), seconds)
    alone = [LAYOUT.advance(state.slots, by) for state, by in zip(many, seconds, strict=True)]
    np.testing.assert_array_equal(together, np.array(alone))


def test_a_late_event_adds_its_value_as_decayed_since() -> None:
    state = folded([purchase(START + 60 * DAY_S, 10.0)])
    late = after(state, purchase(START, 8.0))
    assert late.slots[4] == 10.0 + 8.0 * 2**-2
    assert late.as_of == state.as_of


def test_a_late_event_may_be_the_first_but_not_the_last() -> None:
    state = after(folded([visit(START + 100.0)]), visit(START + 40.0))
    assert list(state.slots[:2]) == [0.0, -60.0]


def test_an_event_of_another_type_changes_no_slot_but_moves_the_time() -> None:
    before = folded([visit(START)])
    later = after(before, Event("c", "newsletter", START + DAY_S))
    assert later.as_of == START + DAY_S
    np.testing.assert_array_equal(later.slots, LAYOUT.advance(before.slots, DAY_S))


def test_a_missing_value_counts_as_nothing_in_a_sum() -> None:
    state = folded([purchase(START, 5.0), purchase(START)])
    assert state.slots[4] == 5.0


@pytest.mark.parametrize("years", [1, 50, 5_000, 5_000_000])
def test_times_that_lie_far_apart_neither_overflow_nor_lose_a_time(years: int) -> None:
    # Warnings are errors: an overflow inside would show.
    apart = years * 365 * DAY_S
    state = folded([visit(START + apart), visit(START)])
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
