"""Cost-sensitive figures of the field, by empulse: savings and expected maximum profit (EMPC).

What a decision costs a customer is counted against the best one for the outcome that came:

    contacted, and meant by the offer:   max(-g, 0)   with g = s * (v - d) - c, the gain of winning them at times
    left alone, though meant:            max(g, 0)
    contacted, and not meant:            r * d + c
    left alone, and not meant:           0

Differences are those of ``thresholds.gain``, and who knows the outcomes pays nothing: savings are 1 for them, 0 for the
better of contacting everybody and nobody, and below 0 for worse than that.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats
from training.config import Offer
from training.evaluation.policies import Scored, tuned_threshold
from training.graph.thresholds import Terms, threshold

# Verbraken et al. (2013) take Beta(6, 14) for the share of leavers that an offer saves: this is its certainty.
BETA_TOTAL: Final = 20.0


def cost_metrics(offer: Offer, calibration: Scored, test: Scored, *, threshold_min: float = 0.01) -> dict[str, float]:
    """Figures on the test's rows, with no budget; the single threshold is the best one of the calibration block.

    expected_savings_dynamic, expected_savings_single: of the two thresholds' decisions, 0 where contacting everybody or
    nobody is perfect already. empc: expected maximum profit per customer of ranking by probability where the success
    rate is Beta distributed around the offer's, and empc_share: the share contacted then.
    """
    from empulse.metrics import expected_savings_score  # noqa: PLC0415 - takes seconds

    terms = test.terms(offer)
    costs = cost_matrix(test.value, terms)
    label = test.label.astype(np.int64)
    dynamic = test.probability >= threshold(test.value, terms, 0.0, threshold_min)
    single = test.probability >= tuned_threshold(calibration, offer, np.inf)
    possible = test.value > terms.offer_cost
    dynamic, single = possible & dynamic, possible & single
    profit, share = expected_maximum_profit(test, offer)
    best_plain = min(float(costs["fn_cost"][test.label].sum()), _cost_of_everybody(costs, test.label))

    def savings(chosen: npt.NDArray[np.bool_]) -> float:
        # empulse divides by the better plain decision's cost, and by next to nothing where that is free.
        return float(expected_savings_score(label, chosen.astype(np.float64), **costs)) if best_plain > 0 else 0.0

    return {
        "expected_savings_dynamic": savings(dynamic),
        "expected_savings_single": savings(single),
        "empc": profit,
        "empc_share": share,
    }


def cost_matrix(value: Floats, terms: Terms) -> dict[str, Any]:
    """The table above for values ``[n]``, by empulse's names."""
    won = terms.success_rate * (value - terms.offer_cost) - terms.contact_cost
    wasted = np.zeros(len(value)) + terms.redemption_rate * terms.offer_cost + terms.contact_cost
    return {"tp_cost": np.maximum(-won, 0.0), "fn_cost": np.maximum(won, 0.0), "fp_cost": wasted}


def _cost_of_everybody(costs: dict[str, Any], label: npt.NDArray[np.bool_]) -> float:
    return float(np.where(label, costs["tp_cost"], costs["fp_cost"]).sum())


def expected_maximum_profit(rows: Scored, offer: Offer) -> tuple[float, float]:
    """EMPC per customer and the share contacted, at the mean value of those meant and the mean costs.

    One value and one cost for all, as it is defined. empulse, like the literature, has all of those not meant take the
    offer; with ``r * d`` for the offer's cost and ``v - d + r * d`` for the value its formula is ours.
    """
    from empulse.metrics import empc_score, mpc_score  # noqa: PLC0415 - takes seconds

    terms, rate = rows.terms(offer), offer.success_rate
    value = float(rows.value[rows.label].mean()) if rows.label.any() else 0.0
    cost = float(np.mean(terms.offer_cost))
    given_away = offer.redemption_rate * cost
    figures = {
        "clv": value - cost + given_away,
        "incentive_cost": given_away,
        "contact_cost": float(np.mean(terms.contact_cost)),
    }
    certain = rate in (0.0, 1.0)  # no Beta distribution has such a mean
    figures |= {"accept_rate": rate} if certain else {"alpha": BETA_TOTAL * rate, "beta": BETA_TOTAL * (1 - rate)}
    metric: Any = mpc_score if certain else empc_score
    label = rows.label.astype(np.int64)
    profit, share = (f(label, rows.probability, **figures) for f in (metric, metric.optimal_rate))
    return float(profit), float(share)
