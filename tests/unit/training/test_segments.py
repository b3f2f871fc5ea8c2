"""Segments: planted ones are found and named in plain words, and the graph gives what scikit-learn and NumPy give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from feature_store.bundles.onnx_session import Graph
from feature_store.definitions import Feature
from feature_store.state.layout import Floats, StateLayout
from training.arrays import Features
from training.graph.builder import GraphBuilder
from training.graph.features import FeatureSpec
from training.models import rfm
from training.models.segments import Segments, add_segments, fit_segments, profile

SHOP = FeatureSpec(
    StateLayout(
        [
            Feature(name="last_view", aggregate="latest", event="view"),
            Feature(name="last", aggregate="latest", event="purchase"),
            Feature(name="first", aggregate="earliest", event="purchase"),
            Feature(name="often_7d", aggregate="count", event="purchase", half_life_days=7),
            Feature(name="often_60d", aggregate="count", event="purchase", half_life_days=60),
            Feature(name="spend_60d", aggregate="sum", event="purchase", field="amount", half_life_days=60),
        ]
    )
)
CRM = FeatureSpec(
    StateLayout(
        [
            Feature(name="income", aggregate="attribute"),
            Feature(name="age", aggregate="attribute"),
            Feature(name="plan", aggregate="attribute", categories=("basic", "gold")),
        ]
    )
)


def customers(rows: int, *, days: float, often: float, basket: float, tenure: float = 300.0, seed: int = 0) -> Features:
    """Features of SHOP for customers of one kind, each a little different."""
    rng = np.random.default_rng(seed)
    count = often * rng.uniform(0.9, 1.1, rows)
    columns = [
        rng.uniform(0, 60, rows),
        days * rng.uniform(0.8, 1.2, rows),
        tenure * rng.uniform(0.9, 1.1, rows),
        count / 5,
        count,
        count * basket * rng.uniform(0.9, 1.1, rows),
    ]
    return np.log1p(np.column_stack(columns)).astype(np.float32)


KINDS = [
    customers(300, days=3, often=20, basket=60),
    customers(300, days=50, often=8, basket=60, seed=1),
    customers(300, days=3, often=1.5, basket=25, tenure=12, seed=3),
    customers(300, days=4, often=4, basket=8, seed=2),
]
NAMES = [
    "frequent customers",
    "lapsed regulars",
    "new customers, small baskets",
    "occasional customers, small baskets",
]


def fitted(features: Features, spec: FeatureSpec = SHOP, value: Floats | None = None) -> Segments:
    spend = features[:, -1].astype(np.float64) if value is None else value
    return fit_segments(features, spec, "purchase", value=spend, risk=-spend, seed=7)


def run(segments: Segments, features: Features) -> dict[str, npt.NDArray[np.int64]]:
    graph = GraphBuilder()
    graph.input("features", features.shape[1])
    add_segments(graph, segments, graph.add("Cast", "features", to=graph.float32))
    return Graph(graph.build("segments")).run(features=features.astype(np.float64))


PLANTED = np.concatenate(KINDS)
SEGMENTS = fitted(PLANTED)


def test_planted_segments_are_found_and_named_by_value_in_plain_words() -> None:
    result = SEGMENTS.predict(PLANTED)["segment"].reshape(len(KINDS), -1)
    assert (result == result[:, :1]).all()
    assert [SEGMENTS.names[at] for at in result[:, 0]] == NAMES
    mean = [PLANTED[SEGMENTS.predict(PLANTED)["segment"] == at, -1].mean() for at in range(4)]
    assert mean == sorted(mean, reverse=True)


def test_the_same_rows_give_the_same_segments() -> None:
    again = fitted(PLANTED)
    assert again.names == SEGMENTS.names
    np.testing.assert_array_equal(again.kmeans.cluster_centers_, SEGMENTS.kmeans.cluster_centers_)


def test_predictions_equal_plain_kmeans_on_standardised_variables() -> None:
    points = PLANTED.astype(np.float64) @ SEGMENTS.weights + SEGMENTS.offset
    assert points.mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert points.std(axis=0) == pytest.approx([1, 0.5, 1, 1])
    plain = KMeans(4, n_init=4, random_state=7).fit(points).labels_
    pairs = {(int(a), int(b)) for a, b in zip(plain, SEGMENTS.predict(PLANTED)["segment"], strict=True)}
    assert len(pairs) == 4


rows = st.lists(st.lists(st.floats(-1, 9, width=32), min_size=6, max_size=6), min_size=1, max_size=40)


@given(rows)
def test_the_graph_gives_what_scikit_learn_and_numpy_give(values: list[list[float]]) -> None:
    features = np.array(values, dtype=np.float32)
    result, expected = run(SEGMENTS, features), SEGMENTS.predict(features)
    assert result.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name])


@given(rows)
@settings(max_examples=30, deadline=None)
def test_segments_of_any_rows_export_exactly_and_have_different_names(values: list[list[float]]) -> None:
    features = np.tile(np.array(values, dtype=np.float32), (5, 1))
    features[:, 2] += np.arange(len(features), dtype=np.float32) / 64
    segments = fitted(features)
    assert len(set(segments.names)) == len(segments.names) == len(segments.kmeans.cluster_centers_)
    result, expected = run(segments, features), segments.predict(features)
    differ = result["segment"] != expected["segment"]
    points = features.astype(np.float64) @ segments.weights + segments.offset
    away = ((points[:, np.newaxis] - segments.kmeans.cluster_centers_) ** 2).sum(axis=2)
    nearest, second = np.take_along_axis(away, expected["segment"][:, np.newaxis], 1)[:, 0], away.min(axis=1)
    np.testing.assert_allclose(nearest[differ], second[differ], rtol=1e-9, atol=1e-9)  # ties alone
    if "rfm" in expected:
        np.testing.assert_array_equal(result["rfm"], expected["rfm"])


def test_rfm_scores_are_quintiles_and_555_is_the_best() -> None:
    best = np.log1p([[0, 0.1, 300, 10, 500, 1e5]]).astype(np.float32)
    worst = np.log1p([[0, 300, 300, 0, 0, 0]]).astype(np.float32)
    assert SEGMENTS.predict(best)["rfm"].tolist() == [555]
    assert SEGMENTS.predict(worst)["rfm"].tolist() == [111]
    for digit in (100, 10, 1):
        shares = np.bincount(SEGMENTS.predict(PLANTED)["rfm"] // digit % 10, minlength=6) / len(PLANTED)
        assert shares == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2], abs=0.01)


def test_edges_are_in_days_and_per_month() -> None:
    edges = SEGMENTS.edges()
    assert list(edges) == ["recency", "frequency", "monetary"]
    assert edges["recency"] == sorted(edges["recency"])
    middle = edges["recency"][1]
    assert np.mean(np.expm1(PLANTED[:, 1]) <= middle) == pytest.approx(0.4, abs=0.01)
    monthly = np.expm1(PLANTED[:, 4].astype(np.float64)) * np.log(2) / 60 * 30
    assert np.mean(monthly <= edges["frequency"][3]) == pytest.approx(0.8, abs=0.01)


def test_edges_lie_between_values_so_that_rounding_does_not_matter() -> None:
    features = PLANTED.copy()
    features[:, 1] = np.repeat(np.arange(1, 6, dtype=np.float32), 240)
    assert fitted(features).rfm.scores[0].edges.tolist() == [1.5, 2.5, 3.5, 4.5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("code", "group"),
    [
        (555, "champions"),
        (533, "loyal"),
        (511, "new or seldom"),
        (344, "loyal"),
        (322, "needs attention"),
        (155, "at risk"),
        (111, "hibernating"),
        (550, "champions"),
        (101, "hibernating"),
    ],
)
def test_rfm_groups(code: int, group: str) -> None:
    assert rfm.group(code) == group


def test_a_shop_without_amounts_has_a_score_of_0_for_them() -> None:
    spec = FeatureSpec(StateLayout(SHOP.layout.features[:5]))
    segments = fitted(PLANTED[:, :5], spec)
    codes = segments.predict(PLANTED[:, :5])["rfm"]
    assert set(codes % 10) == {0}
    assert set(codes // 100) == {1, 2, 3, 4, 5}
    assert not any("basket" in name or "spend" in name for name in segments.names)


def crm(income: Sequence[float], age: Sequence[float], missing: Sequence[bool]) -> Features:
    """Features of CRM: missing incomes are 0, and the plan is no number."""
    features = np.zeros((len(income), len(CRM.names)), dtype=np.float32)
    place = CRM.names.index
    features[:, place("log1p(income)")] = np.log1p(np.where(missing, 0, income))
    features[:, place("log1p(age)")] = np.log1p(age)
    features[::2, -1] = 1
    features[:, place("missing(income)")] = missing
    return features


def test_a_snapshot_without_events_is_segmented_by_its_attributes() -> None:
    rng = np.random.default_rng(0)
    income = np.concatenate([rng.normal(20_000, 500, 200), rng.normal(90_000, 900, 200), np.full(200, 1.0)])
    age = np.concatenate([rng.normal(62, 4, 200), rng.normal(42, 4, 200), rng.normal(42, 4, 200)])
    missing = np.arange(600) >= 400
    features = crm(income.tolist(), age.tolist(), missing.tolist())
    segments = fitted(features, CRM, value=np.where(missing, 2.0, np.where(income < 50_000, 1.0, 3.0)))
    assert segments.names == ["high income, low age", "low age, income not known", "low income, high age"]
    assert segments.rfm is None
    assert list(run(segments, features)) == ["segment"]
    known = next(row for row in profile(segments, features, None, None, None) if row.name == "high income, low age")
    assert known.profile["income"] == pytest.approx(90_000, rel=0.02)
    assert known.profile["income not known"] == 0


@pytest.mark.parametrize("count", [1, 2, 19])
def test_a_handful_of_customers_is_one_segment(count: int) -> None:
    segments = fitted(PLANTED[:: len(PLANTED) // count][:count])
    assert segments.names == ["all customers"]
    assert run(segments, PLANTED)["segment"].tolist() == [0] * len(PLANTED)


def test_two_kinds_of_identical_customers_are_two_segments() -> None:
    features = np.repeat(PLANTED[[0, 400]], 50, axis=0)
    segments = fitted(features)
    assert len(segments.names) == len(set(segments.names)) == 2
    assert run(segments, features)["segment"].tolist() == [0] * 50 + [1] * 50


def test_constant_columns_are_left_out() -> None:
    features = np.ones((100, 6), dtype=np.float32)
    segments = fitted(features)
    assert segments.names == ["all customers"]
    features[50:, [1, 4]] = 3
    assert len(fitted(features).names) == 2


def test_amounts_redundant_with_counts_do_not_count_twice() -> None:
    features = PLANTED.copy()
    features[:, 5] = features[:, 4] * 2 + np.random.default_rng(0).normal(0, 0.05, len(features))
    segments = fitted(features)
    points = features.astype(np.float64) @ segments.weights + segments.offset
    assert points.std(axis=0) == pytest.approx([1, 0.5, 1, 0], abs=1e-9)


def test_a_profile_has_shares_rates_and_means_of_both_schemes() -> None:
    churn = np.repeat([False, True, False, True], 300)
    spend = np.repeat([400.0, 40.0, 30.0, 20.0], 300)
    table = profile(SEGMENTS, PLANTED, churn, ~churn, spend)
    means = {row.name: row for row in table if row.scheme == "k-means"}
    assert set(means) == set(NAMES)
    lapsed = means["lapsed regulars"]
    assert (lapsed.share, lapsed.churn_rate, lapsed.propensity_rate, lapsed.mean_spend) == (0.25, 1, 0, 40)
    assert lapsed.profile["days since the latest purchase"] == pytest.approx(50, rel=0.05)
    groups = [row for row in table if row.scheme == "RFM"]
    assert sum(row.share for row in groups) == pytest.approx(1)
    assert {row.name for row in groups} <= set(rfm.GROUPS)
    without = profile(SEGMENTS, PLANTED[:1], None, None, None)
    assert [(row.churn_rate, row.mean_spend) for row in without] == [(None, None)] * 2
