"""The truth about the customers of a simulated shop at a moment, and what acting on each of them earns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import DAY_S, Floats
from training.simulation.design import ShopDesign
from training.simulation.process import (
    draw_purchases_if_any,
    expected_purchases,
    expected_purchases_if_any,
    staying_probability,
)

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Customers at a moment as the shop can see them, and what they did afterwards; each array ``[n]``.

    Attributes:
        cutoff: The moment, unix seconds.
        customer: Number of the customer in the shop.
        customer_id: Its id.
        purchases: Number of purchases so far.
        recency_days: Days since the last one.
        monetary: Spend so far, less refunds.
        label: Churn: whether the customer bought nothing in the horizon. Propensity: whether it bought something.
            Meaningless if the horizon reaches beyond the end of the history.
        purchases_within: Number of purchases in the horizon of the label.
        spend: Spend in the value horizon (propensity: in its horizon), less the refunds in it; NaN if the horizon is
            not over.
    """

    cutoff: Floats
    customer: Numbers
    customer_id: npt.NDArray[np.object_]
    purchases: Floats
    recency_days: Floats
    monetary: Floats
    label: Mask
    purchases_within: Floats
    spend: Floats


@dataclass(frozen=True)
class TrueRows:
    """The truth about customers at one or more moments; each array ``[n]``.

    Every probability and expectation is that of an observer who knows how each customer behaves and all events up to
    the moment, but not whether the customer has left: nobody can know more before the horizon is over.

    Attributes:
        offer: ``churn`` or ``propensity``.
        history: What the shop can see.
        probability: Of the label.
        value: What the shop earns, on average, from a customer whom the offer wins: for churn the margin on the spend
            within the value horizon of a customer who stays, for propensity the margin on one purchase.
        expected_spend: Expected spend within the value horizon (propensity: its horizon), less what is returned,
            without an offer.
        success_rate: Share that the offer wins among the customers with the label.
        redemption_rate: Share of the others that redeems the offer.
        contact_cost: Cost of a contact.
        offer_cost: Cost of an offer that is redeemed.
        leaves: Chance to leave after a purchase.
        exposure: Expected purchases within the horizon of a customer who never leaves.
        value_exposure: The same within the value horizon.
        kept_amount: Mean amount of a purchase, less what is returned.
        amount_spread: Standard deviation of the logarithm of amounts.
        margin: Share of the spend that the shop earns.
    """

    offer: str
    history: History
    probability: Floats
    value: Floats
    expected_spend: Floats
    success_rate: Floats
    redemption_rate: Floats
    contact_cost: Floats
    offer_cost: Floats
    leaves: Floats
    exposure: Floats
    value_exposure: Floats
    kept_amount: Floats
    amount_spread: float
    margin: float

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def gain(self) -> Floats:
        """Expected profit ``[n]`` of acting on each customer instead of not acting."""
        p, s, r, d = self.probability, self.success_rate, self.redemption_rate, self.offer_cost
        return np.asarray(p * s * (self.value - d) - (1 - p) * r * d - self.contact_cost)

    def profit(self, contacted: npt.ArrayLike) -> float:
        """Expected profit of a policy.

        Args:
            contacted: Whether, or with which probability, the policy acts on each customer ``[n]``.
        """
        return float(np.asarray(contacted, dtype=np.float64) @ self.gain)

    def oracle(self, max_contacts: float = np.inf) -> Mask:
        """The best policy: whom somebody would contact who knows the truth.

        Args:
            max_contacts: Maximum number of contacts.

        Returns:
            The customers with the highest positive gains ``[n]``.
        """
        gain = self.gain
        best = np.argsort(-gain, kind="stable")[: int(min(max_contacts, len(gain)))]
        chosen = np.zeros(len(gain), dtype=bool)
        chosen[best] = gain[best] > 0
        return chosen

    def draw_profit(self, random: np.random.Generator) -> Floats:
        """Draw what acting on each customer earns compared with not acting ``[n]``: one possible future.

        The mean over many futures is ``gain``.
        """
        n = len(self)
        aimed_at = random.random(n) < self.probability
        wins = aimed_at & (random.random(n) < self.success_rate)
        redeems = wins | (~aimed_at & (random.random(n) < self.redemption_rate))
        count = np.ones(n, dtype=np.int64)
        if self.offer == "churn":
            count = draw_purchases_if_any(self.leaves, self.value_exposure, self.exposure, random)
        customer = np.repeat(np.arange(n), count)
        noise = self.amount_spread * random.standard_normal(len(customer)) - self.amount_spread**2 / 2
        spend = np.bincount(customer, self.kept_amount[customer] * np.exp(noise), n)
        return np.asarray(wins * self.margin * spend - redeems * self.offer_cost - self.contact_cost)

    def take(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> TrueRows:
        """The rows at these indexes, or where a mask is true."""
        return _combined([self], lambda columns: columns[0][index])

    @staticmethod
    def joined(parts: Sequence[TrueRows]) -> TrueRows:
        """The rows of all parts, which must be of one shop and one offer."""
        return _combined(parts, np.concatenate)


def _combined(parts: Sequence[TrueRows], combine: Callable[[list[Any]], Any]) -> TrueRows:
    """Rows of which each column is made from that column of all parts."""
    first = parts[0]
    history = {name: combine([vars(part.history)[name] for part in parts]) for name in vars(first.history)}
    columns: dict[str, Any] = {
        name: combine([vars(part)[name] for part in parts])
        for name, column in vars(first).items()
        if isinstance(column, np.ndarray)
    }
    return replace(first, history=History(**history), **columns)


def true_rows(
    design: ShopDesign,
    offer: str,
    history: History,
    *,
    left_after_last: Floats,
    leaves: Floats,
    since_last: Floats,
    exposure: Callable[[float], Floats],
    kept_amount: Floats,
) -> TrueRows:
    """The truth about customers at one moment.

    Args:
        design: How the shop works.
        offer: ``churn`` or ``propensity``.
        history: The customers.
        left_after_last: Chance to have left after the last purchase ``[n]``.
        leaves: Chance to leave after a later one ``[n]``.
        since_last: Exposure since the last purchase ``[n]``.
        exposure: Exposure ``[n]`` of the next days, from their number.
        kept_amount: Mean amount of a purchase, less what is returned ``[n]``.
    """
    n, terms = len(left_after_last), design.offers[offer]
    there = staying_probability(left_after_last, since_last)
    is_churn = offer == "churn"
    ahead = exposure(design.horizon_days if is_churn else design.propensity_days)
    buys = there * -np.expm1(-ahead)
    value_ahead = exposure(design.value_days) if is_churn else ahead
    count = expected_purchases_if_any(leaves, value_ahead, ahead) if is_churn else np.ones(n)
    before_end = float(design.end_s - history.cutoff[0]) / DAY_S if n else 0.0
    return TrueRows(
        offer=offer,
        history=history,
        probability=1 - buys if is_churn else buys,
        value=design.margin * kept_amount * count,
        expected_spend=there * expected_purchases(leaves, value_ahead) * kept_amount,
        success_rate=np.full(n, terms.success_at(before_end)),
        redemption_rate=np.full(n, terms.redemption_rate),
        contact_cost=np.full(n, terms.contact_cost),
        offer_cost=np.full(n, terms.offer_cost),
        leaves=leaves,
        exposure=ahead,
        value_exposure=value_ahead,
        kept_amount=kept_amount,
        amount_spread=design.amount_spread,
        margin=design.margin,
    )
