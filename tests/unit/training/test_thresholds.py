"""The dynamic threshold: the formula of the design, the budget's price, and the same in the graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.bundles.bundle import ECONOMICS, OFFERS
from feature_store.bundles.onnx_session import Graph
from feature_store.state.layout import Floats
from training.config import Offer
from training.graph.builder import GraphBuilder
from training.graph.thresholds import add_thresholds, add_values, budget_price, gain, threshold

LEAST = 0.01

# Cents and thousandths: what an economist would write, including nothing at all.
money = st.integers(0, 100_000).map(lambda cents: cents / 100)
shares = st.integers(0, 1000).map(lambda parts: parts / 1000)
offers = st.builds(
    Offer,
    contact_cost=money,
    offer_cost=money,
    success_rate=shares,
    redemption_rate=shares,
    budget_share=st.just(0.1),
)
customer_values = st.integers(-1000, 500_000).map(lambda cents: cents / 100)


def offer(budget_share: float = 0.1) -> Offer:
    return Offer(contact_cost=0.1, offer_cost=3.0, success_rate=0.2, redemption_rate=0.1, budget_share=budget_share)


def plain(v: float, offer: Offer, price: float) -> float:
    """The formula for one customer, word for word from the design."""
    c, d, s, r = offer.contact_cost, offer.offer_cost, offer.success_rate, offer.redemption_rate
    if v <= d or s * (v - d) + r * d <= 0:
        return 1.0
    return min(1.0, max(LEAST, (c + price + r * d) / (s * (v - d) + r * d)))


def crowd(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    return random.beta(2, 5, n), random.gamma(2, 10, n)


@given(st.lists(customer_values, min_size=1), offers, money)
def test_the_formula_equals_a_plain_one_for_each_customer(values: list[float], terms: Offer, price: float) -> None:
    result = threshold(np.array(values), terms, price, LEAST)
    np.testing.assert_allclose(result, [plain(v, terms, price) for v in values], rtol=1e-12)


@given(offers, money, shares)
def test_customers_worth_at_most_the_offers_cost_have_threshold_one(terms: Offer, price: float, share: float) -> None:
    values = np.array([terms.offer_cost, terms.offer_cost * share, 0.0, -1.0])
    assert threshold(values, terms, price, LEAST).tolist() == [1.0] * 4


@given(st.lists(customer_values, min_size=1), offers, money)
def test_a_threshold_lies_between_the_minimum_and_one(values: list[float], terms: Offer, price: float) -> None:
    result = threshold(np.array(values), terms, price, LEAST)
    assert ((result >= LEAST) & (result <= 1.0)).all()


@given(st.lists(customer_values, min_size=2), offers, money)
def test_a_higher_value_never_raises_the_threshold(values: list[float], terms: Offer, price: float) -> None:
    result = threshold(np.sort(np.array(values)), terms, price, LEAST)
    assert (np.diff(result) <= 1e-12).all()


@given(customer_values, offers, money, money)
def test_a_higher_budget_price_never_lowers_the_threshold(
    value: float, terms: Offer, price: float, more: float
) -> None:
    low, high = (threshold(np.array([value]), terms, p, LEAST)[0] for p in (price, price + more))
    assert high >= low


@given(offers, money, st.integers(0, 2**32 - 1))
def test_a_score_reaches_its_threshold_exactly_when_acting_gains_the_budgets_price(
    terms: Offer, price: float, seed: int
) -> None:
    probability, value = crowd(100, seed)
    at = threshold(value, terms, price, LEAST)
    surplus = gain(probability, value, terms) - price
    inner = (at > LEAST) & (at < 1.0) & (np.abs(surplus) > 1e-9)
    assert ((probability >= at) == (surplus >= 0))[inner].all()


def test_the_gain_of_an_example_worked_by_hand() -> None:
    # 0.5 * 0.2 * (23 - 3) won, 0.5 * 0.1 * 3 given away, 0.1 for the contact.
    assert gain(np.array([0.5]), np.array([23.0]), offer())[0] == pytest.approx(2.0 - 0.15 - 0.1)
    # (0.1 + 0.3) / (0.2 * 20 + 0.3), and with a price of 1: (0.1 + 1 + 0.3) / 4.3.
    assert threshold(np.array([23.0]), offer(), 0.0, LEAST)[0] == pytest.approx(0.4 / 4.3)
    assert threshold(np.array([23.0]), offer(), 1.0, LEAST)[0] == pytest.approx(1.4 / 4.3)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.2, 0.25])
def test_the_budgets_price_alerts_the_budget_share(share: float) -> None:
    probability, value = crowd(10_000)
    price = budget_price(probability, value, offer(share), LEAST)
    assert price > 0
    assert (probability >= threshold(value, offer(share), price, LEAST)).mean() == share


def test_the_budgets_price_alerts_those_who_gain_most() -> None:
    probability, value = crowd(1000)
    price = budget_price(probability, value, offer(), LEAST)
    alerts = probability >= threshold(value, offer(), price, LEAST)
    gains = gain(probability, value, offer())
    assert gains[alerts].min() >= gains[~alerts].max()


def test_a_budget_larger_than_the_profitable_share_has_price_zero() -> None:
    probability, value = crowd(1000)
    paying = (gain(probability, value, offer()) >= 0).mean()
    assert 0 < paying < 0.9
    assert budget_price(probability, value, offer(0.9), LEAST) == 0.0
    assert (probability >= threshold(value, offer(), 0.0, LEAST)).mean() == pytest.approx(paying, abs=0.001)


def test_an_unlimited_budget_has_price_zero() -> None:
    assert budget_price(np.full(10, 0.9), np.full(10, 1e6), offer(1.0), LEAST) == 0.0


def test_a_budget_too_small_for_one_customer_alerts_nobody() -> None:
    probability, value = np.array([0.9, 0.8]), np.array([500.0, 400.0])
    price = budget_price(probability, value, offer(0.1), LEAST)
    assert not (probability >= threshold(value, offer(), price, LEAST)).any()


def test_customers_of_equal_gain_do_not_break_the_budget() -> None:
    probability, value = np.full(100, 0.5), np.full(100, 50.0)
    price = budget_price(probability, value, offer(0.1), LEAST)
    assert (probability >= threshold(value, offer(), price, LEAST)).mean() <= 0.1


# --- in the graph -----------------------------------------------------------------------------------------------------


def graph_of_thresholds() -> Graph:
    graph = GraphBuilder()
    spend = graph.input("spend", len(OFFERS))
    economics = graph.input("economics", len(ECONOMICS))
    values = add_values(graph, spend, economics, OFFERS)
    result = graph.add("Cast", add_thresholds(graph, values, economics, OFFERS, LEAST), to=graph.float32)
    values = graph.add("Cast", values, to=graph.float32)
    for column, name in enumerate(OFFERS):
        graph.output(f"{name}_threshold", result, column)
        graph.output(f"{name}_value_if_won", values, column)
    return Graph(graph.build("thresholds"))


THRESHOLDS = graph_of_thresholds()


def figures_of(terms: Offer, price: float) -> list[float]:
    return [terms.contact_cost, terms.offer_cost, terms.success_rate, terms.redemption_rate, price]


maybe_money = st.none() | money


@given(
    st.lists(
        st.tuples(st.tuples(money, money), shares, offers, money, offers, money, st.tuples(maybe_money, maybe_money)),
        min_size=1,
        max_size=10,
    )
)
def test_the_graph_computes_the_formula_for_each_customers_own_economics(
    rows: list[tuple[tuple[float, float], float, Offer, float, Offer, float, tuple[float | None, float | None]]],
) -> None:
    economics = np.array(
        [
            [margin, *figures_of(a, x), *figures_of(b, y), *(np.nan if value is None else value for value in values)]
            for _, margin, a, x, b, y, values in rows
        ]
    )
    result = THRESHOLDS.run(spend=np.array([spend for spend, *_ in rows]), economics=economics)
    for at, (spend, margin, churn, x, propensity, y, given_values) in enumerate(rows):
        for name, each, given_value, terms, price in zip(
            OFFERS, spend, given_values, (churn, propensity), (x, y), strict=True
        ):
            value = margin * each if given_value is None else given_value
            expected = threshold(np.array([value]), terms, price, LEAST)[0]
            assert result[f"{name}_threshold"][at] == pytest.approx(expected, abs=1e-6)
            assert result[f"{name}_value_if_won"][at] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_an_offer_of_zeros_has_threshold_one(margin: float) -> None:
    # It costs nothing and wins nobody: 0 / 0, which must not come out as NaN.
    economics = np.zeros((2, len(ECONOMICS)))
    economics[:, 0] = margin
    economics[:, -len(OFFERS) :] = np.nan
    result = THRESHOLDS.run(spend=np.array([[0.0, 0.0], [100.0, 100.0]]), economics=economics)
    assert result["churn_threshold"].tolist() == [1.0, 1.0]
    assert result["propensity_threshold"].tolist() == [1.0, 1.0]
