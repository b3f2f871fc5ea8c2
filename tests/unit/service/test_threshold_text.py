# ruff: noqa: E501  # sentences as they are read
"""What a threshold is made of, in money and in a sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.bundles.bundle import ECONOMICS
from feature_store.state.layout import Floats
from service.scoring.threshold_text import explain_threshold
from training.config import Offer
from training.graph.thresholds import threshold

VOUCHER = {"contact_cost": 0.1, "offer_cost": 3.0, "success_rate": 0.2, "redemption_rate": 0.1, "budget_price": 0.0}


def economics(**changed: float) -> Floats:
    """A row of the graph's input with the same figures for both offers."""
    figures = {
        "margin": 0.25,
        **{f"{o}.{n}": v for o in ("churn", "propensity") for n, v in (VOUCHER | changed).items()},
    }
    return np.array([figures.get(name, math.nan) for name in ECONOMICS])


@pytest.mark.parametrize(
    ("offer", "changed", "value", "at", "sentence"),
    [
        ("churn", {}, 23.0, 0.093, "From a probability of 9.3% on, a contact pays: a win is worth 23.00, so a contact gains 3.90 on average if the customer would leave, costs 0.40 if not. The value of a win is 25% of a spend of 92.00."),
        ("propensity", {"budget_price": 1.0}, 23.0, 0.326, "From a probability of 32.6% on, a contact pays: a win is worth 23.00, so a contact gains 3.90 on average if the customer would buy, costs 0.40 if not and has to gain 1.00 because the budget is limited. The value of a win is 25% of a spend of 92.00."),
        ("churn", {"value_if_won": 23.0}, 23.0, 0.093, "From a probability of 9.3% on, a contact pays: a win is worth 23.00, so a contact gains 3.90 on average if the customer would leave, costs 0.40 if not. The value of a win is the request's."),
        ("churn", {"value_if_won": 2.9}, 2.9, 1.0, "Never, because a win is worth 2.90 and the offer costs 3.00. The value of a win is the request's."),
        ("churn", {}, 3.1, 1.0, "Never, because a win is worth 3.10 and the offer costs 3.00: even if the customer were certain to leave, a contact would lose 0.08. The value of a win is 25% of a spend of 12.40."),
        ("propensity", {"budget_price": 0.5}, 4.0, 1.0, "Never, because a win is worth 4.00 and the offer costs 3.00: even if the customer were certain to buy, a contact would gain 0.10, and it has to gain 0.50. The value of a win is 25% of a spend of 16.00."),
        ("churn", {"offer_cost": math.nan}, 23.0, 0.093, "From a probability of 9.3% on, a contact pays: a win is worth 23.00, and the costs are this customer's. The value of a win is 25% of a spend of 92.00."),
        ("churn", {"contact_cost": math.nan}, 3.1, 1.0, "Never, because a win is worth 3.10 and this customer's costs are too high. The value of a win is 25% of a spend of 12.40."),
    ],
)  # fmt: skip
def test_a_threshold_in_words(offer: str, changed: dict[str, float], value: float, at: float, sentence: str) -> None:
    assert explain_threshold(offer, economics(**changed), value, at).sentence == sentence


def test_a_threshold_in_figures() -> None:
    result = explain_threshold("churn", economics(budget_price=1.0), 23.0, 1.4 / 4.3)
    assert (result.value_if_won, result.margin, result.spend_if_won) == (23.0, 0.25, 92.0)
    assert (result.contact_cost, result.offer_cost, result.success_rate, result.redemption_rate) == (0.1, 3.0, 0.2, 0.1)
    assert result.gain_if_intended == pytest.approx(0.2 * 20 - 0.1)
    assert result.cost_if_other == pytest.approx(0.1 * 3 + 0.1)
    assert result.budget_price == 1.0


def test_figures_that_the_server_does_not_know_are_not_set() -> None:
    result = explain_threshold("churn", economics(offer_cost=math.nan, value_if_won=9.0), 9.0, 0.5)
    assert (result.margin, result.spend_if_won, result.offer_cost) == (None, None, None)
    assert (result.gain_if_intended, result.cost_if_other) == (None, None)
    assert (
        explain_threshold("churn", np.where(np.arange(len(ECONOMICS)), economics(), 0.0), 0.0, 1.0).spend_if_won is None
    )


money = st.integers(0, 500).map(lambda cents: cents / 100)
shares = st.integers(1, 100).map(lambda parts: parts / 100)


@given(money, money, shares, shares, money, st.integers(1, 50_000).map(lambda cents: cents / 100))
def test_at_the_threshold_the_expected_gain_is_the_budgets_price(
    contact: float, cost: float, success: float, redemption: float, price: float, value: float
) -> None:
    terms = Offer(
        contact_cost=contact, offer_cost=cost, success_rate=success, redemption_rate=redemption, budget_share=1
    )
    at = float(threshold(np.array([value]), terms, price, 0.01)[0])
    row = economics(
        contact_cost=contact, offer_cost=cost, success_rate=success, redemption_rate=redemption, budget_price=price
    )
    result = explain_threshold("churn", row, value, at)
    assert result.gain_if_intended is not None
    assert result.cost_if_other is not None
    if 0.01 < at < 1:
        assert at * result.gain_if_intended - (1 - at) * result.cost_if_other == pytest.approx(price, abs=1e-9)
