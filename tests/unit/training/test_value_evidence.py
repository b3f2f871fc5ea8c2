"""Evidence about values: what policies are paid with, reliability, and the control that must fail."""

from __future__ import annotations

import numpy as np
import pytest

from tests.made_rows import made_config, made_rows
from training.config import Offer
from training.evaluation.negative_control import MAX_SHOWN_AHEAD, run_negative_control
from training.evaluation.scored_rows import ScoredRows, own_spend, realised_value
from training.evaluation.value_reliability import reliability_of

OFFER = Offer(contact_cost=0.1, offer_cost=3.0, success_rate=0.2, redemption_rate=0.1, budget_share=0.1)


def crowd(n: int = 3000, seed: int = 0) -> ScoredRows:
    """Customers whose probabilities and values are right."""
    random = np.random.default_rng(seed)
    probability, value = random.uniform(0.02, 0.98, n) ** 2, random.gamma(1.2, 20, n)
    return ScoredRows(
        customer=np.arange(n, dtype=np.uint64),
        probability=probability,
        value=value,
        realised_value=value * random.gamma(4, 0.25, n),
        label=random.random(n) < probability,
    )


# --- the negative control ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_with_shuffled_values_the_dynamic_threshold_is_not_shown_ahead(seed: int) -> None:
    result = run_negative_control("churn", OFFER, crowd(seed=seed), crowd(seed=seed + 100), seed=seed)
    assert result.passed
    assert result.shown_ahead <= MAX_SHOWN_AHEAD
    assert result.mean_lead < 0


def test_a_comparison_that_pays_in_the_models_own_currency_fails_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the comparison did in releases up to 0.2: a contact earns the value that it was chosen for.
    monkeypatch.setattr(ScoredRows, "profit", ScoredRows.profit_at_model_values)
    result = run_negative_control("churn", OFFER, crowd(), crowd(seed=1))
    assert not result.passed
    assert result.shown_ahead == result.shuffles
    assert result.mean_lead > 0


# --- what policies are paid with --------------------------------------------------------------------------------------


def test_own_spend_is_that_of_the_spans_in_which_the_customer_stayed() -> None:
    # 120 spent in 3 of the 28-day spans of the 168 days before.
    rows = made_rows(
        np.zeros((1, 1)), monetary=np.array([120.0]), kept_windows=np.array([3.0]), tenure_days=np.array([168.0])
    )
    assert own_spend(rows, 28, 28).tolist() == [40.0]
    assert own_spend(rows, 28, 14).tolist() == [20.0]
    # Beyond the label horizon the customer may leave as before: 120 / 168 a day.
    assert own_spend(rows, 28, 90) == pytest.approx([40.0 + 62 * 120 / 168])


def test_own_spend_of_a_new_customer_is_not_extrapolated_from_a_few_days() -> None:
    rows = made_rows(
        np.zeros((1, 1)), monetary=np.array([56.0]), kept_windows=np.array([1.0]), tenure_days=np.array([2.0])
    )
    assert own_spend(rows, 28, 56) == pytest.approx([56.0 + 28 * 56.0 / 28])


def test_own_spend_is_never_negative() -> None:
    rows = made_rows(
        np.zeros((1, 1)), monetary=np.array([-5.0]), kept_windows=np.array([1.0]), tenure_days=np.array([2.0])
    )
    assert own_spend(rows, 28, 56).tolist() == [0.0]


def test_propensity_is_paid_with_the_amount_of_the_purchase_that_came() -> None:
    rows = made_rows(np.zeros((2, 1)), purchase_amount=np.array([40.0, np.nan]))
    assert realised_value(made_config(), rows, "propensity") == pytest.approx([0.3 * 40.0, 0.0])


# --- reliability ------------------------------------------------------------------------------------------------------


def test_reliability_of_an_example_worked_by_hand() -> None:
    predicted, realised = np.repeat([10.0, 20.0], 10), np.repeat([8.0, 25.0], 10)
    result = reliability_of(
        "churn", predicted, realised, predicted > 15, np.arange(20, dtype=np.uint64), resamples=200, seed=1
    )
    assert [tenth.predicted for tenth in result.bins] == [10.0] * 5 + [20.0] * 5
    assert [tenth.realised for tenth in result.bins] == [8.0] * 5 + [25.0] * 5
    assert result.total is not None
    assert result.total.ratio == pytest.approx(300 / 330)
    assert result.alerted is not None
    assert result.alerted.ratio == pytest.approx(200 / 250)
    assert result.alerted.rows == 10
    assert result.alerted.low == pytest.approx(0.8)


def test_the_interval_of_the_ratio_contains_one_for_a_model_that_is_right() -> None:
    inside = 0
    for seed in range(100):
        rows = crowd(400, seed)
        result = reliability_of(
            "churn", rows.value, rows.realised_value, rows.label, rows.customer, resamples=200, seed=seed
        )
        assert result.total is not None
        inside += result.total.low <= 1 <= result.total.high
    assert 88 <= inside <= 100


def test_without_realised_value_there_is_no_ratio() -> None:
    nothing = np.zeros(5)
    result = reliability_of(
        "churn", nothing + 1, nothing, nothing > 1, np.arange(5, dtype=np.uint64), resamples=10, seed=1
    )
    assert result.total is None
    assert result.alerted is None
