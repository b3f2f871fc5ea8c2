"""How alerts and profit of the churn offer change with the value horizon.

A customer who is kept goes on buying, so a longer value horizon makes keeping worth more. For each horizon, spend of
the customers who stayed is learnt again from the training cut-offs whose spend is known before the test begins; the
thresholds and the price of the budget follow. Profit is paid with each customer's own spend before the cut-off, over
the same horizon, so that all horizons can be compared on the same test rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from feature_store.offline.store import OfflineStore
from feature_store.sql import fill_table
from feature_store.state.layout import DAY_S, Floats
from training.arrays import Bools, Index
from training.config import Offer
from training.data.dataset import Rows
from training.evaluation.policies import DYNAMIC, threshold_contacts
from training.evaluation.scored_rows import ScoredRows, own_spend
from training.evaluation.scorer import EvaluationScorer
from training.evidence import HorizonEffect
from training.graph.thresholds import threshold
from training.models.learners import Learner
from training.statistics import total_intervals

HORIZONS_DAYS: Final = (28.0, 90.0, 180.0)
MIN_ROWS: Final = 200
"""Minimum number of rows to learn spend from."""

SPEND_SQL: Final = """
    SELECT coalesce(sum(try_cast(round(amount * 1e6) AS HUGEINT)), 0)::DOUBLE / 1e6 AS spend, row
    FROM events JOIN stayed USING (customer_id)
    WHERE event_type = $event AND t > cutoff AND t <= cutoff + $horizon_s
    GROUP BY row"""


@dataclass(frozen=True)
class _Horizon:
    """Calibration and test rows with the values of a horizon, and which test rows are alerted within the budget."""

    calibration: ScoredRows
    test: ScoredRows
    alerts: Bools


def horizon_effects(
    scorer: EvaluationScorer, learners: Mapping[str, Learner], source: OfflineStore
) -> list[HorizonEffect]:
    """A line for each of HORIZONS_DAYS and the config's; none for a snapshot.

    Args:
        scorer: The evaluation models.
        learners: By target; spend is learnt by the one chosen for the customers who stay.
        source: The source, still open.
    """
    config = scorer.config
    if scorer.table.plan is None or "stay_spend" not in learners:
        return []
    calibration, test = scorer.calibration_rows("churn"), scorer.test_rows("churn")
    offer, minimum = config.economics.offer("churn"), config.economics.threshold_min
    own = _Horizon(calibration, test, threshold_contacts(offer, calibration, test, minimum)[DYNAMIC].weight > 0)
    lines = []
    for days in sorted({*HORIZONS_DAYS, config.economics.horizon_days}):
        index = _training_rows(scorer, days)
        if days == config.economics.horizon_days:
            lines.append(_effect(scorer, offer, days, len(index), own, own.alerts))
        elif len(index) < MIN_ROWS:
            lines.append(HorizonEffect(horizon_days=days, learnt_from=len(index)))
        else:
            other = _with_values(scorer, learners["stay_spend"], source, days, index, own)
            lines.append(_effect(scorer, offer, days, len(index), other, own.alerts))
    return lines


def _training_rows(scorer: EvaluationScorer, days: float) -> Index:
    """Rows to learn from: training rows of customers who stayed, whose spend is known before the test begins."""
    rows, split = scorer.table.rows, scorer.table.splits["churn"]
    index = split.evaluation.everything
    stayed = rows.churn[index] == 0
    known = rows.cutoff[index] + days * DAY_S <= rows.cutoff[split.test].min() + 1e-3
    return np.asarray(index[stayed & known])


def _with_values(
    scorer: EvaluationScorer, learner: Learner, source: OfflineStore, days: float, index: Index, own: _Horizon
) -> _Horizon:
    config, rows, split = scorer.config, scorer.table.rows, scorer.table.splits["churn"]
    margin, matrix = config.economics.margin, scorer.models.matrix
    spend = np.maximum(_spend_after(source, rows.take(index), config.economics.event, days), 0.0)
    model = learner.fit(matrix(rows.state[index]), spend, scorer.seed)

    def scored(block: ScoredRows, at: Index) -> ScoredRows:
        part = rows.take(at)
        return replace(
            block,
            value=margin * model.predict(matrix(part.state).astype(np.float64)),
            realised_value=margin * own_spend(part, config.churn.horizon_days, days),
            stayers=None,
        )

    calibration, test = scored(own.calibration, split.evaluation.calibration), scored(own.test, split.test)
    contacts = threshold_contacts(config.economics.offer("churn"), calibration, test, config.economics.threshold_min)
    return _Horizon(calibration, test, contacts[DYNAMIC].weight > 0)


def _spend_after(source: OfflineStore, rows: Rows, event: str, days: float) -> Floats:
    """Spend ``[n]`` of customers in this number of days after their cut-offs."""
    columns = {"row": "BIGINT", "customer_id": "VARCHAR", "cutoff": "DOUBLE"}
    of_rows = zip(range(len(rows)), rows.customer_id.tolist(), rows.cutoff.tolist(), strict=True)
    fill_table(source.connection, "stayed", columns, list(of_rows))
    try:
        found = source.connection.execute(SPEND_SQL, {"event": event, "horizon_s": days * DAY_S}).fetchnumpy()
    finally:
        source.connection.execute("DROP TABLE stayed")
    spend = np.zeros(len(rows))
    spend[np.asarray(found["row"], dtype=np.intp)] = np.ma.filled(found["spend"], 0.0)
    return spend


def _effect(
    scorer: EvaluationScorer, offer: Offer, days: float, learnt_from: int, horizon: _Horizon, own: Bools
) -> HorizonEffect:
    test, alerts = horizon.test, horizon.alerts
    at = threshold(test.value, test.terms(offer), 0.0, scorer.config.economics.threshold_min)
    profit = test.contributions(alerts[:, np.newaxis].astype(np.float64), offer)
    (bounds,) = total_intervals(profit, test.customer)
    return HorizonEffect(
        horizon_days=days,
        learnt_from=learnt_from,
        mean_value=float(test.value.mean()),
        never=float((at >= 1).mean()),
        paying=float((test.probability >= at).mean()),
        alerts=float(alerts.mean()),
        same_alerts=float(own[alerts].mean()) if alerts.any() else 0.0,
        profit=float(profit.sum()),
        low=bounds.low,
        high=bounds.high,
    )
