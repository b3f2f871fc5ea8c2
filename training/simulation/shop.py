"""Simulates a shop: its customers, and their purchases and returns over the whole history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from feature_store.state.layout import DAY_S, Floats
from training.simulation.design import ShopDesign
from training.simulation.process import Season
from training.simulation.truth import History, TrueRows, true_rows

Numbers = npt.NDArray[np.int64]

JOINING_SHARE: Final = 0.9
"""Customers join in this first part of the history."""

_STREAM: Final = 0x73686F70
"""Seeds of shops are a stream apart: the caller's own generator of the same seed must not repeat the shop's numbers."""

_SAME_MOMENT_DAYS: Final = 1e-9
"""Moments are whole milliseconds; a smaller difference is a rounding error."""


@dataclass(frozen=True)
class Customers:
    """What the customers of a simulated shop are like, each array ``[customers]``.

    Attributes:
        name: Their ids.
        joined_day: Day of the first purchase, counted from the start of the history.
        per_day: Purchases per weighted day while they stay.
        leaves: Chance to leave after a purchase other than the first.
        leaves_at_first: Chance to leave after the first purchase.
        basket: Mean amount of a purchase.
        returns: Share of purchases that are returned.
    """

    name: npt.NDArray[np.object_]
    joined_day: Floats
    per_day: Floats
    leaves: Floats
    leaves_at_first: Floats
    basket: Floats
    returns: Floats


@dataclass(frozen=True)
class Purchases:
    """All purchases up to the end of the history, sorted by customer and time, each array ``[purchases]``.

    Attributes:
        customer: Number of the customer.
        day: When, in days from the start of the history.
        amount: What was paid.
        returned_day: When the goods were returned and the amount was paid back; infinity if they were kept.
    """

    customer: Numbers
    day: Floats
    amount: Floats
    returned_day: Floats


@dataclass(frozen=True)
class SimulatedShop:
    """A simulated shop, of which everything is known.

    Attributes:
        design: How it works.
        seed: The seed from which it was drawn.
        customers: Its customers.
        purchases: Their purchases.
        attributes: Columns of the customer table by name, each ``[customers]``: what the shop itself knows about
            how its customers behave, with errors.
    """

    design: ShopDesign
    seed: int
    customers: Customers
    purchases: Purchases
    attributes: dict[str, Floats]

    @cached_property
    def season(self) -> Season:
        """The season."""
        return Season(self.design)

    def at(self, cutoffs: Sequence[float], offer: str) -> TrueRows:
        """The truth about all active customers at some moments, in the order of moments and customers.

        Args:
            cutoffs: Unix seconds, within the history.
            offer: ``churn`` or ``propensity``.

        Raises:
            ValueError: If there is no such offer, or a moment is outside of the history.
        """
        design = self.design
        if offer not in design.offers:
            raise ValueError(f"offer '{offer}' is not one of {', '.join(design.offers)}")
        if not cutoffs or not all(design.start_s <= cutoff <= design.end_s for cutoff in cutoffs):
            raise ValueError("cutoffs: give at least one moment, each within the history of the shop")
        parts = [self._rows(cutoff, offer) for cutoff in cutoffs]
        return TrueRows.joined(parts)

    def _rows(self, cutoff: float, offer: str) -> TrueRows:
        design, bought, who = self.design, self.purchases, self.customers
        today = (cutoff - design.start_s) / DAY_S + _SAME_MOMENT_DAYS
        horizon = design.horizon_days if offer == "churn" else design.propensity_days
        value_horizon = design.value_days if offer == "churn" else horizon
        before = bought.day <= today
        within = ~before & (bought.day <= today + horizon)
        paid = ~before & (bought.day <= today + value_horizon)
        count = self._per_customer(before)
        last = np.full(design.customers, -np.inf)
        np.maximum.at(last, bought.customer[before], bought.day[before])
        active = np.flatnonzero(last > today - design.active_days)
        refunded = (bought.returned_day > today) & (bought.returned_day <= today + value_horizon)
        refunded_before = bought.returned_day <= today
        spend = self._per_customer(paid, bought.amount) - self._per_customer(refunded, bought.amount)
        monetary = self._per_customer(before, bought.amount) - self._per_customer(refunded_before, bought.amount)
        is_over = today + value_horizon <= design.days + 2 * _SAME_MOMENT_DAYS
        bought_within = self._per_customer(within)[active]
        history = History(
            cutoff=np.full(len(active), cutoff),
            customer=active,
            customer_id=who.name[active],
            purchases=count[active],
            recency_days=today - last[active],
            monetary=monetary[active],
            label=(bought_within > 0) == (offer == "propensity"),
            purchases_within=bought_within,
            spend=spend[active] if is_over else np.full(len(active), np.nan),
        )
        leaves = np.where(count == 1, who.leaves_at_first, who.leaves)[active]

        def exposure(start: Floats | float, end: float) -> Floats:
            weighted: Floats = self.season.weighted(end) - self.season.weighted(start)
            return who.per_day[active] * weighted

        return true_rows(
            design,
            offer,
            history,
            left_after_last=leaves,
            leaves=who.leaves[active],
            since_last=exposure(last[active], today),
            exposure=lambda days: exposure(today, today + days),
            kept_amount=who.basket[active] * (1 - who.returns[active]),
        )

    def _per_customer(self, chosen: npt.NDArray[np.bool_], weight: Floats | None = None) -> Floats:
        weights = None if weight is None else weight[chosen]
        return np.bincount(self.purchases.customer[chosen], weights, self.design.customers).astype(np.float64)


def simulate(design: ShopDesign | None = None, seed: int = 0) -> SimulatedShop:
    """Draw a shop.

    Args:
        design: How it works; None stands for the defaults.
        seed: The same design and seed give the same shop.
    """
    design = ShopDesign() if design is None else design
    random = np.random.default_rng([_STREAM, seed])
    customers, risk = _draw_customers(design, random)
    purchases = _draw_purchases(design, customers, random)
    return SimulatedShop(design, seed, customers, purchases, _attributes(design, customers, risk, random))


def _draw_customers(design: ShopDesign, random: np.random.Generator) -> tuple[Customers, Floats]:
    """The customers, and how likely they are to leave, on a scale with mean 0 and standard deviation 1."""
    n, correlation = design.customers, design.risk_value_correlation
    risk, other, pace = random.standard_normal((3, n))
    worth = correlation * risk + np.sqrt(1 - correlation**2) * other
    leaves = expit(logit(design.leave_chance) + design.leave_spread * risk)
    customers = Customers(
        name=np.array([f"c{number:06}" for number in range(n)], dtype=object),
        joined_day=random.random(n) * design.days * JOINING_SHARE,
        per_day=np.exp(design.interval_spread * pace) / design.interval_days,
        leaves=leaves,
        leaves_at_first=1 - (1 - leaves) * (1 - design.one_time_share),
        basket=design.basket * np.exp(design.basket_spread * worth),
        returns=random.random(n) * 2 * design.return_share,
    )
    return customers, risk


def _draw_purchases(design: ShopDesign, customers: Customers, random: np.random.Generator) -> Purchases:
    season = Season(design)
    n, end = design.customers, float(season.weighted(design.days))
    # The customers who are still buying, and the weighted time of the latest purchase of each.
    buying, at = np.arange(n), season.weighted(customers.joined_day)
    who, when = [buying], [customers.joined_day]
    leaves = customers.leaves_at_first
    while len(buying):
        stays = random.random(len(buying)) >= leaves[buying]
        buying, at = buying[stays], at[stays]
        at = at + random.exponential(1.0, len(buying)) / customers.per_day[buying]
        early = at <= end
        buying, at = buying[early], at[early]
        who.append(buying)
        when.append(season.day(at))
        leaves = customers.leaves
    customer, day = np.concatenate(who), np.concatenate(when)
    order = np.lexsort((day, customer))
    customer, day = customer[order], day[order]
    day = _whole_milliseconds(day)
    noise = random.standard_normal(len(day)) * design.amount_spread - design.amount_spread**2 / 2
    returned = random.random(len(day)) < customers.returns[customer]
    returned_day = np.where(returned, _whole_milliseconds(day + random.random(len(day)) * design.return_days), np.inf)
    return Purchases(customer, day, (customers.basket[customer] * np.exp(noise)).round(2), returned_day)


def _whole_milliseconds(day: Floats) -> Floats:
    return np.round(day * DAY_S, 3) / DAY_S


def _attributes(
    design: ShopDesign, customers: Customers, risk: Floats, random: np.random.Generator
) -> dict[str, Floats]:
    """What the customer table says: nothing where the noise is infinite."""
    noise = random.standard_normal((4, design.customers))
    if np.isinf(design.attribute_noise):
        return {}
    error = design.attribute_noise * noise
    return {
        "usual_interval_days": np.exp(error[0]) / customers.per_day,
        "usual_basket": customers.basket * np.exp(error[1]),
        "dissatisfaction": risk + error[2],
        "returned_share": customers.returns * np.exp(error[3]),
    }
