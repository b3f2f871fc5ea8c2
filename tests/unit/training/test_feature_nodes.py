"""The feature nodes of the graph equal a plain recomputation, and age is the same as moving the state in time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.bundles.onnx_session import Graph
from feature_store.definitions import Feature
from feature_store.state.layout import DAY_S, Floats, StateLayout
from training.config import Overdue
from training.graph.builder import GraphBuilder
from training.graph.features import MAX_DAYS, FeatureMatrix, FeatureSpec, Rates, add_features, filled_matrix

FEATURES = [
    Feature(name="last", aggregate="latest", event="visit"),
    Feature(name="income", aggregate="attribute"),
    Feature(name="first", aggregate="earliest", event="visit"),
    Feature(name="visits_7d", aggregate="count", event="visit", half_life_days=7),
    Feature(name="spend_28d", aggregate="sum", event="purchase", field="amount", half_life_days=28),
    Feature(name="children", aggregate="attribute"),
    Feature(name="last_purchase", aggregate="latest", event="purchase"),
]
LAYOUT = StateLayout(FEATURES)
SPEC = FeatureSpec(
    LAYOUT,
    [
        Overdue(name="overdue", latest="last", rate="visits_7d"),
        Overdue(name="overdue_purchase", latest="last_purchase", rate="visits_7d"),
    ],
    rates=Rates("last_purchase", 28),
)


def nodes(spec: FeatureSpec) -> Graph:
    graph = GraphBuilder()
    graph.input("state", len(spec.layout.features))
    graph.input("age", 1)
    graph.output("features", add_features(graph, spec), columns=len(spec.names))
    return Graph(graph.build("features"))


NODES = nodes(SPEC)

seconds_ago = st.floats(-400 * DAY_S, 0)
states = st.tuples(
    seconds_ago | st.just(-math.inf),
    st.floats(-1e6, 1e6) | st.just(math.nan),
    seconds_ago | st.just(math.inf),
    st.floats(0, 1000),
    st.floats(-1e5, 1e5),
    st.integers(0, 5).map(float) | st.just(math.nan),
    seconds_ago | st.just(-math.inf),
)
batches: st.SearchStrategy[Floats] = st.lists(states, min_size=1, max_size=8).map(np.array)
ages = st.just(0.0) | st.floats(0, 400)


def plain(state: Floats, age: float) -> list[float]:
    """What the model sees of one customer, slot by slot."""
    values = []
    for feature, slot in zip(FEATURES, state, strict=True):
        if feature.aggregate in ("latest", "earliest"):
            values.append(min(max(age - slot / DAY_S, 0.0), MAX_DAYS))
        else:
            values.append(slot * 2 ** (-age / feature.half_life_days) if feature.half_life_days else slot)
    flags = [float(math.isnan(values[1])), float(math.isnan(values[5]))]
    per_day = values[3] * math.log(2) / 7
    signed = [math.copysign(math.log(1 + abs(value)), value) for value in values]
    rates = [math.log(1 + values[6] * per_day), 1 - math.exp(-28 * per_day)]
    return [*signed, *flags, values[0] * per_day, values[6] * per_day, *rates]


def run(state: Floats, age: Floats) -> npt.NDArray[np.float32]:
    return np.asarray(NODES.run(state=state, age=age[:, np.newaxis])["features"])


def test_features_are_named_slots_first_then_flags_then_ratios_then_rates() -> None:
    slots = [f"log1p({feature.name})" for feature in FEATURES]
    plain_names = [*slots, "missing(income)", "missing(children)", "overdue", "overdue_purchase"]
    assert SPEC.names == [*plain_names, "overdue(visits_7d)", "chance(visits_7d)"]
    assert SPEC.without_rates == len(plain_names)
    assert replace(SPEC, rates=None).names == plain_names


def test_rates_need_the_slot_of_the_last_event() -> None:
    assert SPEC.narrowed([3, 6]).names == [
        "log1p(visits_7d)",
        "log1p(last_purchase)",
        "overdue_purchase",
        "overdue(visits_7d)",
        "chance(visits_7d)",
    ]
    assert SPEC.narrowed([3, 4]).names == ["log1p(visits_7d)", "log1p(spend_28d)"]


@given(batches, st.data())
def test_the_nodes_equal_a_plain_recomputation(state: Floats, data: st.DataObject) -> None:
    age = np.array([data.draw(ages) for _ in state])
    expected = [plain(row, at) for row, at in zip(state, age, strict=True)]
    np.testing.assert_allclose(run(state, age), expected, rtol=1e-6, atol=1e-6)


@given(batches, ages)
def test_a_state_with_an_age_equals_the_advanced_state(state: Floats, age: float) -> None:
    aged = run(state, np.full(len(state), age))
    advanced = run(LAYOUT.advance(state, np.full(len(state), age * DAY_S)), np.zeros(len(state)))
    np.testing.assert_allclose(aged, advanced, rtol=1e-6, atol=1e-6)


@given(batches)
def test_the_training_matrix_uses_the_same_nodes(state: Floats) -> None:
    np.testing.assert_array_equal(FeatureMatrix(SPEC)(state), run(state, np.zeros(len(state))))


def test_an_unknown_customer_has_finite_features() -> None:
    spec = replace(SPEC, fill=tuple([7.0] * len(SPEC.names)))
    result = nodes(spec).run(state=LAYOUT.identity[np.newaxis], age=np.array([[12.0]]))["features"][0]
    never = math.log(1 + MAX_DAYS)
    assert result.tolist() == pytest.approx([never, 7, 0, 0, 0, 7, never, 1, 1, 0, 0, 0, 0])


def test_a_very_old_event_counts_like_one_that_never_happened() -> None:
    state = np.tile(LAYOUT.identity, (2, 1))
    state[1, 0] = -20 * 365 * DAY_S
    first, second = run(state, np.zeros(2))
    np.testing.assert_array_equal(first, second)


def test_a_spec_of_one_plain_slot_needs_no_other_parts() -> None:
    spec = FeatureSpec(StateLayout([FEATURES[3]]))
    assert spec.names == ["log1p(visits_7d)"]
    assert FeatureMatrix(spec)(np.array([[math.e - 1], [0.0]])).tolist() == [[pytest.approx(1.0)], [0.0]]


@given(batches, batches, st.data())
def test_missing_values_are_filled_with_medians(learnt: Floats, state: Floats, data: st.DataObject) -> None:
    matrix = filled_matrix(SPEC, learnt)
    gaps = np.array([[data.draw(st.booleans()) for _ in row] for row in state])
    result = matrix(np.where(gaps, np.nan, state))
    assert np.isfinite(result).all()
    usual = matrix(np.full((1, len(FEATURES)), np.nan))[0]
    slots = len(FEATURES)
    np.testing.assert_array_equal(result[:, :slots][gaps], np.broadcast_to(usual[:slots], gaps.shape)[gaps])
    whole = FeatureMatrix(SPEC)(state)[:, :slots]
    known = ~gaps & np.isfinite(whole)
    np.testing.assert_array_equal(result[:, :slots][known], whole[known])


def test_the_fill_value_is_the_median_of_known_values_or_zero() -> None:
    attributes = FeatureSpec(StateLayout([FEATURES[1], FEATURES[5]]))
    matrix = filled_matrix(attributes, np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, np.nan], [2.0, np.nan]]))
    result = matrix(np.array([[np.nan, np.nan], [8.0, 3.0]]))
    expected = [[math.log(3), 0, 1, 1], [math.log(9), math.log(4), 0, 0]]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_each_category_is_a_flag_and_a_missing_one_sets_none() -> None:
    colour = Feature(name="colour", aggregate="attribute", categories=("blue", "red"))
    spec = FeatureSpec(StateLayout([FEATURES[3], colour]))
    assert spec.names == ["log1p(visits_7d)", "missing(colour)", "colour=blue", "colour=red", "colour=other"]
    state = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, np.nan]])
    expected = [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert FeatureMatrix(spec)(state).tolist() == expected


def test_a_spec_of_fewer_slots_keeps_the_ratios_whose_slots_it_has() -> None:
    narrow = SPEC.narrowed([0, 3])
    assert narrow.names == ["log1p(last)", "log1p(visits_7d)", "overdue"]
    assert SPEC.narrowed([0, 4]).overdue == []
