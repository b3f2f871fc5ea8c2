"""Rows for training: customers as they were at a cut-off (state), and what they did afterwards (labels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt

from feature_store.config import Snapshot
from feature_store.errors import InputError
from feature_store.offline.point_in_time import sample_condition
from feature_store.offline.store import OfflineStates, OfflineStore
from feature_store.sql import identifier
from feature_store.state.layout import DAY_S, Floats, StateLayout
from training.arrays import Index
from training.config import TrainingConfig

MAX_BYTES: Final = 2**30
"""Maximum size in memory of the states of all rows."""

UNTIL_SLACK_S: Final = 1e-3
"""Tolerance: cut-offs are counted back in floating point, so a horizon may end slightly after the data."""

# Spend below 0 (more returned than bought) counts as 0. A label is NULL if the data ends before the horizon does.
LABELS_SQL: Final = """
    SELECT customer_id,
        CASE WHEN $cutoff + $churn_s <= $until THEN
            (count(*) FILTER (event_type = $churn_event AND t > $cutoff AND t <= $cutoff + $churn_s) = 0)::DOUBLE
        END AS churn,
        CASE WHEN $cutoff + $propensity_s <= $until THEN
            (count(*) FILTER (event_type = $propensity_event AND t > $cutoff AND t <= $cutoff + $propensity_s)
            > 0)::DOUBLE END AS propensity,
        CASE WHEN $cutoff + $spend_s <= $until THEN greatest(0, coalesce(
            sum(try_cast(round(amount * 1e6) AS HUGEINT))
            FILTER (event_type = $spend_event AND t > $cutoff AND t <= $cutoff + $spend_s), 0)::DOUBLE / 1e6)
        END AS spend,
        CASE WHEN $cutoff + $propensity_s <= $until
            AND bool_or(event_type = $propensity_event AND t > $cutoff AND t <= $cutoff + $propensity_s) THEN
            greatest(0, coalesce(sum(try_cast(round(amount * 1e6) AS HUGEINT))
            FILTER (event_type = $spend_event AND t > $cutoff AND t <= $cutoff + $propensity_s), 0)::DOUBLE / 1e6)
            / greatest(1, count(*) FILTER (event_type = $spend_event AND t > $cutoff AND t <= $cutoff + $propensity_s
                AND coalesce(amount, 0) >= 0)) -- a refund is no purchase
        END AS purchase_amount,
        count(DISTINCT floor(($cutoff - t) / $churn_s)) FILTER (event_type = $churn_event AND t <= $cutoff)
            AS kept_windows,
        ($cutoff - min(t) FILTER (event_type = $churn_event AND t <= $cutoff)) / 86400 AS tenure_days,
        ($cutoff - max(t) FILTER (event_type = $churn_event AND t <= $cutoff)) / 86400 AS recency_days,
        count(*) FILTER (event_type = $churn_event AND t <= $cutoff)::DOUBLE AS frequency,
        coalesce(sum(try_cast(round(amount * 1e6) AS HUGEINT))
            FILTER (event_type = $spend_event AND t <= $cutoff), 0)::DOUBLE / 1e6 AS monetary
    FROM labelling GROUP BY customer_id
    HAVING bool_or(event_type = $churn_event AND t > $cutoff - $active_s AND t <= $cutoff)
    ORDER BY customer_id"""
"""Labels at one cut-off, for the customers active before it. States use events up to the cut-off, labels later ones.

Amounts are added as whole millionths, so that the sum does not depend on the order."""


@dataclass(frozen=True)
class Rows:
    """Customers at cut-offs, one row each; every column is ``[n]`` unless stated otherwise.

    Attributes:
        cutoff: Unix seconds; 0 for a snapshot.
        customer_id: The id.
        state: State as of the cut-off, float64 ``[n, slots]``.
        churn: Label, 0 or 1, NaN if unknown.
        propensity: Label, 0 or 1, NaN if unknown.
        spend: Amount over the value horizon, NaN if unknown.
        stay_spend: The same of customers who did not churn, NaN for others: what a win of the churn offer brings.
        purchase_amount: Mean amount of a purchase within the propensity horizon, NaN for customers without one: what a
            win of the propensity offer brings.
        kept_windows: Number of spans of one churn horizon each, counted back from the cut-off, with a churn event.
        tenure_days: Days since the first churn event.
        recency_days: Days since the last event of the churn type, the baseline.
        frequency: Number of such events up to the cut-off.
        monetary: Spend up to the cut-off.
        contact_cost: Of the customer, NaN if the config's applies.
        offer_cost: Of the customer, NaN if the config's applies.
        group: Number of the group of rows that must stay together when rows are split.
    """

    cutoff: Floats
    customer_id: npt.NDArray[np.object_]
    state: Floats
    churn: Floats
    propensity: Floats
    spend: Floats
    stay_spend: Floats
    purchase_amount: Floats
    kept_windows: Floats
    tenure_days: Floats
    recency_days: Floats
    frequency: Floats
    monetary: Floats
    contact_cost: Floats
    offer_cost: Floats
    group: Index

    def __len__(self) -> int:
        return len(self.cutoff)

    def take(self, index: Index | npt.NDArray[np.bool_]) -> Rows:
        """The rows at these indexes, or where a mask is true."""
        return Rows(**{name: column[index] for name, column in vars(self).items()})

    def at(self, cutoffs: Sequence[float]) -> Rows:
        """The rows of some cut-offs."""
        return self.take(np.isin(self.cutoff, cutoffs))

    def narrowed(self, slots: Sequence[int]) -> Rows:
        """The same rows with only these slots."""
        return Rows(**vars(self) | {"state": self.state[:, list(slots)]})

    def label(self, target: str) -> Floats:
        """The label column of one of TARGETS."""
        return np.asarray(getattr(self, target))


def build_rows(
    source: OfflineStore,
    layout: StateLayout,
    config: TrainingConfig,
    cutoffs: Sequence[float],
    done: Callable[[], None] = lambda: None,
    *,
    newest_known: float | None = None,
) -> Rows:
    """Build the rows of all cut-offs.

    Customers are sampled at random if there would be more than the config's ``most_rows`` or states of more than
    MAX_BYTES.

    Args:
        source: The open source.
        layout: Slots of the state.
        config: Definitions of the labels.
        cutoffs: Unix seconds, ascending.
        done: Called after each cut-off.
        newest_known: The newest cut-off whose customers may be counted to size the sample; None for the newest of all.
    """
    counted = cutoffs[-1] if newest_known is None else newest_known
    customers = _sample_condition(source, _sample_share(source, layout, config, len(cutoffs), counted))
    # The labels of every cut-off read this table, which has only the types of events that they depend on.
    source.connection.execute(
        f"CREATE OR REPLACE TABLE labelling AS FROM events WHERE event_type IN (?, ?, ?) AND {customers}",
        [config.churn.event, config.propensity.event, config.economics.event],
    )
    parts = []
    for cutoff, states in zip(cutoffs, source.states_at(layout, cutoffs, customers=customers), strict=True):
        parts.append(_rows_at(source, states, config, cutoff))
        done()
    source.connection.execute("DROP TABLE labelling")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["group"] = np.unique(columns["customer_id"].astype(str), return_inverse=True)[1]
    return Rows(**columns)


def _sample_condition(source: OfflineStore, share: float) -> str:
    """SQL condition for a share of the customers, evaluated once per customer rather than once per event."""
    if share == 1:
        return sample_condition(share)
    source.connection.execute(
        "CREATE OR REPLACE TABLE sampled_customers AS FROM (SELECT DISTINCT customer_id FROM events) WHERE "
        f"{sample_condition(share)}"
    )
    return "customer_id IN (FROM sampled_customers)"


def _sample_share(
    source: OfflineStore, layout: StateLayout, config: TrainingConfig, cutoffs: int, counted: float
) -> float:
    """The share of customers to sample for a number of cut-offs, by the number of active customers at one of them."""
    query = """
        SELECT count(DISTINCT customer_id) FROM events
        WHERE event_type = $event AND t > $cutoff - $active_s AND t <= $cutoff"""
    parameters = {"event": config.churn.event, "active_s": config.churn.active_days * DAY_S, "cutoff": counted}
    ((active,),) = source.connection.execute(query, parameters).fetchall()
    rows = max(active, 1) * cutoffs
    max_rows = min(config.evaluation.most_rows, MAX_BYTES // (8 * len(layout.features)))
    return float(min(1.0, max_rows / rows))


def _rows_at(source: OfflineStore, states: OfflineStates, config: TrainingConfig, cutoff: float) -> dict[str, Any]:
    labels = source.connection.execute(
        LABELS_SQL,
        {
            "cutoff": cutoff,
            "until": source.summary.end + UNTIL_SLACK_S,
            "churn_event": config.churn.event,
            "churn_s": config.churn.horizon_days * DAY_S,
            "active_s": config.churn.active_days * DAY_S,
            "propensity_event": config.propensity.event,
            "propensity_s": config.propensity.horizon_days * DAY_S,
            "spend_event": config.economics.event,
            "spend_s": config.economics.horizon_days * DAY_S,
        },
    ).fetchnumpy()
    ids = np.asarray(labels.pop("customer_id"), dtype=object)
    state = states.slots[np.searchsorted(states.customer_ids.astype(str), ids.astype(str))]
    columns = {name: np.ma.filled(column.astype(np.float64), np.nan) for name, column in labels.items()}
    unknown = np.full(len(ids), np.nan)
    return columns | {
        "stay_spend": np.where(columns["churn"] == 0, columns["spend"], np.nan),
        "cutoff": np.full(len(ids), cutoff),
        "customer_id": ids,
        "state": state,
        "contact_cost": unknown,
        "offer_cost": unknown,
    }


def snapshot_rows(source: OfflineStore, layout: StateLayout, config: TrainingConfig) -> Rows:
    """Build the rows of a snapshot: one for each customer with a label.

    Raises:
        InputError: If a column cannot be read, or the label has other values than 0 and 1.
    """
    snapshot = config.snapshot
    if snapshot is None:
        raise InputError("this config has no [snapshot]")
    expressions = {name: f"{identifier(column)}::DOUBLE" for name, column in _columns(snapshot).items()}
    expressions["grouped"] = f"{identifier(snapshot.group)}::VARCHAR" if snapshot.group else "customer_id"
    selected = ", ".join(f"{sql} AS {name}" for name, sql in expressions.items())
    try:
        query = f"SELECT customer_id, {selected} FROM attributes ORDER BY customer_id"
        columns = source.connection.execute(query).fetchnumpy()
    except duckdb.Error as error:
        raise InputError(f"snapshot: a column named there cannot be read: {str(error).splitlines()[0]}") from error
    ids, group = (np.asarray(np.ma.filled(columns.pop(name), ""), dtype=object) for name in ("customer_id", "grouped"))
    numbers = {name: np.ma.filled(column.astype(np.float64), np.nan) for name, column in columns.items()}
    label = numbers.pop("label")
    if not np.isin(label[np.isfinite(label)], (0.0, 1.0)).all():
        raise InputError(f"snapshot.label: column '{snapshot.label}' has values other than 0 and 1")
    unknown = np.full(len(ids), np.nan)
    spend = np.maximum(numbers.get("value", unknown), 0.0)
    of_churn = snapshot.target == "churn"
    rows = Rows(
        cutoff=np.zeros(len(ids)),
        customer_id=ids,
        state=source.states(layout, source.summary.end).slots,
        churn=label if of_churn else unknown,
        propensity=unknown if of_churn else label,
        spend=spend,
        stay_spend=np.where(label == 0, spend, np.nan) if of_churn else unknown,
        purchase_amount=unknown if of_churn else np.where(label == 1, spend, np.nan),
        kept_windows=unknown,
        tenure_days=unknown,
        recency_days=unknown,
        frequency=unknown,
        monetary=numbers.get("value", unknown),
        contact_cost=numbers.get("contact_cost", unknown),
        offer_cost=numbers.get("offer_cost", unknown),
        group=np.unique(group.astype(str), return_inverse=True)[1],
    )
    usable = np.isfinite(label) & (np.isfinite(rows.spend) if snapshot.value else True)
    return rows.take(usable)


def _columns(snapshot: Snapshot) -> dict[str, str]:
    names = ("label", "value", "contact_cost", "offer_cost")
    return {name: column for name in names if (column := getattr(snapshot, name)) is not None}
