"""Reliability of the value models: predicted against realised value of the customers who were won without an offer.

For churn these are the customers who stayed, for propensity those who bought. Rows are those of the test cut-offs.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.arrays import Bools, Index
from training.data.cutoffs import VALUE_TARGETS
from training.evaluation.scorer import EvaluationScorer
from training.evidence import Ratio, ValueBin, ValueReliability, hashed_ids
from training.statistics import interval, resampled_totals

BINS: Final = 10


def value_reliability(scorer: EvaluationScorer) -> list[ValueReliability]:
    """A table for each offer with data on spend."""
    return [
        _reliability(scorer, offer, VALUE_TARGETS[offer])
        for offer in scorer.offers
        if VALUE_TARGETS[offer] in scorer.table.splits and len(scorer.table.splits[VALUE_TARGETS[offer]].test)
    ]


def _reliability(scorer: EvaluationScorer, offer: str, target: str) -> ValueReliability:
    rows = scorer.table.rows.take(scorer.table.splits[target].test)
    outputs = scorer.run(rows.state)
    return reliability_of(
        offer,
        outputs[f"{offer}_value_if_won"],
        scorer.config.economics.margin * rows.label(target),
        outputs[f"{offer}_probability"] >= outputs[f"{offer}_threshold"],
        hashed_ids(rows.customer_id.tolist()),
        resamples=scorer.config.evaluation.bootstrap,
        seed=scorer.seed,
    )


def reliability_of(
    offer: str,
    predicted: Floats,
    realised: Floats,
    alerted: Bools,
    customer: np.ndarray[tuple[int], np.dtype[np.uint64]],
    *,
    resamples: int,
    seed: int,
) -> ValueReliability:
    """Reliability by tenths of the predicted value, of the total, and of the total of the alerted customers.

    Args:
        offer: The offer.
        predicted: The model's value if won ``[n]``.
        realised: The value that came ``[n]``.
        alerted: Whether the customer was alerted ``[n]``.
        customer: Hash of the customer's id ``[n]``; all rows of a customer are resampled together.
        resamples: Number of bootstrap resamples.
        seed: Of the resamples.
    """
    tenths = [tenth for tenth in np.array_split(np.argsort(predicted, kind="stable"), BINS) if len(tenth)]
    groups = [_mask(len(predicted), tenth) for tenth in tenths]
    masks = np.column_stack([*groups, np.ones(len(predicted)), alerted]).astype(np.float64)
    columns = [masks * predicted[:, np.newaxis], masks * realised[:, np.newaxis], masks]
    drawn = resampled_totals(np.concatenate(columns, axis=1), customer, resamples, seed)
    predictions, actuals, counts = np.split(drawn, 3, axis=1)
    bins = []
    for at, tenth in enumerate(tenths):
        mean = float(realised[tenth].mean())
        bounds = interval(actuals[:, at] / np.maximum(counts[:, at], 1e-9), mean)
        bins.append(ValueBin(predicted=float(predicted[tenth].mean()), realised=mean, low=bounds.low, high=bounds.high))

    def ratio(at: int, chosen: Bools) -> Ratio | None:
        if realised[chosen].sum() <= 0:
            return None
        point = float(predicted[chosen].sum() / realised[chosen].sum())
        bounds = interval(predictions[:, at] / np.maximum(actuals[:, at], 1e-9), point)
        return Ratio(ratio=point, low=bounds.low, high=bounds.high, rows=int(chosen.sum()))

    everybody = np.ones(len(predicted), dtype=np.bool_)
    return ValueReliability(offer=offer, bins=bins, total=ratio(-2, everybody), alerted=ratio(-1, alerted))


def _mask(size: int, index: Index) -> Bools:
    mask = np.zeros(size, dtype=np.bool_)
    mask[index] = True
    return mask
