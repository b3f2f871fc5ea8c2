"""Ranking of slots: the costs are those of linear models fitted without a slot, and collinear slots are one."""

from __future__ import annotations

import numpy as np
import pytest

from feature_store.definitions import Feature
from feature_store.state.layout import Floats, StateLayout
from training.arrays import Features
from training.config import Overdue
from training.graph.features import FeatureSpec, Rates
from training.selection import slot_ranking
from training.selection.slot_ranking import (
    Correlations,
    correlations,
    group_of,
    half_sample_correlations,
    rank_slots,
    slots_of_columns,
)

SINGLE = [frozenset([slot]) for slot in range(5)]


def made(seed: int = 0, rows: int = 4000) -> tuple[Features, Floats]:
    """Features ``[n, 5]``, the third and fourth nearly the same, and an outcome of these and, weakly, of the first."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 5))
    features[:, 3] = features[:, 2] + 0.02 * random.normal(size=rows)
    signal = 1.5 * features[:, 2] + 0.4 * features[:, 0]
    return features.astype(np.float32), (signal + random.normal(size=rows) > 0).astype(np.float64)


def explained(found: Correlations, columns: list[int]) -> float:
    """Share of the outcome's variance that a linear model of some regressors explains, by solving it."""
    weights = np.linalg.solve(found.regressors[np.ix_(columns, columns)], found.outcome[columns])
    return float(found.outcome[columns] @ weights)


def test_slots_go_in_the_order_of_a_stepwise_regression_that_is_fitted_anew_each_time() -> None:
    result = correlations("churn", *made(), seed=7)
    remaining, order = [0, 1, 2, 3, 4], []

    def without(slot: int) -> float:
        left = [other for other in remaining if other != slot]
        return explained(result, [*left, *(5 + other for other in left)]) if left else 0.0

    while remaining:
        order.append(max(remaining, key=without))
        remaining.remove(order[-1])
    assert rank_slots([result], SINGLE, 5) == order[::-1]


def test_of_collinear_slots_one_is_the_most_important_and_the_other_is_not_needed() -> None:
    ranking = rank_slots([correlations("churn", *made(), seed=7)], SINGLE, 5)
    assert ranking[0] in (2, 3)
    assert ranking[1] == 0
    assert ranking.index(2) > 1 or ranking.index(3) > 1


def test_slots_to_keep_come_first() -> None:
    assert rank_slots([correlations("churn", *made(), seed=7)], SINGLE, 5, keep=[4, 1])[:2] == [1, 4]


def test_each_target_has_a_say() -> None:
    features, churn = made()
    other = (features[:, 1] > 0).astype(np.float64)
    both = [correlations("churn", features, churn, seed=7), correlations("propensity", features, other, seed=7)]
    assert set(rank_slots(both, SINGLE, 5)[:2]) - {2, 3} == {1}


def test_a_constant_feature_and_a_constant_outcome_are_harmless() -> None:
    features, churn = made()
    features[:, 1] = 3
    ranking = rank_slots([correlations("churn", features, churn, seed=7)], SINGLE, 5)
    assert ranking[-1] == 1
    assert sorted(rank_slots([correlations("churn", features, 0 * churn, seed=7)], SINGLE, 5)) == [0, 1, 2, 3, 4]


def test_halves_of_the_customers_are_disjoint_and_together_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_ranking, "PAIRS", 1)
    features, churn = made()
    customer = np.arange(len(churn)) // 4
    first, second = half_sample_correlations("churn", features, churn, customer, 1000, seed=7)
    whole = correlations("churn", features, churn, seed=7)
    for half in (first, second):
        assert half.outcome == pytest.approx(whole.outcome, abs=0.1)
        assert np.diag(half.regressors) == pytest.approx(1 + slot_ranking.RIDGE)
    assert not np.allclose(first.outcome, second.outcome)
    assert (first.outcome + second.outcome) / 2 == pytest.approx(whole.outcome, abs=0.01)


def test_many_features_have_fewer_halves_instead_of_taking_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features, churn = made(rows=400)
    monkeypatch.setattr(slot_ranking, "MAX_HALVES_BYTES", 5 * 11 * 11 * 8)
    assert len(half_sample_correlations("churn", features, churn, np.arange(400), 400, seed=7)) == 4
    monkeypatch.setattr(slot_ranking, "MAX_HALVES_BYTES", 1)
    assert len(half_sample_correlations("churn", features, churn, np.arange(400), 400, seed=7)) == 2


def test_features_know_the_slots_that_they_are_made_of() -> None:
    spec = FeatureSpec(
        StateLayout(
            [
                Feature(name="town", aggregate="attribute", categories=("x", "y")),
                Feature(name="last", aggregate="latest", event="buy"),
                Feature(name="age", aggregate="attribute"),
                Feature(name="often", aggregate="count", event="buy", half_life_days=7),
            ]
        ),
        [Overdue(name="overdue", latest="last", rate="often")],
        rates=Rates("last", 28),
    )
    slots = dict(zip(spec.names, map(sorted, slots_of_columns(spec)), strict=True))
    assert slots["log1p(age)"] == slots["missing(age)"] == [2]
    assert slots["town=x"] == slots["town=other"] == slots["missing(town)"] == [0]
    assert slots["overdue"] == slots["overdue(often)"] == [1, 3]
    assert slots["chance(often)"] == [3]
    assert [group_of(feature) for feature in spec.layout.features] == ["town", "last", "age", "buy count"]
