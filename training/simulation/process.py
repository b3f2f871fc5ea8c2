"""The buying process of a customer, in closed form.

Time is measured in *exposure*: days weighted by the season, multiplied by the customer's purchases per day, so that a
customer who stays makes purchases at rate 1. After each purchase the customer leaves with chance ``leaves``. All
functions work on arrays, one element per customer.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.simulation.design import YEAR_DAYS, ShopDesign

_GRID_STEP_DAYS: Final = 0.05


class Season:
    """Days of the history, weighted by how much is bought on them."""

    def __init__(self, design: ShopDesign) -> None:
        """The season of a shop.

        Args:
            design: Its amplitude, its peak and the length of the history.
        """
        self._amplitude = design.season_amplitude
        self._peak = design.season_peak_day
        self._days = np.arange(0.0, design.days + YEAR_DAYS, _GRID_STEP_DAYS)
        self._weighted = self.weighted(self._days)

    def weighted(self, day: Floats | float) -> Floats:
        """Weighted days from an arbitrary origin up to ``day``."""
        year = 2 * np.pi / YEAR_DAYS
        return np.asarray(day + self._amplitude / year * np.sin(year * (np.asarray(day) - self._peak)))

    def day(self, weighted: Floats) -> Floats:
        """The inverse of ``weighted``; a moment far beyond the history becomes the last day that is tabulated."""
        return np.asarray(np.interp(weighted, self._weighted, self._days))


def staying_probability(leaves: Floats, exposure: Floats) -> Floats:
    """Probability that a customer is still there, given no purchase since the last one.

    Args:
        leaves: Chance to leave after that purchase.
        exposure: Exposure since it.
    """
    waited = (1 - leaves) * np.exp(-exposure)
    return np.asarray(waited / (leaves + waited))


def expected_purchases(leaves: Floats, exposure: Floats) -> Floats:
    """Expected number of purchases within ``exposure`` of a customer who is there at its beginning.

    With the chance ``leaves`` to leave after each purchase, the process ends at rate ``leaves``, so this is the
    integral of ``exp(-leaves * t)``.
    """
    return np.asarray(-np.expm1(-leaves * exposure) / leaves)


def expected_purchases_if_any(leaves: Floats, exposure: Floats, any_within: Floats) -> Floats:
    """Expected number of purchases within ``exposure``, if there is at least one within ``any_within`` of it."""
    none = np.exp(-any_within)
    without = none * expected_purchases(leaves, exposure - any_within)
    return np.asarray((expected_purchases(leaves, exposure) - without) / -np.expm1(-any_within))


def draw_purchases_if_any(
    leaves: Floats, exposure: Floats, any_within: Floats, random: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Draw numbers of purchases within ``exposure``, if there is at least one within ``any_within`` of it."""
    # The first waiting time is exponential, truncated to any_within.
    at = -np.log1p(random.random(len(leaves)) * np.expm1(-any_within))
    count = np.ones(len(leaves), dtype=np.int64)
    buying = np.arange(len(leaves))
    while len(buying):
        buying = buying[random.random(len(buying)) >= leaves[buying]]
        at[buying] += random.exponential(1.0, len(buying))
        buying = buying[at[buying] <= exposure[buying]]
        count[buying] += 1
    return count
