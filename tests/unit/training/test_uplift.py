"""Randomised offers: unbiased values of policies, learning whom to treat, and bad columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.evaluation.off_policy import (
    Experiment,
    check_chance,
    experiment,
    influences,
    policy_values,
)
from training.evaluation.uplift import ABOVE_COST, EVERYBODY, NOBODY, crossfit, evaluate_treatment, treatment_policies
from training.evidence import Value

COST = 0.05
SIMULATIONS = 150


def effect(features: Floats) -> Floats:
    """Half of the customers gain by the treatment, the others lose."""
    return np.where(features[:, 0] > 0, 0.3, -0.1)


def untreated(features: Floats) -> Floats:
    """What comes without the treatment has nothing to do with what it changes."""
    return np.where(features[:, 1] > 0, 0.6, 0.1)


def simulated(n: int, seed: int, rows_each: int = 1) -> tuple[Floats, Experiment]:
    """Features ``[n, 3]`` and an offer made with chances from 0.2 to 0.8 that go with what moves the outcome."""
    random = np.random.default_rng(seed)
    features = np.repeat(random.normal(size=(n // rows_each, 3)), rows_each, axis=0)
    chance = np.where(features[:, 1] > 0, 0.8, 0.2)
    treated = random.random(n) < chance
    outcome = (random.random(n) < untreated(features) + treated * effect(features)).astype(np.float64)
    customer = np.repeat(np.arange(n // rows_each, dtype=np.uint64), rows_each)
    return features, experiment(treated, chance, outcome, customer, COST)


# 0.6 or 0.1 come without, a treatment changes it by 0.3 or -0.1.
TRUTH = {"nobody": 0.35, "everybody": 0.35 + 0.1 - COST, "who gains": 0.35 + (0.3 - COST) / 2}


def choice(name: str, features: Floats) -> Floats:
    gains = (features[:, 0] > 0).astype(np.float64)
    return {"nobody": 0 * gains, "everybody": 0 * gains + 1, "who gains": gains}[name]


def estimated(name: str, features: Floats, data: Experiment, predicted: Floats) -> dict[str, Value]:
    result = policy_values(name, influences(choice(name, features), data, predicted), data.customer)
    return {row.estimator: row for row in result}


def share_inside(name: str, estimator: str, chances: Floats | None = None) -> float:
    """How often the truth lies inside of the interval; the model that DR corrects is wrong by a lot."""
    inside = 0
    for seed in range(SIMULATIONS):
        features, data = simulated(1000, seed)
        if chances is not None:
            data = replace(data, chance=chances[: len(data)])
        predicted = np.stack([0.9 - 0.1 * features[:, 2], 0.9 - 0.2 * features[:, 1]])
        result = estimated(name, features, data, predicted)[estimator]
        inside += result.low <= TRUTH[name] <= result.high
    return inside / SIMULATIONS


@pytest.mark.parametrize("estimator", ["IPS", "SNIPS", "DR"])
@pytest.mark.parametrize("name", list(TRUTH))
def test_intervals_have_nominal_coverage(name: str, estimator: str) -> None:
    assert 0.9 <= share_inside(name, estimator) <= 0.99


@pytest.mark.parametrize("estimator", ["IPS", "SNIPS", "DR"])
def test_wrong_probabilities_bias_the_values(estimator: str) -> None:
    assert share_inside("everybody", estimator, np.full(1000, 0.5)) < 0.5


@pytest.mark.parametrize("estimator", ["IPS", "SNIPS", "DR"])
def test_rows_of_a_customer_are_not_independent(estimator: str) -> None:
    features, data = simulated(400, 0)
    nought = np.zeros((2, 400))
    once = estimated("who gains", features, data, nought)[estimator]
    ninefold = Experiment(**{name: np.repeat(column, 9) for name, column in vars(data).items()})
    again = estimated("who gains", np.repeat(features, 9, axis=0), ninefold, np.zeros((2, 3600)))[estimator]
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))


def test_values_of_an_example_worked_by_hand() -> None:
    data = Experiment(
        treated=np.array([True, False, True, False]),
        chance=np.array([0.5, 0.5, 0.25, 0.75]),
        outcome=np.array([3.0, 1.0, 2.0, 5.0]),
        cost=np.full(4, 1.0),
        customer=np.arange(4, dtype=np.uint64),
    )
    chosen, predicted = np.array([1.0, 0.0, 0.0, 0.0]), np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    result = {name: float(each.mean()) for name, each in influences(chosen, data, predicted).items()}
    # First, second and fourth agree with the policy, with weights 2, 2 and 4, and gained 2, 1 and 5.
    assert result["IPS"] == pytest.approx((2 * 2 + 2 * 1 + 4 * 5) / 4)
    assert result["SNIPS"] == pytest.approx((2 * 2 + 2 * 1 + 4 * 5) / 8)
    # The model says 2 - 1 for the first and 1 for all others; it was wrong by 1, 0 and 4.
    assert result["DR"] == pytest.approx(1 + (2 * 1 + 2 * 0 + 4 * 4) / 4)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_a_random_policy_lies_between_nobody_and_everybody(share: float, seed: int) -> None:
    features, data = simulated(300, seed)
    predicted = np.stack([features[:, 1], features[:, 2]])
    none, mixed, every = (influences(np.full(300, part), data, predicted) for part in (0.0, share, 1.0))
    for name in ("IPS", "DR"):
        between = (1 - share) * none[name].mean() + share * every[name].mean()
        assert mixed[name].mean() == pytest.approx(between)


def test_a_good_model_makes_the_interval_narrower() -> None:
    features, data = simulated(4000, 0)
    known = 5 * features[:, 2]
    result = estimated("who gains", features, replace(data, outcome=data.outcome + known), np.stack([known, known]))
    widths = {name: row.high - row.low for name, row in result.items()}
    assert widths["DR"] < 0.7 * min(widths["SNIPS"], widths["IPS"])


# --- learning whom to treat -------------------------------------------------------------------------------------------


def rows_of(values: list[Value], policy: str) -> dict[str, Value]:
    return {row.estimator: row for row in values if row.policy == policy}


def evaluated(features: Floats, data: Experiment, shares: tuple[float, ...] = (0.3,)) -> list[Value]:
    return evaluate_treatment(features, data, shares=shares, budget_share=0.2)


def test_uplift_finds_the_customers_whom_the_treatment_affects() -> None:
    features, data = simulated(6000, 0)
    values = evaluated(features, data, shares=(0.5,))
    best = rows_of(values, f"{ABOVE_COST} instead of {EVERYBODY}")["DR"]
    assert best.low > 0.03
    assert rows_of(values, ABOVE_COST)["DR"].value == pytest.approx(TRUTH["who gains"], abs=0.05)
    # The response is higher where the second feature is, which says nothing of the effect.
    assert rows_of(values, "treat 50% by uplift instead of treat 50% by response")["DR"].low > 0
    assert rows_of(values, f"{EVERYBODY} instead of {NOBODY}")["IPS"].value == pytest.approx(0.1 - COST, abs=0.05)


def test_an_interaction_effect_is_found() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(8000, 3))
    treated = random.random(8000) < 0.5
    outcome = random.normal(0, 0.5, 8000) + treated * np.sign(features[:, 0] * features[:, 1]) * 0.3
    data = experiment(treated, 0.5, outcome, np.arange(8000, dtype=np.uint64))
    _, uplift, _ = crossfit(features, data)
    assert ((uplift > 0) == (features[:, 0] * features[:, 1] > 0)).mean() > 0.8


# If 95 % contain it, fewer than 12 of 16 do once in 1,000 times, and fewer than 35 of 40 once in 70.
@pytest.mark.parametrize(("trials", "at_least"), [(16, 12), pytest.param(40, 35, marks=pytest.mark.full)])
def test_intervals_of_learnt_policies_contain_their_true_values(trials: int, at_least: int) -> None:
    inside = 0
    for seed in range(trials):
        features, data = simulated(600, seed)
        predicted, uplift, fold = crossfit(features, data, folds=3, seed=seed)
        chosen = treatment_policies(data, uplift, predicted[1], fold, budget_share=0.1, shares=[0.3])[ABOVE_COST]
        result = policy_values("", influences(chosen, data, predicted), data.customer)[-1]
        truth = TRUTH["nobody"] + np.mean(chosen * (effect(features) - COST))
        inside += bool(result.low <= truth <= result.high)
    assert inside >= at_least


def test_no_row_is_scored_by_a_model_that_has_seen_its_customer() -> None:
    # Outcomes are pure noise: a model that has seen a row of a customer knows the others, which are the same.
    random = np.random.default_rng(0)
    customer = np.repeat(np.arange(400, dtype=np.uint64), 5)
    features, outcome = (np.repeat(random.normal(size=(400, 3)), 5, axis=0), np.repeat(random.normal(size=400), 5))
    data = experiment(np.tile([True, False, True, False, True], 400), 0.6, outcome, customer)
    predicted, _, fold = crossfit(features, data)
    assert all(len(set(fold[customer == name])) == 1 for name in range(400))
    assert abs(np.corrcoef(predicted[1], outcome)[0, 1]) < 0.2


def test_the_budget_bounds_how_many_are_treated() -> None:
    features, data = simulated(2000, 0)
    predicted, uplift, fold = crossfit(features, data)
    chosen = treatment_policies(data, uplift, predicted[1], fold, budget_share=0.2, shares=[0.1, 0.5])
    assert chosen[f"{ABOVE_COST}, at most 20%"].mean() == pytest.approx(0.2, abs=0.002)
    assert chosen["treat 10% by uplift"].mean() == pytest.approx(0.1, abs=0.002)
    assert chosen["treat 50% by response"].mean() == pytest.approx(0.5, abs=0.002)
    assert set(chosen["treat 10% by chance"]) == {0.1}
    dear = treatment_policies(
        replace(data, cost=np.ones(2000)), uplift, predicted[1], fold, budget_share=0.2, shares=[0.1]
    )
    assert dear[f"{ABOVE_COST}, at most 20%"].sum() == 0


def test_features_may_be_unknown() -> None:
    features, data = simulated(1000, 0)
    features[::3, 0] = np.nan
    features[:, 2] = np.nan
    assert all(np.isfinite([row.low, row.high]).all() for row in evaluated(features, data))


# --- what is wrong with the columns -----------------------------------------------------------------------------------

GOOD = {"treated": np.arange(200) % 2, "chance": 0.5, "outcome": np.arange(200.0), "cost": 0.0}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "treated",
            np.arange(200) % 3,
            r"treatment\.column: 66 of 200 are not 0 or 1 \(the first is 2\): give 1 if",
        ),
        ("treated", np.where(np.arange(200) == 7, np.nan, 1.0), r"treatment\.column: 1 of 200 are not 0 or 1 \(.*nan"),
        ("treated", np.ma.array(np.ones(200), mask=np.arange(200) < 3), r"treatment\.column: 3 of 200"),
        (
            "treated",
            np.array(["yes"] * 200),
            r"treatment\.column: the column is not a number: convert it in SQL",
        ),
        ("treated", np.ones(200), r"treatment\.column: 200 rows were treated and 0 were not.*include the rows of both"),
        ("treated", np.zeros(200), r"treatment\.column: 0 rows were treated"),
        ("treated", np.arange(200) < 49, r"treatment\.column: 49 rows.*50 of each"),
        (
            "chance",
            1.0,
            r"treatment\.probability: 200 of 200 are not above 0 and below 1 \(the first is 1\): give a probability",
        ),
        ("chance", np.where(np.arange(200) == 5, 0.0, 0.5), r"treatment\.probability: 1 of 200"),
        ("chance", np.where(np.arange(200) == 5, np.nan, 0.5), r"treatment\.probability: 1 of 200"),
        ("chance", np.array(["a third"] * 200), r"treatment\.probability: the column is not a number"),
        ("chance", np.ma.array(np.full(200, 0.5), mask=np.arange(200) < 3), r"treatment\.probability: 3 of 200"),
        ("outcome", np.where(np.arange(200) < 4, np.inf, 0.5), r"treatment\.outcome: 4 of 200 are not a number"),
        ("cost", -1.0, r"treatment\.cost: 200 of 200 are not 0 or more"),
    ],
)
def test_a_bad_column_is_named_with_the_fix(column: str, value: object, message: str) -> None:
    given_columns = {**GOOD, column: value}
    with pytest.raises(InputError, match=message):
        experiment(customer=np.arange(200, dtype=np.uint64), **given_columns)  # type: ignore[arg-type]


def test_correct_probabilities_give_no_warning() -> None:
    complaints = [check_chance(simulated(2000, seed)[1]) for seed in range(50)]
    assert complaints.count(None) >= 49


def test_a_wrong_probability_gives_a_warning() -> None:
    _, data = simulated(2000, 0)
    result = check_chance(replace(data, chance=data.chance * 0.8))
    assert result is not None
    assert (result.severity, result.where) == ("warning", "treatment.probability")
    assert "by the stated probability it should be 0.3981" in result.message


def test_probabilities_that_are_right_only_on_average_give_a_warning() -> None:
    _, data = simulated(2000, 0)
    result = check_chance(replace(data, chance=1 - data.chance))
    assert result is not None
    assert "not treated accordingly more often" in result.message
