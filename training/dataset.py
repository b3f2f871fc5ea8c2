"""Rows to learn from: customers as they were at a cut-off (state), and what they did afterwards (labels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.offline import OfflineStore
from feature_store.state import DAY_S, Floats, StateLayout
from training.config import TrainingConfig

# More returned than bought counts as no spend.
LABELS_SQL: Final = """
    SELECT customer_id,
        count(*) FILTER (event_type = $churn_event AND t > $cutoff AND t <= $cutoff + $churn_s) = 0 AS churn,
        count(*) FILTER (event_type = $propensity_event AND t > $cutoff AND t <= $cutoff + $propensity_s) > 0
            AS propensity,
        coalesce(sum(amount) FILTER (event_type = $spend_event AND t > $cutoff AND t <= $cutoff + $spend_s), 0)
            AS spend,
        ($cutoff - max(t) FILTER (event_type = $churn_event AND t <= $cutoff)) / 86400 AS recency_days
    FROM events GROUP BY customer_id
    HAVING bool_or(event_type = $churn_event AND t > $cutoff - $active_s AND t <= $cutoff)
    ORDER BY customer_id"""
"""Labels of one cut-off, for the customers active before it. A state reads up to the cut-off, a label from after it."""


@dataclass(frozen=True)
class Rows:
    """Customers at cut-offs, row by row.

    cutoff: float64 [n] unix seconds; state: float64 [n, slots] as of it; churn, propensity and spend: the labels;
    recency_days: days since the last event of the churn type, which is the baseline.
    """

    cutoff: Floats
    customer_id: npt.NDArray[np.object_]
    state: Floats
    churn: npt.NDArray[np.bool_]
    propensity: npt.NDArray[np.bool_]
    spend: Floats
    recency_days: Floats

    def __len__(self) -> int:
        return len(self.cutoff)

    def at(self, cutoffs: Sequence[float]) -> Rows:
        """The rows of some cut-offs."""
        keep = np.isin(self.cutoff, cutoffs)
        return Rows(**{name: column[keep] for name, column in vars(self).items()})


def build_rows(
    source: OfflineStore,
    layout: StateLayout,
    config: TrainingConfig,
    cutoffs: Sequence[float],
    done: Callable[[], None] = lambda: None,
) -> Rows:
    """Rows of all cut-offs; ``done`` is called after each."""
    parts = []
    for cutoff in cutoffs:
        parts.append(_rows_at(source, layout, config, cutoff))
        done()
    columns = [vars(part) for part in parts]
    return Rows(**{name: np.concatenate([column[name] for column in columns]) for name in columns[0]})


def _rows_at(source: OfflineStore, layout: StateLayout, config: TrainingConfig, cutoff: float) -> Rows:
    labels = source.connection.execute(
        LABELS_SQL,
        {
            "cutoff": cutoff,
            "churn_event": config.churn.event,
            "churn_s": config.churn.horizon_days * DAY_S,
            "active_s": config.churn.active_days * DAY_S,
            "propensity_event": config.propensity.event,
            "propensity_s": config.propensity.horizon_days * DAY_S,
            "spend_event": config.economics.event,
            "spend_s": config.economics.horizon_days * DAY_S,
        },
    ).fetchnumpy()
    states = source.states(layout, cutoff)
    ids = np.asarray(labels["customer_id"], dtype=object)
    state = states.slots[np.searchsorted(states.customer_ids.astype(str), ids.astype(str))]
    return Rows(
        cutoff=np.full(len(ids), cutoff),
        customer_id=ids,
        state=state,
        churn=np.asarray(labels["churn"], dtype=bool),
        propensity=np.asarray(labels["propensity"], dtype=bool),
        spend=np.maximum(labels["spend"], 0.0),
        recency_days=np.asarray(labels["recency_days"], dtype=np.float64),
    )
