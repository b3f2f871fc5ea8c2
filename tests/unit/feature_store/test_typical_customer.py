"""The typical customer is made of values that customers have, and comes back from the manifest as it went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.bundles.typical_customer import to_manifest, typical_state
from feature_store.definitions import Feature
from feature_store.state.layout import StateLayout

LAYOUT = StateLayout(
    [
        Feature(name="last", event="visit", aggregate="latest"),
        Feature(name="first", event="visit", aggregate="earliest"),
        Feature(name="visits", event="visit", aggregate="count", half_life_days=7),
        Feature(name="age", aggregate="attribute"),
        Feature(name="region", aggregate="attribute", categories=("north", "south", "west")),
    ]
)


def test_it_is_the_median_of_each_slot_and_the_most_frequent_category() -> None:
    states = np.array(
        [
            [-10.0, -90.0, 1.0, 30.0, 2.0],
            [-30.0, -80.0, 2.0, np.nan, 0.0],
            [-20.0, -70.0, 9.0, 50.0, 2.0],
            [-np.inf, np.inf, 0.0, 20.0, 1.0],
        ]
    )
    np.testing.assert_array_equal(typical_state(LAYOUT, states), [-30.0, -80.0, 1.0, 30.0, 2.0])


def test_what_most_customers_have_not_the_typical_one_has_not() -> None:
    nothing = LAYOUT.identity
    several = np.array([-10.0, -90.0, 1.0, 30.0, 2.0])
    np.testing.assert_array_equal(typical_state(LAYOUT, np.array([nothing, several, nothing])), nothing)
    assert to_manifest(nothing) == [None, None, 0.0, None, None]


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_each_value_is_one_that_some_customer_has(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    states = random.normal(size=(rows, 5))
    states[:, 4] = random.integers(0, 4, rows)
    states[random.random((rows, 5)) < 0.3] = np.nan
    states = np.where(np.isnan(states), LAYOUT.identity, states)
    result = typical_state(LAYOUT, states)
    same = (states == result) | (np.isnan(states) & np.isnan(result)) | np.isnan(result)
    assert same.any(axis=0).all()


@pytest.mark.parametrize("rows", [1, 2])
def test_one_customer_is_typical_of_himself(rows: int) -> None:
    state = np.array([-10.0, -90.0, 1.0, 30.0, 3.0])
    np.testing.assert_array_equal(typical_state(LAYOUT, np.tile(state, (rows, 1))), state)
