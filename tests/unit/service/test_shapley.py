"""Contributions are what they promise: they sum exactly, are fair, and are Shapley's where that can be checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.definitions import Feature
from feature_store.state.layout import DAY_S, Floats, StateLayout
from service.errors import Reason, RequestError
from service.scoring.shapley import EXACT_PLAYERS, SAMPLED_ROWS, Coalitions, Explainer, coalitions, exact, sampled
from tidemark.explanation import Explanation

MANY = 24
players = st.integers(1, 14)
seeds = st.integers(0, 2**32 - 1)

Model = Callable[[Floats], Floats]


def attributes(count: int) -> StateLayout:
    """As many players as slots."""
    return StateLayout([Feature(name=f"a{i}", aggregate="attribute") for i in range(count)])


def explainer(model: Model, count: int, baseline: Floats | None = None) -> Explainer:
    """Of a model that says the same of both offers."""
    typical = np.zeros(count) if baseline is None else baseline
    return Explainer(attributes(count), typical, lambda slots: np.repeat(model(slots)[:, np.newaxis], 2, axis=1))


def contributions(model: Model, now: Floats, baseline: Floats | None = None) -> Floats:
    """By slot, 0 for those that have the typical value."""
    result = explainer(model, len(now), baseline).attribute(now, np.repeat(model(now[np.newaxis]), 2))
    by_slot = np.zeros(len(now))
    by_slot[list(result.players)] = result.contributions[0]
    return by_slot


def tangled(seed: int, count: int) -> Model:
    """A model in which all features act together."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(count, 8)), random.normal(size=8)
    return lambda slots: 1 / (1 + np.exp(-np.tanh(slots @ first) @ second))


def someone(seed: int, count: int) -> Floats:
    return np.random.default_rng(seed + 1).normal(size=count)


@given(seeds, players)
@settings(max_examples=60)
def test_contributions_sum_to_the_difference(seed: int, count: int) -> None:
    model, now = tangled(seed, count), someone(seed, count)
    difference = float(model(now[np.newaxis])[0] - model(np.zeros((1, count)))[0])
    assert abs(contributions(model, now).sum() - difference) < 1e-12


@given(seeds, st.integers(2, 14))
@settings(max_examples=40)
def test_a_feature_that_the_model_does_not_look_at_has_none(seed: int, count: int) -> None:
    whole = tangled(seed, count - 1)
    now = someone(seed, count)
    assert abs(contributions(lambda slots: whole(slots[:, 1:]), now)[0]) < 1e-12


@given(seeds, st.integers(2, EXACT_PLAYERS))
@settings(max_examples=40)
def test_features_that_do_the_same_get_the_same(seed: int, count: int) -> None:
    whole = tangled(seed, count)

    def symmetric(slots: Floats) -> Floats:
        return whole(slots) + whole(slots[:, [1, 0, *range(2, count)]])

    now = someone(seed, count)
    now[1] = now[0]
    result = contributions(symmetric, now)
    assert abs(result[0] - result[1]) < 1e-12


@given(seeds, st.integers(1, MANY))
@settings(max_examples=40)
def test_of_a_linear_model_they_are_coefficient_times_difference(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    weights, baseline, now = random.normal(size=(3, count))
    result = contributions(lambda slots: 0.3 + slots @ weights, now, baseline)
    np.testing.assert_allclose(result, weights * (now - baseline), atol=1e-11)


@given(seeds, st.integers(EXACT_PLAYERS + 1, MANY))
@settings(max_examples=20)
def test_sampled_permutations_are_exact_if_features_interact_in_pairs_only(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    linear, pairs = random.normal(size=count), np.triu(random.normal(size=(count, count)), 1)
    now = random.normal(size=count)
    result = contributions(lambda slots: slots @ linear + np.einsum("ni,ij,nj->n", slots, pairs, slots), now)
    both = pairs + pairs.T
    np.testing.assert_allclose(result, linear * now + now * (both @ now) / 2, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_all_coalitions_give_the_average_over_all_permutations(count: int) -> None:
    model, now, empty = tangled(3, count), someone(3, count), np.zeros(count)
    expected = np.zeros(count)
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        mixed = empty.copy()
        for player in order:
            before = model(mixed[np.newaxis])[0]
            mixed[player] = now[player]
            expected[player] += (model(mixed[np.newaxis])[0] - before) / len(orders)
    np.testing.assert_allclose(contributions(model, now), expected, atol=1e-12)


@pytest.mark.parametrize("pairs", [30, 300])
def test_sampled_permutations_come_close_to_all_coalitions(pairs: int) -> None:
    count = 9
    whole, drawn = exact(count), sampled(count, rows=pairs * 2 * (count - 1))
    worst = 0.0
    for seed in range(20):
        model, now = tangled(seed, count), someone(seed, count)
        apart = [mixed.weights @ model(mixed.members * now) for mixed in (whole, drawn)]
        worst = max(worst, float(np.abs(apart[0] - apart[1]).max()))
    assert worst < 0.5 / math.sqrt(pairs)


@pytest.mark.parametrize("count", [*range(1, 14), 50, 512])
def test_coalitions_start_empty_end_complete_and_are_bounded_in_number(count: int) -> None:
    result: Coalitions = coalitions(count)
    assert not result.members[0].any()
    assert result.members[-1].all()
    assert result.weights.shape == result.members.T.shape
    assert len(result.members) <= max(SAMPLED_ROWS, 4 * count) + 2
    np.testing.assert_allclose(result.weights.sum(axis=0)[[0, -1]], [-1, 1])
    assert coalitions(count) is result  # cached


HISTORY = StateLayout(
    [
        Feature(name="last", event="purchase", aggregate="latest"),
        Feature(name="count_7", event="purchase", aggregate="count", half_life_days=7),
        Feature(name="count_56", event="purchase", aggregate="count", half_life_days=56),
        Feature(name="views_7", event="view", aggregate="count", half_life_days=7),
        Feature(name="age", aggregate="attribute"),
    ]
)
TYPICAL = np.array([-6 * DAY_S, 1.0, 8.0, 3.0, 40.0])


def lapsing(slots: Floats) -> Floats:
    """Churn goes up with days away and down with purchases, propensity the other way; views do nothing."""
    days = np.minimum(-slots[:, 0] / DAY_S, 100)
    churn = 0.2 + 0.002 * days - 0.02 * slots[:, 1] + np.where(np.isnan(slots[:, 4]), 0.1, 0.0)
    return np.stack([churn, 1 - churn], axis=1)


def explained(now: Floats, age_s: float = 0.0, most: int = 5) -> dict[str, Explanation]:
    model = Explainer(HISTORY, TYPICAL, lapsing)
    slots = now[np.newaxis]
    answered = lapsing(HISTORY.advance(slots, np.array([age_s])))
    (result,) = model.explain(slots, np.array([age_s]), answered, most)
    assert not isinstance(result, RequestError)
    for at, offer in enumerate(("churn", "propensity")):
        reported = math.fsum(item.contribution for item in result[offer].contributions)
        assert (
            abs(result[offer].baseline_probability + reported + result[offer].other_contribution - answered[0, at])
            < 1e-12
        )
    return dict(result)


def test_contributions_come_largest_first_and_the_rest_as_a_sum() -> None:
    now = np.array([-41 * DAY_S, 0.25, 9.0, 5.0, np.nan])
    churn = explained(now)["churn"]
    assert [item.reason_code for item in churn.contributions] == [
        "AGE_UNKNOWN",
        "PURCHASE_RECENCY_HIGH",
        "PURCHASE_COUNT_LOW",
    ]
    assert [round(item.contribution, 6) for item in churn.contributions] == [0.1, 0.07, 0.015]
    assert abs(churn.other_contribution) < 1e-12
    fewer = explained(now, most=1)
    assert [item.reason_code for item in fewer["churn"].contributions] == ["AGE_UNKNOWN"]
    assert fewer["churn"].other_contribution == pytest.approx(0.085)
    assert [item.contribution < 0 for item in fewer["propensity"].contributions] == [True]


def test_spans_of_one_event_are_one_feature_and_the_sentence_is_about_the_one_that_does_it() -> None:
    (count,) = explained(np.array([-6 * DAY_S, 0.5, 30.0, 3.0, 40.0]))["churn"].contributions
    assert count.feature == "purchase_count"
    assert [slot.slot for slot in count.slots] == ["count_7", "count_56"]
    assert "half-life 7 days" in count.sentence


def test_a_state_is_explained_as_of_now() -> None:
    now = np.array([-41 * DAY_S, 0.25, 9.0, 5.0, 50.0])
    week = 7 * DAY_S
    before = HISTORY.advance(now, -week)
    fresh, aged = explained(now)["churn"], explained(before, week)["churn"]
    for item, other in zip(fresh.contributions, aged.contributions, strict=True):
        assert item.contribution == pytest.approx(other.contribution)
        assert item.sentence == other.sentence


def test_the_typical_customer_has_nothing_to_explain() -> None:
    for explanation in explained(TYPICAL).values():
        assert explanation.contributions == []
        assert explanation.other_contribution == 0.0
        assert explanation.exact


def test_an_offer_that_nothing_was_learnt_about_is_not_explained() -> None:
    def churn_alone(slots: Floats) -> Floats:
        return np.stack([slots[:, 0] / 10, np.zeros(len(slots))], axis=1)

    model = Explainer(attributes(1), np.array([2.0]), churn_alone)
    (result,) = model.explain(np.array([[4.0]]), np.zeros(1), np.array([[0.4, 0.0]]), 5)
    assert not isinstance(result, RequestError)
    assert list(result) == ["churn"]


def test_a_coalition_without_a_finite_score_is_an_error_of_this_customer_alone() -> None:
    def picky(slots: Floats) -> Floats:
        churn = np.where((slots[:, 0] == 1) & (slots[:, 1] == 0), np.nan, 0.5)
        return np.stack([churn, churn], axis=1)

    model = Explainer(attributes(2), np.zeros(2), picky)
    bad, good = model.explain(np.array([[1.0, 1.0], [2.0, 1.0]]), np.zeros(2), np.full((2, 2), 0.5), 5)
    assert isinstance(bad, RequestError)
    assert (bad.reason, bad.field) == (Reason.STATE_UNREADABLE, "customer_id")
    assert not isinstance(good, RequestError)


@given(
    st.tuples(
        st.floats(allow_nan=False, max_value=1e300),
        *[st.floats(allow_nan=False, allow_infinity=False)] * 3,
        st.floats(),
    ),
    st.floats(-1e12, 1e12),
)
@pytest.mark.filterwarnings("error")
def test_any_state_is_explained(slots: tuple[float, ...], age_s: float) -> None:
    model = Explainer(HISTORY, TYPICAL, lambda some: np.clip(np.nan_to_num(lapsing(some)), 0, 1))
    (result,) = model.explain(np.array([slots]), np.array([age_s]), np.array([[0.5, 0.5]]), 5)
    assert not isinstance(result, RequestError)
    assert all(item.sentence for item in result["churn"].contributions)
