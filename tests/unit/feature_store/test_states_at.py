"""Steps in which events are read, samples of customers, and the fold of columns of events."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.offline import point_in_time
from feature_store.offline.point_in_time import STEP_S, StateAccumulator, sample_condition, step_ends
from feature_store.state.layout import DAY_S, StateLayout

SPEND = Feature(name="spend", aggregate="sum", event="b", field="amount", half_life_days=1, clip=10)
LAYOUT = StateLayout(
    [
        SPEND,
        Feature(name="visits", aggregate="count", event="a", half_life_days=2),
        Feature(name="last", aggregate="latest", event="a"),
        Feature(name="first", aggregate="earliest", event="a"),
        Feature(name="age", aggregate="attribute"),
    ]
)
ALL = np.array([True, True])


def columns(*events: tuple[int, int, float, float]) -> dict[str, np.ndarray]:
    kind, customer, t, amount = zip(*events, strict=True)
    return {"kind": np.array(kind), "customer": np.array(customer), "t": np.array(t), "amount": np.array(amount)}


def test_few_events_are_read_in_one_step_for_each_cutoff() -> None:
    assert step_ends(np.array([0.0, 3600.0]), np.array([5.0, 7.0]), [4000.0, 9000.0]) == [[4000.0], [9000.0]]


@given(
    st.dictionaries(st.integers(0, 40), st.integers(1, 9)),
    st.sets(st.integers(1, 45 * 3600), min_size=1, max_size=4).map(sorted),
)
def test_a_step_holds_no_more_events_than_fit_unless_an_hour_does(hours: dict[int, int], cutoffs: list[int]) -> None:
    starts = np.array(sorted(hours), dtype=np.float64) * STEP_S
    events = np.array([hours[hour] for hour in sorted(hours)], dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point_in_time, "MAX_EVENTS", 12)
        result = step_ends(starts, events, list(map(float, cutoffs)))
    assert [ends[-1] for ends in result] == cutoffs
    bounds = [-math.inf, *(end for ends in result for end in ends)]
    assert bounds == sorted(set(bounds))
    for start, end in itertools.pairwise(bounds):
        # The hour that begins the step may have begun before it.
        inside = [number for hour, number in hours.items() if start <= hour * STEP_S < end]
        assert sum(inside) <= 12 or len(inside) == 1


def test_events_of_later_steps_are_added_to_decayed_states() -> None:
    fold = StateAccumulator(LAYOUT, 2)
    fold.advance(DAY_S)
    fold.add(columns((0, 0, 0.0, 0.0), (0, 0, DAY_S, 0.0), (0, 1, 0.0, 0.0), (1, 0, 0.0, 8.0), (1, 0, DAY_S, -50.0)))
    fold.advance(3 * DAY_S)
    fold.add(columns((0, 0, 2 * DAY_S, 0.0), (1, 1, 3 * DAY_S, 3.0)))
    half = math.sqrt(0.5)
    expected = [
        [(8 / 2 - 10) / 4, (half + 1) / 2 + half, -DAY_S, -3 * DAY_S, math.nan],
        [3.0, half / 2, -3 * DAY_S, -3 * DAY_S, math.nan],
    ]
    np.testing.assert_allclose(fold.states(ALL), expected, rtol=1e-15)


def test_reading_states_does_not_change_them() -> None:
    fold = StateAccumulator(LAYOUT, 2)
    fold.advance(DAY_S)
    fold.add(columns((0, 0, 5.0, 0.0), (1, 1, 5.0, 2.0)))
    before = fold.states(ALL)
    before[:] = 7
    np.testing.assert_array_equal(fold.states(ALL)[0, 1:4], [2 ** ((5.0 - DAY_S) / (2 * DAY_S)), 5 - DAY_S, 5 - DAY_S])


def test_who_has_no_events_has_the_identity_at_any_time() -> None:
    fold = StateAccumulator(LAYOUT, 2)
    fold.advance(5.0)
    fold.advance(1e9)
    np.testing.assert_array_equal(fold.states(ALL), np.tile(LAYOUT.identity, (2, 1)))


def test_a_sum_beyond_all_numbers_counts_as_nothing() -> None:
    fold = StateAccumulator(StateLayout([SPEND.model_copy(update={"clip": None})]), 1)
    fold.advance(0.0)
    fold.add(columns((0, 0, 0.0, 1.7e308), (0, 0, 0.0, 1.7e308)))
    fold.advance(1e9)
    assert fold.states(ALL[:1]).tolist() == [[0.0]]


def test_an_attribute_that_is_no_finite_number_is_missing() -> None:
    fold = StateAccumulator(LAYOUT, 2)
    fold.set_attribute(4, np.array([3.0, np.inf]))
    fold.advance(1e9)
    np.testing.assert_array_equal(fold.states(ALL)[:, 4], [3.0, np.nan])


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        sample_condition(share)


def test_a_sample_is_told_by_the_beginning_of_an_ids_hash() -> None:
    assert sample_condition(1.0) == "true"
    bound = sample_condition(0.3).split("'")[1]
    inside = [name for name in map(str, range(2000)) if hashlib.md5(name.encode()).hexdigest() < bound]
    assert len(inside) == pytest.approx(600, abs=60)
    assert sample_condition(0.1).split("'")[1] < bound
