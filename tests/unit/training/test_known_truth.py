"""What the report says about simulated shops, held against their truth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit

from tests.known_truth import STEADY, Coverage, Trial, config_of, coverage, evaluated, offer_of, rows_of
from training.evaluation.negative_control import run_negative_control
from training.evaluation.policies import DYNAMIC, RECENCY, RFM, SINGLE, policy_contacts
from training.evaluation.scored_rows import realised_value
from training.evaluation.stayers import corrected_by_stayers
from training.simulation import ShopDesign, simulate

OFFERS = ("churn", "propensity")
SEEDS = 16
REFERENCE_CUSTOMERS = 40_000


@cache
def results(offer: str) -> dict[str, Coverage]:
    trial = Trial.of(STEADY, offer, REFERENCE_CUSTOMERS)
    return coverage([trial.estimates(seed, resamples=300) for seed in range(SEEDS)])


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(
    ("kind", "least"),
    [
        # The profits of one shop are mostly right or wrong together: with 16 shops, a coverage of 0.95 gives 12 or more
        # that are right but once in 1,000 times. `make bench` measures coverage with 200 shops.
        ("profit", 12 / 16),
        ("lead", 12 / 16),
        ("value ratio", 12 / 16),
        # 160 bins, nearly independent of each other.
        ("reliability", 0.88),
    ],
)
def test_intervals_of_the_report_contain_the_truth(offer: str, kind: str, least: float) -> None:
    assert results(offer)[kind].covered >= least


@pytest.mark.parametrize("offer", OFFERS)
def test_estimates_of_the_report_are_not_far_from_the_truth_on_average(offer: str) -> None:
    assert results(offer)["profit"].bias < 0.15
    assert results(offer)["value ratio"].bias < 0.02


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.6])
def test_the_dynamic_threshold_earns_nearly_what_the_oracle_does_and_more_than_its_rivals(
    offer: str, correlation: float
) -> None:
    # Scores are off by 0.3 in log odds and a fifth in value, which costs little.
    design = ShopDesign(customers=8000, risk_value_correlation=correlation)
    terms = offer_of(design, offer)
    calibration = evaluated(design, offer, 1, before_days=70).scored
    rows = evaluated(design, offer, 2)
    contacts = policy_contacts(offer, terms, calibration, rows.scored)
    profit = {policy: rows.truth.profit(chosen.weight) for policy, chosen in contacts.items()}
    best = rows.truth.profit(rows.truth.oracle(contacts[DYNAMIC].weight.sum()))
    assert 0.93 * best < profit[DYNAMIC] <= best
    assert all(profit[DYNAMIC] > profit[rival] for rival in (SINGLE, RFM, RECENCY))


@pytest.mark.parametrize("offer", OFFERS)
def test_with_shuffled_values_the_dynamic_threshold_is_not_shown_ahead(offer: str) -> None:
    terms = offer_of(STEADY, offer)
    calibration = evaluated(STEADY, offer, 1, before_days=70).scored
    ahead = sum(
        run_negative_control(
            offer, terms, calibration, evaluated(STEADY, offer, seed).scored, shuffles=1, seed=seed
        ).shown_ahead
        for seed in range(10, 26)
    )
    assert ahead <= 2


# --- values of customers who left -------------------------------------------------------------------------------------


def left_and_stayed(n: int = 60) -> tuple[Any, ...]:
    """``n`` customers of the same risk, history and model value; the first third stayed and brought 1 to 3 each."""
    label = np.arange(n) >= n // 3
    stay = np.where(label, np.nan, 1.0 + np.arange(n) % 3)
    alike = np.ones(n)
    return alike, 0.5 * alike, 8 * alike, label, stay


def test_customers_who_left_are_worth_what_others_brought_who_stayed_and_are_like_them() -> None:
    label, stay = left_and_stayed(90)[3:]
    values, stayers = corrected_by_stayers(*left_and_stayed(90))
    assert stayers is not None
    # Thirty stayed and brought 2 on average, sixty left: two for each who stayed.
    assert values == pytest.approx(2.0, rel=1e-3)
    assert stayers.odds[~label] == pytest.approx(2.0, rel=1e-3)
    assert (stayers.odds[label] == 0).all()
    assert stayers.correction[~label] == pytest.approx(2 * (stay[~label] - 2.0), abs=0.01)


def test_customers_who_stayed_weighted_by_their_odds_agree_with_those_who_left() -> None:
    random = np.random.default_rng(0)
    n = 3000
    worth, risk = random.standard_normal((2, n))
    label = random.random(n) < expit(risk - worth)
    own, stay = np.exp(worth), np.where(label, np.nan, np.exp(worth + 0.3 * random.standard_normal(n)))
    values, stayers = corrected_by_stayers(own, expit(risk - worth), own, label, stay)
    assert stayers is not None
    inside = np.clip(np.log(own), np.log(own[~label]).min(), np.log(own[~label]).max())
    assert stayers.odds.sum() == pytest.approx(label.sum(), rel=0.001)
    assert stayers.odds @ inside == pytest.approx(inside[label].sum(), abs=0.01 * n)
    assert values[label].mean() == pytest.approx(np.exp(worth + 0.045)[label].mean(), rel=0.05)


def test_a_model_value_that_is_worthless_moves_no_money() -> None:
    random = np.random.default_rng(1)
    n = 4000
    worth = random.standard_normal(n)
    label = random.random(n) < 0.5
    stay = np.where(label, np.nan, np.exp(worth))
    worthless = np.exp(random.standard_normal(n))
    values, _ = corrected_by_stayers(np.exp(worth), np.full(n, 0.5), worthless, label, stay)
    assert abs(np.corrcoef(np.log(values), np.log(worthless))[0, 1]) < 0.1


def test_if_too_few_customers_stayed_the_estimate_is_kept() -> None:
    estimate = np.array([1.0, 2.0, 3.0])
    nothing = np.full(3, np.nan)
    values, stayers = corrected_by_stayers(estimate, np.full(3, 0.5), estimate, np.ones(3, dtype=bool), nothing)
    assert (values.tolist(), stayers) == ([1.0, 2.0, 3.0], None)


def test_the_error_of_both_regressions_is_that_of_a_jackknife_over_customers() -> None:
    rows = evaluated(replace(STEADY, customers=1500), "churn", 3)
    scored = rows.scored
    shop = simulate(replace(STEADY, customers=1500), 3)
    history = rows_of(shop, rows.truth, sorted(set(rows.truth.history.cutoff.tolist())))
    estimate = realised_value(config_of(STEADY), history, "churn")
    stay = STEADY.margin * history.stay_spend
    chosen = scored.probability > np.quantile(scored.probability, 0.7)

    def total(kept: npt.NDArray[np.bool_]) -> float:
        values, stayers = corrected_by_stayers(
            estimate[kept], scored.probability[kept], scored.value[kept], scored.label[kept], stay[kept]
        )
        assert stayers is not None
        return float((scored.label[kept] * values + stayers.correction)[chosen[kept]].sum())

    everybody = np.ones(len(scored.label), dtype=bool)
    groups = scored.customer % 50
    without = np.array([total(groups != group) for group in range(50)])
    jackknife = np.sqrt(49 / 50 * ((without - without.mean()) ** 2).sum() * (50 / 49) ** 2)
    assert scored.stayers is not None
    paid = chosen * (scored.label * scored.realised_value + scored.stayers.correction)
    linear = paid + scored.stayers.sampling_error(chosen[:, np.newaxis].astype(float))[:, 0]
    sums = np.bincount(scored.customer.astype(int), linear)
    sums = sums[np.unique(scored.customer).astype(int)]
    error = np.sqrt(((sums - sums.mean()) ** 2).sum())
    assert total(everybody) == pytest.approx(paid.sum())
    assert error == pytest.approx(jackknife, rel=0.25)


def test_contributions_of_rows_add_up_to_the_profit_and_include_the_error_of_the_correction() -> None:
    rows, offer = evaluated(STEADY, "churn", 3).scored, offer_of(STEADY, "churn")
    weight = (rows.probability > 0.5).astype(float)
    contributions = rows.contributions(weight[:, np.newaxis], offer)[:, 0]
    assert contributions.sum() == pytest.approx(weight @ rows.profit(offer))
    assert (contributions[weight == 0] != 0).any()


def test_own_spend_alone_would_be_far_below_the_truth() -> None:
    # Why the correction exists: the history of a customer who left ends early.
    rows = evaluated(STEADY, "churn", 4)
    scored, truth = rows.scored, rows.truth
    assert scored.stayers is not None
    alerted = truth.oracle(len(truth) // 10)
    right = (truth.probability * truth.value)[alerted].sum()
    corrected = (scored.label * scored.realised_value + scored.stayers.correction)[alerted].sum()
    shop = simulate(STEADY, 4)
    history = rows_of(shop, truth, sorted(set(truth.history.cutoff.tolist())))
    own = STEADY.margin * np.maximum(history.monetary, 0) / history.kept_windows
    assert (scored.label * own)[alerted].sum() < 0.8 * right
    assert corrected == pytest.approx(right, rel=0.3)
