"""The design of a simulated shop: how its customers buy, leave and return goods, and what its offers do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

YEAR_DAYS: Final = 365.25


@dataclass(frozen=True)
class OfferDesign:
    """An offer of a simulated shop.

    An offer to keep a customer wins ``success_rate`` of those who would leave; an offer to buy wins one more purchase
    from ``success_rate`` of those who would buy. Of the customers on whom it has no such effect,
    ``redemption_rate`` redeem it all the same.

    Attributes:
        contact_cost: Cost of a contact, in the shop's currency.
        offer_cost: Cost of an offer that is redeemed.
        success_rate: Share won among the customers at whom the offer aims, on the day that it was measured.
        redemption_rate: Share that redeems among the others.
        budget_share: Share of the customers that may be contacted.
        success_drift: Relative change of the success rate per year: -0.5 halves it within a year.
        measured_days_before_end: How many days before the end of the history the success rate was measured.
    """

    contact_cost: float
    offer_cost: float
    success_rate: float
    redemption_rate: float
    budget_share: float
    success_drift: float = 0.0
    measured_days_before_end: float = 90.0

    def success_at(self, days_before_end: float) -> float:
        """The success rate this many days before the end of the history, in [0, 1]."""
        years = (self.measured_days_before_end - days_before_end) / YEAR_DAYS
        return min(max(self.success_rate * (1 + self.success_drift * years), 0.0), 1.0)


def _offers() -> dict[str, OfferDesign]:
    return {
        "churn": OfferDesign(0.10, 3.00, 0.20, 0.10, 0.10),
        "propensity": OfferDesign(0.05, 1.00, 0.20, 0.05, 0.20),
    }


@dataclass(frozen=True)
class ShopDesign:
    """How a simulated shop works; every attribute has a default that gives a plausible shop.

    Customers join at random times with their first purchase. While they stay, they buy as a Poisson process whose rate
    differs between customers and follows the season; after each purchase they leave with a chance that differs between
    customers (the BG/NBD model of Fader, Hardie and Lee, 2005, with a season). Leaving is never observed, but the
    probability that a customer has left is known exactly, given the purchases up to any moment.

    Attributes:
        customers: Number of customers.
        days: Length of the history.
        start_s: Its start, unix seconds.
        interval_days: Days between two purchases of the median customer.
        interval_spread: Standard deviation of the logarithm of that interval between customers.
        leave_chance: Chance of the median customer to leave after a purchase.
        leave_spread: Standard deviation of its log odds between customers.
        one_time_share: Additional chance to leave after the first purchase.
        basket: Mean amount of a purchase of the median customer.
        basket_spread: Standard deviation of its logarithm between customers.
        amount_spread: Standard deviation of the logarithm of the amounts of one customer.
        risk_value_correlation: Correlation between a customer's log odds to leave and the logarithm of its basket.
        return_share: Mean share of the purchases that are returned; customers differ between none and twice that.
        return_days: A return comes at most this many days after the purchase.
        season_amplitude: How far the rate of purchases rises and falls within the year: 0.3 is 30 %. Below 1.
        season_peak_day: The day of the history on which it is highest.
        attribute_noise: Standard deviation of the errors, on the logarithmic scale, with which the customer table
            shows how a customer behaves. 0 shows it exactly, infinity hides it.
        margin: Share of the spend that the shop earns.
        active_days: A customer is scored if it bought within as many days.
        horizon_days: Horizon of churn.
        value_days: Horizon over which the spend of a customer who stays is counted, at least that of churn.
        propensity_days: Horizon of propensity.
        offers: The offers, by the names ``churn`` and ``propensity``.
    """

    customers: int = 3000
    days: float = 400.0
    start_s: float = 1_704_067_200.0
    interval_days: float = 14.0
    interval_spread: float = 0.6
    leave_chance: float = 0.08
    leave_spread: float = 1.0
    one_time_share: float = 0.25
    basket: float = 40.0
    basket_spread: float = 0.8
    amount_spread: float = 0.5
    risk_value_correlation: float = 0.0
    return_share: float = 0.08
    return_days: float = 3.0
    season_amplitude: float = 0.2
    season_peak_day: float = 355.0
    attribute_noise: float = 0.2
    margin: float = 0.30
    active_days: float = 60.0
    horizon_days: float = 28.0
    value_days: float = 28.0
    propensity_days: float = 7.0
    offers: Mapping[str, OfferDesign] = field(default_factory=_offers)

    def __post_init__(self) -> None:
        """Check what the formulas rely on.

        Raises:
            ValueError: If a number is outside of its range.
        """
        shares = (self.leave_chance, self.one_time_share, self.season_amplitude, 2 * self.return_share)
        if not all(0 <= share < 1 for share in shares) or self.leave_chance == 0:
            raise ValueError(
                "leave_chance must be above 0; it, one_time_share, season_amplitude and twice "
                "return_share must be below 1 and not negative"
            )
        if not -1 <= self.risk_value_correlation <= 1:
            raise ValueError("risk_value_correlation must be between -1 and 1")
        if self.value_days < self.horizon_days:
            raise ValueError("value_days must be at least horizon_days")
        if self.customers < 1 or not self.days > 0 or not self.interval_days > 0 or not math.isfinite(self.days):
            raise ValueError("customers, days and interval_days must be positive")

    @property
    def end_s(self) -> float:
        """The end of the history, unix seconds."""
        return self.start_s + self.days * 86_400
