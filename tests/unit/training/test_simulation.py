"""Simulated shops: what happens in them agrees with the truth that they state."""

from __future__ import annotations

import doctest
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.simulation
from feature_store.config import load_config
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import DAY_S, Floats, StateLayout
from training.config import TrainingConfig
from training.data.dataset import build_rows
from training.graph.thresholds import CustomerOffer, gain
from training.simulation import OfferDesign, ShopDesign, SimulatedShop, TrueRows, simulate, write_shop
from training.simulation.process import (
    Season,
    draw_purchases_if_any,
    expected_purchases,
    expected_purchases_if_any,
    staying_probability,
)

OFFERS = ("churn", "propensity")
BINS = 10
SURE_Z = 4.5
"""A right figure lies this many standard errors away once in 150,000 times; seeds are fixed, so results are, too."""


@cache
def large_shop() -> SimulatedShop:
    return simulate(ShopDesign(customers=40_000, risk_value_correlation=-0.5, season_amplitude=0.5, value_days=56), 3)


@cache
def large(offer: str) -> TrueRows:
    shop = large_shop()
    return shop.at([shop.design.end_s - 100 * DAY_S], offer)


def tenths(by: Floats) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    return np.array_split(np.argsort(by), BINS)


def assert_mean(sample: Floats, expected: Floats) -> None:
    """The mean of the differences is 0, as far as their standard error allows."""
    difference = sample - expected
    assert abs(difference.mean()) < SURE_Z * difference.std() / np.sqrt(len(difference))


# --- the truth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offer", OFFERS)
def test_outcomes_are_as_frequent_as_their_probabilities_in_every_tenth_of_the_customers(offer: str) -> None:
    rows = large(offer)
    for ranking in (rows.probability, rows.value, rows.history.recency_days, rows.history.purchases):
        for tenth in tenths(ranking):
            assert_mean(rows.history.label[tenth].astype(float), rows.probability[tenth])


@pytest.mark.parametrize("offer", OFFERS)
def test_spend_less_refunds_has_the_expected_mean(offer: str) -> None:
    rows = large(offer)
    # Refunds of purchases shortly before the moment count, and of the latest purchases not yet: few, about as many.
    assert rows.history.spend.mean() == pytest.approx(rows.expected_spend.mean(), rel=0.03)


def test_customers_who_stay_are_worth_the_value_if_won() -> None:
    rows = large("churn")
    stays = rows.take(~rows.history.label)
    assert stays.margin * stays.history.spend.mean() == pytest.approx(stays.value.mean(), rel=0.03)
    assert stays.value.mean() > 1.3 * rows.margin * rows.expected_spend.mean()


def test_a_purchase_is_worth_the_margin_on_what_is_kept() -> None:
    shop = large_shop()
    bought, who = shop.purchases, shop.customers
    kept = np.where(np.isinf(bought.returned_day), bought.amount, 0.0)
    assert_mean(kept, (who.basket * (1 - who.returns))[bought.customer])
    rows = large("propensity")
    worth = shop.design.margin * (who.basket * (1 - who.returns))[rows.history.customer]
    np.testing.assert_allclose(rows.value, worth)


@pytest.mark.parametrize("offer", OFFERS)
def test_the_profit_of_acting_has_the_mean_that_is_stated(offer: str) -> None:
    rows, random = large(offer), np.random.default_rng(0)
    profit = np.mean([rows.draw_profit(random) for _ in range(5)], axis=0)
    for tenth in tenths(rows.gain):
        assert_mean(profit[tenth], rows.gain[tenth])


@pytest.mark.parametrize("offer", OFFERS)
def test_the_gain_is_that_of_the_threshold(offer: str) -> None:
    rows = large(offer)
    terms = CustomerOffer(rows.contact_cost, rows.offer_cost, rows.success_rate[0], rows.redemption_rate[0], 1.0)
    np.testing.assert_allclose(rows.gain, gain(rows.probability, rows.value, terms), atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_no_policy_earns_more_than_the_oracle_with_as_many_contacts(seed: int, contacts: int) -> None:
    rows = large("churn").take(np.arange(500))
    chosen = np.random.default_rng(seed).permutation(500) < contacts
    best = rows.oracle(contacts)
    assert best.sum() <= contacts
    assert rows.profit(best) >= max(rows.profit(chosen), 0)
    assert (rows.gain[best] > 0).all()


def test_without_a_limit_the_oracle_contacts_everybody_who_pays() -> None:
    rows = large("churn")
    np.testing.assert_array_equal(rows.oracle(), rows.gain > 0)
    assert rows.profit(np.full(len(rows), 0.5)) == pytest.approx(rows.gain.sum() / 2)


# --- what a design can say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.7])
def test_values_are_correlated_with_risk_as_designed(correlation: float) -> None:
    who = simulate(ShopDesign(customers=20_000, risk_value_correlation=correlation)).customers
    observed = np.corrcoef(np.log(who.leaves / (1 - who.leaves)), np.log(who.basket))[0, 1]
    assert observed == pytest.approx(correlation, abs=0.03)


def test_one_time_buyers_leave_after_their_first_purchase() -> None:
    def once(share: float) -> float:
        design = ShopDesign(customers=20_000, days=2000, one_time_share=share, leave_chance=0.01, leave_spread=0.1)
        shop = simulate(design)
        early = shop.customers.joined_day < 1000
        return float((np.bincount(shop.purchases.customer, minlength=20_000)[early] == 1).mean())

    assert once(0.0) == pytest.approx(0.01, abs=0.005)
    assert once(0.4) == pytest.approx(1 - 0.99 * 0.6, abs=0.02)


def test_purchases_follow_the_season() -> None:
    design = ShopDesign(
        customers=4000, days=730, leave_chance=1e-6, leave_spread=0, one_time_share=0, season_amplitude=0.4
    )
    shop = simulate(design)
    regular = shop.customers.joined_day[shop.purchases.customer] < 200
    # Whole years after everybody regular has joined: a peak on day 355 and the trough half a year later.
    day = shop.purchases.day[regular]
    peak, trough = (((day > middle - 15) & (day < middle + 15)).sum() for middle in (355.0, 355.0 + 182.6))
    assert peak / trough == pytest.approx(1.4 / 0.6, rel=0.06)


def test_goods_are_returned_as_often_as_designed_and_soon() -> None:
    bought = simulate(ShopDesign(customers=10_000, return_share=0.1, return_days=5)).purchases
    returned = np.isfinite(bought.returned_day)
    assert returned.mean() == pytest.approx(0.1, abs=0.005)
    delay = (bought.returned_day - bought.day)[returned]
    assert 0 <= delay.min() < 0.1
    assert 4.9 < delay.max() <= 5 + 1e-6


def test_the_success_of_an_offer_drifts() -> None:
    offer = OfferDesign(0.1, 3.0, 0.2, 0.1, 0.1, success_drift=-0.5, measured_days_before_end=100)
    assert offer.success_at(100) == 0.2
    assert offer.success_at(100 + 365.25) == pytest.approx(0.3)
    assert offer.success_at(100 - 365.25) == pytest.approx(0.1)
    assert offer.success_at(100 - 3 * 365.25) == 0.0
    shop = simulate(ShopDesign(customers=500, offers={"churn": offer}))
    rows = shop.at([shop.design.end_s - 200 * DAY_S, shop.design.end_s - 100 * DAY_S], "churn")
    assert sorted(set(rows.success_rate)) == [0.2, pytest.approx(0.2 * (1 + 0.5 * 100 / 365.25))]


def test_attributes_show_how_customers_behave_with_the_designed_error_or_not_at_all() -> None:
    exact, noisy = (simulate(ShopDesign(customers=5000, attribute_noise=noise)) for noise in (0.0, 0.3))
    np.testing.assert_allclose(exact.attributes["usual_basket"], exact.customers.basket)
    error = np.log(noisy.attributes["usual_basket"] / noisy.customers.basket)
    assert error.std() == pytest.approx(0.3, abs=0.02)
    assert simulate(ShopDesign(customers=10, attribute_noise=np.inf)).attributes == {}


def test_the_same_seed_gives_the_same_shop_and_another_one_another() -> None:
    design = ShopDesign(customers=200)
    first, again, other = simulate(design, 5), simulate(design, 5), simulate(design, 6)
    np.testing.assert_array_equal(first.purchases.amount, again.purchases.amount)
    assert len(first.purchases.day) != len(other.purchases.day)


@pytest.mark.parametrize(
    "wrong",
    [
        {"customers": 0},
        {"leave_chance": 0.0},
        {"return_share": 0.6},
        {"risk_value_correlation": 1.5},
        {"value_days": 7.0},
        {"days": np.inf},
    ],
)
def test_a_design_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShopDesign(**wrong)  # type: ignore[arg-type]


def test_moments_outside_of_the_history_and_unknown_offers_are_refused() -> None:
    shop = simulate(ShopDesign(customers=10))
    with pytest.raises(ValueError, match="within the history"):
        shop.at([shop.design.end_s + 1], "churn")
    with pytest.raises(ValueError, match="within the history"):
        shop.at([], "churn")
    with pytest.raises(ValueError, match="one of churn, propensity"):
        shop.at([shop.design.end_s], "upsell")


def test_outcomes_that_are_not_over_are_unknown() -> None:
    shop = simulate(ShopDesign(customers=500))
    assert np.isnan(shop.at([shop.design.end_s - 20 * DAY_S], "churn").history.spend).all()
    assert np.isfinite(shop.at([shop.design.end_s - 28 * DAY_S], "churn").history.spend).all()


# --- the buying process -----------------------------------------------------------------------------------------------


def test_the_formulas_of_the_process_agree_with_cases_worked_by_hand() -> None:
    certain, half = np.array([1.0]), np.array([0.5])
    # Whoever leaves after each purchase makes one, if any.
    assert expected_purchases(certain, np.array([2.0]))[0] == pytest.approx(1 - np.exp(-2))
    assert expected_purchases_if_any(certain, np.array([5.0]), np.array([2.0]))[0] == pytest.approx(1.0)
    # In a very long time there are two purchases on average if every second is the last.
    assert expected_purchases(half, np.array([100.0]))[0] == pytest.approx(2.0)
    # One of two has left at once; of the other half, 1 / e have not bought since.
    assert staying_probability(half, np.array([1.0]))[0] == pytest.approx(np.exp(-1) / (1 + np.exp(-1)))
    assert staying_probability(half, np.array([0.0]))[0] == 0.5


@pytest.mark.parametrize(("exposure", "any_within"), [(2.0, 2.0), (6.0, 1.5), (0.1, 0.1)])
def test_drawn_purchases_have_the_expected_number(exposure: float, any_within: float) -> None:
    leaves, n = np.full(50_000, 0.3), 50_000
    count = draw_purchases_if_any(leaves, np.full(n, exposure), np.full(n, any_within), np.random.default_rng(1))
    assert count.min() == 1
    assert_mean(count.astype(float), expected_purchases_if_any(leaves, np.full(n, exposure), np.full(n, any_within)))


def test_weighted_days_can_be_turned_back_and_a_year_has_its_length() -> None:
    season = Season(ShopDesign(season_amplitude=0.6))
    day = np.linspace(0, 400, 1001)
    np.testing.assert_allclose(season.day(season.weighted(day)), day, atol=1e-3)
    assert season.weighted(365.25) - season.weighted(0.0) == pytest.approx(365.25)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("returns", [0.0, 0.1])
def test_training_sees_the_customers_labels_and_spend_of_the_truth(tmp_path: Path, returns: float) -> None:
    shop = simulate(ShopDesign(customers=600, return_share=returns, value_days=56), 2)
    config = load_config(TrainingConfig, str(write_shop(shop, tmp_path)))
    cutoffs = [shop.design.end_s - days * DAY_S for days in (120, 80, 60)]
    with OfflineStore(config.source) as source:
        rows = build_rows(source, StateLayout(config.feature), config, cutoffs)
    for offer in OFFERS:
        truth = shop.at(cutoffs, offer)
        np.testing.assert_array_equal(rows.customer_id, truth.history.customer_id)
        np.testing.assert_array_equal(rows.cutoff, truth.history.cutoff)
        np.testing.assert_array_equal(rows.label(offer) > 0, truth.history.label)
        np.testing.assert_allclose(rows.recency_days, truth.history.recency_days, atol=1e-6)
        np.testing.assert_array_equal(rows.frequency, truth.history.purchases)
        np.testing.assert_allclose(rows.monetary, truth.history.monetary, atol=1e-6)
    truth = shop.at(cutoffs, "churn")
    np.testing.assert_allclose(rows.spend, np.maximum(truth.history.spend, 0), atol=1e-6)
    assert (truth.history.spend.min() < 0) == (returns > 0)


def test_the_example_of_the_documentation_runs() -> None:
    results = doctest.testmod(training.simulation)
    assert results.attempted > 10
    assert results.failed == 0
