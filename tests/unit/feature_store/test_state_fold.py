"""Folding many events into many states at once says what folding each of them alone says, however they are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.state.events import Event
from feature_store.state.layout import DAY_S, Floats, StateLayout

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="visits_3d", aggregate="count", event="visit", half_life_days=3),
    Feature(name="income", aggregate="attribute"),
    Feature(name="spend_30d", aggregate="sum", event="purchase", field="amount", half_life_days=30),
    Feature(name="bounded_9d", aggregate="sum", event="purchase", field="amount", half_life_days=9, clip=100.0),
    Feature(name="first", aggregate="earliest", event="purchase"),
    Feature(name="dwell_7d", aggregate="sum", event="visit", field="duration_s", half_life_days=7, clip=60.0),
    Feature(name="seen", aggregate="latest", event="hello"),
]
LAYOUT = StateLayout(FEATURES)
START = 1.7e9
CUSTOMERS = 4

# Eighths of a second are exact in binary, so that times can be compared exactly.
times = st.integers(0, 90 * 86_400 * 8).map(lambda n: START + n / 8)
numbers = st.none() | st.integers(-30_000, 30_000).map(lambda n: n / 100)
events = st.builds(
    Event,
    st.integers(0, CUSTOMERS - 1).map(str),
    st.sampled_from(["visit", "purchase", "hello", "newsletter"]),
    times,
    amount=numbers,
    duration_s=numbers,
)
histories = st.lists(events, max_size=25)
incomes = st.lists(st.just(math.nan) | st.integers(0, 99).map(float), min_size=CUSTOMERS, max_size=CUSTOMERS)


def plain(feature: Feature, history: Sequence[Event], as_of: float) -> float:
    """The definition of a slot, word for word."""
    ours = [event for event in history if event.event_type == feature.event]
    if feature.aggregate in ("latest", "earliest"):
        pick, never = (max, -math.inf) if feature.aggregate == "latest" else (min, math.inf)
        return pick((event.event_time - as_of for event in ours), default=never)
    total = 0.0
    for event in ours:
        value = (getattr(event, feature.field) or 0.0) if feature.field else 1.0
        if feature.clip is not None:
            value = max(-feature.clip, min(feature.clip, value))
        total += value * 2 ** (-(as_of - event.event_time) / ((feature.half_life_days or math.nan) * DAY_S))
    return total


def nobody(incomes: Sequence[float]) -> tuple[Floats, Floats]:
    """Customers who have attributes and nothing else."""
    slots = np.tile(LAYOUT.identity, (len(incomes), 1))
    slots[:, 2] = incomes
    return np.full(len(incomes), -np.inf), slots


def fold(states: tuple[Floats, Floats], history: Sequence[Event]) -> tuple[Floats, Floats]:
    return LAYOUT.fold(*states, [int(event.customer_id) for event in history], history)


def assert_plain(states: tuple[Floats, Floats], history: Sequence[Event], incomes: Sequence[float]) -> None:
    """Each state is that of the customer's own events, as of the newest of them."""
    for row, income in enumerate(incomes):
        ours = [event for event in history if int(event.customer_id) == row]
        as_of = max((event.event_time for event in ours), default=-math.inf)
        assert states[0][row] == as_of
        expected = [plain(f, ours, as_of) if f.event else income for f in FEATURES]
        np.testing.assert_allclose(states[1][row], expected, rtol=1e-11, atol=1e-9)


@given(histories, incomes)
def test_new_customers_have_what_a_plain_recomputation_of_their_events_says(
    history: list[Event], incomes: list[float]
) -> None:
    assert_plain(fold(nobody(incomes), history), history, incomes)


@given(st.data(), histories, incomes)
def test_it_does_not_matter_how_events_are_ordered_and_cut_into_calls(
    data: st.DataObject, history: list[Event], incomes: list[float]
) -> None:
    states, left = nobody(incomes), data.draw(st.permutations(history))
    while left:
        size = data.draw(st.integers(1, len(left)))
        states, left = fold(states, left[:size]), left[size:]
    assert_plain(states, history, incomes)


@given(st.data(), histories, incomes)
def test_it_does_not_matter_beside_whom_or_in_which_row_a_customer_is_folded(
    data: st.DataObject, history: list[Event], incomes: list[float]
) -> None:
    together = fold(nobody(incomes), history)
    order = data.draw(st.permutations(range(CUSTOMERS)))
    as_of, slots = nobody(incomes)
    apart = LAYOUT.fold(as_of[order], slots[order], [order.index(int(e.customer_id)) for e in history], history)
    np.testing.assert_array_equal(apart[0], together[0][order])
    np.testing.assert_array_equal(apart[1], together[1][order])
    for row in range(CUSTOMERS):
        ours = [event for event in history if int(event.customer_id) == row]
        alone = LAYOUT.fold(as_of[[row]], slots[[row]], [0] * len(ours), ours)
        np.testing.assert_array_equal(alone[0][0], together[0][row])
        np.testing.assert_array_equal(alone[1][0], together[1][row])


@given(histories, histories, incomes)
def test_late_events_are_as_if_they_had_come_in_time(
    early: list[Event], late: list[Event], incomes: list[float]
) -> None:
    both = sorted([*early, *late], key=lambda event: event.event_time)
    assert_plain(fold(fold(nobody(incomes), early), late), both, incomes)


@given(histories, histories)
def test_what_is_folded_into_is_left_as_it_was(early: list[Event], late: list[Event]) -> None:
    as_of, slots = fold(nobody([1.0] * CUSTOMERS), early)
    before = as_of.copy(), slots.copy()
    for array in (as_of, slots):
        array.setflags(write=False)  # as what comes right from Redis
    fold((as_of, slots), late)
    np.testing.assert_array_equal(as_of, before[0])
    np.testing.assert_array_equal(slots, before[1])


def test_a_customer_without_new_events_stays_the_same_to_the_bit() -> None:
    states = fold(nobody([5.0] * CUSTOMERS), [Event("1", "visit", START, duration_s=9.0)])
    as_of, slots = fold(states, [Event("2", "purchase", START + 1e7, 3.0)])
    for row in (0, 1, 3):
        assert as_of[row] == states[0][row]
        assert slots[row].tobytes() == states[1][row].tobytes()


@pytest.mark.parametrize("amount", [100.0, 100.01, 1e12, -100.01, -1e12])
def test_a_clip_bounds_what_one_event_adds_either_way_and_only_its_own_feature(amount: float) -> None:
    _, slots = fold(nobody([0.0]), [Event("0", "purchase", START, amount)] * 3)
    assert slots[0, 3] == 3 * amount
    assert slots[0, 4] == math.copysign(300.0, amount)


def test_a_clip_bounds_each_event_and_not_their_sum() -> None:
    _, slots = fold(nobody([0.0]), [Event("0", "purchase", START, amount) for amount in (80.0, 90.0, 500.0)])
    assert slots[0, 4] == 270.0


def test_the_clips_are_told_by_event_and_field_the_narrowest_where_features_differ() -> None:
    wider = FEATURES[4].model_copy(update={"name": "wider", "clip": 200.0})
    assert StateLayout([*FEATURES, wider]).clips == {"purchase": {"amount": 100.0}, "visit": {"duration_s": 60.0}}
    assert StateLayout([wider, *FEATURES]).clips == {"purchase": {"amount": 100.0}, "visit": {"duration_s": 60.0}}
    assert StateLayout(FEATURES[:4]).clips == {}


def test_an_event_of_the_distant_past_adds_nothing_and_no_warning() -> None:
    as_of, slots = fold(nobody([0.0]), [Event("0", "visit", 0.0), Event("0", "visit", 1e12)])
    assert (as_of[0], slots[0, 0], slots[0, 1]) == (1e12, 0.0, 1.0)


def test_no_events_are_no_change() -> None:
    states = nobody([1.0, math.nan])
    as_of, slots = fold(states, [])
    np.testing.assert_array_equal(as_of, states[0])
    np.testing.assert_array_equal(slots, states[1])
