"""The negative control: with values shuffled among customers, the dynamic threshold must not be shown ahead.

Shuffled values are a value model of pure noise. If the comparison of policies showed such a model ahead of a single
threshold, it would pay policies in the model's own currency, and its other results would mean nothing (Lipsitch et al.,
2010, "Negative controls").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from training.config import Offer
from training.evaluation.policies import DYNAMIC, SINGLE, profit_contributions, threshold_contacts
from training.evaluation.scored_rows import ScoredRows
from training.evidence import NegativeControl
from training.statistics import total_intervals

SHUFFLES: Final = 20
MAX_SHOWN_AHEAD: Final = 1
"""Number of the shuffles that may be shown ahead: one in 40 is expected by chance if nothing differs."""


def run_negative_control(
    name: str,
    offer: Offer,
    calibration: ScoredRows,
    test: ScoredRows,
    *,
    threshold_min: float = 0.01,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> NegativeControl:
    """Compare dynamic and single threshold at the offer's budget, with the model's values shuffled.

    Args:
        name: The offer.
        offer: Costs and rates.
        calibration: Rows on which the price of the budget is found; their values are shuffled too.
        test: Rows on which profits are computed; their realised values are not shuffled.
        threshold_min: Lower bound of the dynamic threshold.
        shuffles: Number of shuffles.
        seed: Of the shuffles.

    Returns:
        Mean lead of the dynamic threshold in realised profit, and in how many shuffles it is shown ahead.
    """
    random = np.random.default_rng(seed)

    def shuffled(rows: ScoredRows) -> ScoredRows:
        return replace(rows, value=random.permutation(rows.value))

    leads = []
    for _ in range(shuffles):
        worthless = shuffled(test)
        contacts = threshold_contacts(offer, shuffled(calibration), worthless, threshold_min)
        compared = {policy: contacts[policy] for policy in (DYNAMIC, SINGLE)}
        dynamic, single = profit_contributions(compared, worthless, offer).T
        leads.append(dynamic - single)
    ahead = sum(bounds.low > 0 for bounds in total_intervals(np.column_stack(leads), test.customer))
    return NegativeControl(
        offer=name,
        shuffles=shuffles,
        mean_lead=float(np.sum(leads)) / shuffles,
        shown_ahead=ahead,
        passed=ahead <= MAX_SHOWN_AHEAD,
    )
