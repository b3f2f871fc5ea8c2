"""The dynamic threshold: the probability from which acting pays, for each customer and offer.

For a calibrated probability p, value if won v (margin times the spend that a win brings), contact cost c, offer cost d,
success rate s (share of the targeted customers whom the offer wins), redemption rate r (share of the others who redeem
it) and budget price b, acting gains ``p * s * (v - d) - (1 - p) * r * d - c``. Acting if the gain is at least b gives

    threshold = (c + b + r * d) / (s * (v - d) + r * d)    clipped to [threshold_min, 1];  1 (never) if v <= d

At b = 0 this is the optimum of cost-sensitive learning with example-dependent costs (Elkan, 2001). Contact and offer
cost may be the same for all customers (Offer) or differ (CustomerOffer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feature_store.bundles.bundle import ECONOMICS, OFFER_FIGURES, VALUE_IF_WON
from feature_store.state.layout import Floats
from training.config import Offer
from training.graph.builder import GraphBuilder


@dataclass(frozen=True)
class CustomerOffer:
    """An offer with costs per customer, ``[n]`` like the probabilities and values."""

    contact_cost: Floats
    offer_cost: Floats
    success_rate: float
    redemption_rate: float
    budget_share: float


Terms = Offer | CustomerOffer


def gain(probability: Floats, value: Floats, offer: Terms) -> Floats:
    """Expected gain of acting on each customer ``[n]``, before the price of the budget."""
    won = probability * offer.success_rate * (value - offer.offer_cost)
    given_away = (1 - probability) * offer.redemption_rate * offer.offer_cost
    return won - given_away - offer.contact_cost


def threshold(value: Floats, offer: Terms, budget_price: float, threshold_min: float) -> Floats:
    """The thresholds ``[n]`` for values ``[n]``, in NumPy: the graph's nodes are checked against it."""
    given_away = offer.redemption_rate * offer.offer_cost
    cost = offer.contact_cost + budget_price + given_away
    benefit = offer.success_rate * (value - offer.offer_cost) + given_away
    possible = (value > offer.offer_cost) & (benefit > 0)
    return np.where(possible, np.clip(cost / np.where(possible, benefit, 1.0), threshold_min, 1.0), 1.0)


def budget_price(probability: Floats, value: Floats, offer: Terms, threshold_min: float) -> float:
    """The price b >= 0 at which the offer's budget share of these customers is alerted; 0 if fewer pay anyway.

    It is midway between the last gain inside the budget and the first one outside, so that rounding changes no alert.
    """
    possible = (value > offer.offer_cost) & (probability >= threshold_min)
    ranked = np.sort(np.where(possible, gain(probability, value, offer), -np.inf))[::-1]
    inside = round(offer.budget_share * len(ranked))
    if inside >= len(ranked) or ranked[inside] < 0:
        return 0.0
    first_out = float(ranked[inside])
    better = ranked[ranked > first_out]  # customers with equal gains are all inside or all outside
    return (float(better[-1]) + first_out) / 2 if len(better) else first_out + 1.0


def add_values(graph: GraphBuilder, spend_if_won: str, economics: str, offers: Sequence[str]) -> str:
    """Add nodes for the values if won: margin times spend, or the caller's value.

    Args:
        graph: The graph.
        spend_if_won: Name of the spend if an offer wins, float64 ``[n, offers]``.
        economics: Name of the economics as the caller gives them, float64 ``[n, figures]``.
        offers: The offers, in order of the columns.

    Returns:
        The name of float64 ``[n, offers]``.
    """
    by_caller = graph.columns(economics, [ECONOMICS.index(f"{offer}.{VALUE_IF_WON}") for offer in offers])
    by_model = graph.add("Mul", graph.columns(economics, [ECONOMICS.index("margin")]), spend_if_won)
    return graph.add("Where", graph.add("IsNaN", by_caller), by_model, by_caller)


def add_thresholds(graph: GraphBuilder, value: str, economics: str, offers: Sequence[str], threshold_min: float) -> str:
    """Add nodes for the thresholds.

    Args:
        graph: The graph.
        value: Name of the values if won, float64 ``[n, offers]``.
        economics: Name of the economics, float64 ``[n, figures]``.
        offers: The offers, in order of the columns.
        threshold_min: Lower bound of a threshold.

    Returns:
        The name of float64 ``[n, offers]``.
    """
    contact, offer_cost, success, redemption, price = (
        graph.columns(economics, [ECONOMICS.index(f"{offer}.{name}") for offer in offers]) for name in OFFER_FIGURES
    )
    zero, one = graph.constant(np.array([0.0])), graph.constant(np.array([1.0]))
    given_away = graph.add("Mul", redemption, offer_cost)
    cost = graph.add("Add", graph.add("Add", contact, price), given_away)
    beyond = graph.add("Sub", value, offer_cost)
    benefit = graph.add("Add", graph.add("Mul", success, beyond), given_away)
    possible = graph.add("And", graph.add("Greater", beyond, zero), graph.add("Greater", benefit, zero))
    ratio = graph.add("Div", cost, graph.add("Where", possible, benefit, one))
    clipped = graph.add("Max", graph.add("Min", ratio, one), graph.constant(np.array([threshold_min])))
    return graph.add("Where", possible, clipped, one)
