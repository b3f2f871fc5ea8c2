"""Cost-sensitive metrics: expected savings (Bahnsen et al., 2014) and expected maximum profit (EMPC, by empulse).

The cost of a decision is counted against the best decision for the observed outcome:

    contacted, positive outcome:       max(-g, 0)   with g = s * (v - d) - c, the expected gain of contacting
    not contacted, positive outcome:   max(g, 0)
    contacted, negative outcome:       r * d + c
    not contacted, negative outcome:   0

Differences between decisions equal those of ``thresholds.gain``, and perfect knowledge of the outcomes costs nothing.
Values are realised ones (decisions use the model's). What customers who stayed add to the values of those who left
(``training.evaluation.stayers``) counts for them, whatever the decision. So savings are 1 for perfect knowledge, 0 for
the better of contacting everybody and nobody, and negative below that.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from feature_store.state.layout import Floats
from training.arrays import Bools
from training.config import Offer
from training.evaluation.policies import tuned_threshold
from training.evaluation.scored_rows import ScoredRows
from training.graph.thresholds import Terms, threshold

# Verbraken et al. (2013) use Beta(6, 14) for the share of churners that an offer retains: this is alpha + beta.
BETA_TOTAL: Final = 20.0


def cost_metrics(
    offer: Offer, calibration: ScoredRows, test: ScoredRows, *, threshold_min: float = 0.01
) -> dict[str, float]:
    """Cost-sensitive metrics on the test rows, without a budget.

    Args:
        offer: Costs and rates.
        calibration: Rows on which the single threshold is tuned.
        test: Rows on which decisions are evaluated.
        threshold_min: Lower bound of the dynamic threshold.

    Returns:
        ``expected_savings_dynamic`` and ``expected_savings_single``, 0 if contacting everybody or nobody is perfect
        already; ``empc``, the expected maximum profit per customer when ranking by probability, with a success rate
        that is Beta distributed around the offer's; ``empc_share``, the share of customers contacted for it.
    """
    terms = test.terms(offer)
    costs = cost_matrix(test.realised_value, terms)
    dynamic = test.probability >= threshold(test.value, terms, 0.0, threshold_min)
    single = test.probability >= tuned_threshold(calibration, offer, np.inf)
    possible = test.value > terms.offer_cost
    dynamic, single = possible & dynamic, possible & single
    profit, share = expected_maximum_profit(test, offer)
    correction = np.zeros(len(test.label)) if test.stayers is None else test.stayers.correction
    worth_winning = costs["fn_cost"] > 0

    def cost(contacted: Bools) -> float:
        if_left = np.where(contacted, costs["tp_cost"], costs["fn_cost"])
        if_not = np.where(contacted, costs["fp_cost"], 0.0)
        missed = offer.success_rate * correction @ (worth_winning.astype(np.float64) - contacted)
        return float(np.where(test.label, if_left, if_not).sum() + missed)

    best_uniform = min(cost(np.zeros_like(test.label)), cost(np.ones_like(test.label)))

    def savings(chosen: Bools) -> float:
        return 1 - cost(chosen) / best_uniform if best_uniform > 0 else 0.0

    return {
        "expected_savings_dynamic": savings(dynamic),
        "expected_savings_single": savings(single),
        "empc": profit,
        "empc_share": share,
    }


def cost_matrix(value: Floats, terms: Terms) -> dict[str, Any]:
    """The costs above for values ``[n]``: of true positives, false negatives and false positives."""
    won = terms.success_rate * (value - terms.offer_cost) - terms.contact_cost
    wasted = np.zeros(len(value)) + terms.redemption_rate * terms.offer_cost + terms.contact_cost
    return {"tp_cost": np.maximum(-won, 0.0), "fn_cost": np.maximum(won, 0.0), "fp_cost": wasted}


def expected_maximum_profit(rows: ScoredRows, offer: Offer) -> tuple[float, float]:
    """EMPC per customer and the share of customers contacted (Verbraken et al., 2013).

    EMPC is defined for one value and one cost: the mean realised value of the positives and the mean costs are used. It
    assumes that all negatives who are contacted take the offer; with ``r * d`` as the cost of the offer and
    ``v - d + r * d`` as the value, it equals the gain used here.
    """
    from empulse.metrics import empc_score, mpc_score  # noqa: PLC0415 - takes seconds

    terms, rate = rows.terms(offer), offer.success_rate
    positives = int(rows.label.sum())
    total = float(rows.realised_value[rows.label].sum())
    if rows.stayers is not None:
        total += float(rows.stayers.correction.sum())
    value = total / max(positives, 1)
    cost = float(np.mean(terms.offer_cost))
    given_away = offer.redemption_rate * cost
    figures = {
        "clv": value - cost + given_away,
        "incentive_cost": given_away,
        "contact_cost": float(np.mean(terms.contact_cost)),
    }
    certain = rate in (0.0, 1.0)  # a Beta distribution cannot have this mean
    figures |= {"accept_rate": rate} if certain else {"alpha": BETA_TOTAL * rate, "beta": BETA_TOTAL * (1 - rate)}
    metric: Any = mpc_score if certain else empc_score
    label = rows.label.astype(np.int64)
    profit, share = (f(label, rows.probability, **figures) for f in (metric, metric.optimal_rate))
    return float(profit), float(share)
