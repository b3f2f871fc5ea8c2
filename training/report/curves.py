"""Curves and bins of the scored rows, reduced to at most a few hundred points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from feature_store.state.layout import Floats
from training.evidence import HoldoutRows
from training.statistics import clustered_standard_error

POINTS: Final = 300
BINS: Final = 10
QUINTILES: Final = 5
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram in bins of equal size.

    Attributes:
        predicted: Mean prediction by bin.
        observed: Observed rate by bin.
        error: Half the width of its 95 % interval, with the rows of a customer clustered.
        histogram: Shares of the predictions in 20 equal parts of [0, 1].
    """

    predicted: Floats
    observed: Floats
    error: Floats
    histogram: Floats


def has_baseline(rows: HoldoutRows) -> bool:
    """Whether the rows have a baseline (those of a snapshot may have none)."""
    return bool(len(rows.baseline)) and bool(np.isfinite(rows.baseline).all())


def roc(labels: Labels, score: Floats) -> tuple[Floats, Floats, float]:
    """False and true positive rates, and the area under the full curve."""
    false, true, _ = roc_curve(labels, score)
    kept = _spread(false + true)
    return false[kept], true[kept], float(auc(false, true))


def precision_recall(labels: Labels, score: Floats) -> tuple[Floats, Floats, float]:
    """Precision and recall by falling recall, and the average precision of the full curve."""
    precision, recall, _ = precision_recall_curve(labels, score)
    kept = _spread(-recall)
    return precision[kept], recall[kept], float(-np.sum(np.diff(recall) * precision[:-1]))


def reliability(labels: Labels, probability: Floats, customer: npt.NDArray[np.uint64]) -> Reliability:
    """The reliability diagram, in bins of equal size.

    Args:
        labels: ``[n]``.
        probability: ``[n]``.
        customer: Hash of the customer of each row ``[n]``.
    """
    bins = [b for b in np.array_split(np.argsort(probability, kind="stable"), BINS) if len(b)]
    observed = np.array([labels[b].mean() for b in bins])
    clusters = [np.unique(customer[b], return_inverse=True)[1] for b in bins]
    errors = [clustered_standard_error(labels[b].astype(np.float64), c) for b, c in zip(bins, clusters, strict=True)]
    return Reliability(
        predicted=np.array([probability[b].mean() for b in bins]),
        observed=observed,
        error=1.96 * np.array(errors),
        histogram=np.histogram(probability, bins=20, range=(0, 1))[0] / len(probability),
    )


def gains(labels: Labels, score: Floats) -> tuple[Floats, Floats]:
    """Shares of customers contacted, highest score first, and the share of the positives among them."""
    reached = np.concatenate([[0.0], np.cumsum(labels[np.argsort(-score, kind="stable")])]) / max(labels.sum(), 1)
    contacted = np.linspace(0, 1, 101)
    return contacted, np.interp(contacted, np.linspace(0, 1, len(reached)), reached)


def lift(labels: Labels, score: Floats) -> Floats:
    """Rate of positives in each tenth of the customers, highest score first, divided by the overall rate."""
    tenths = np.array_split(labels[np.argsort(-score, kind="stable")], BINS)
    shares = np.array([tenth.mean() if len(tenth) else 0.0 for tenth in tenths])
    return np.asarray(shares / max(labels.mean(), 1e-12))


def thresholds_by_value(rows: HoldoutRows) -> list[dict[str, Any]]:
    """Thresholds by quintile of value: range, box plot, share of customers never acted on, and share alerted."""
    fifths = np.array_split(np.argsort(rows.value, kind="stable"), QUINTILES)
    summaries = []
    for fifth in fifths:
        if len(fifth):
            low, first, middle, third, high = np.percentile(rows.threshold[fifth], [5, 25, 50, 75, 95])
            value = rows.value[fifth]
            summaries.append(
                {
                    "from": float(value.min()),
                    "to": float(value.max()),
                    "box": {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "fliers": []},
                    "never": float((rows.threshold[fifth] >= 1).mean()),
                    "alerts": float((rows.probability[fifth] >= rows.threshold[fifth]).mean()),
                }
            )
    return summaries


def _spread(along: Floats) -> npt.NDArray[np.intp]:
    """Indices of at most POINTS points of a curve, evenly spaced along ``along`` (ascending), with both ends."""
    if len(along) <= POINTS:
        return np.arange(len(along))
    wanted = np.linspace(along[0], along[-1], POINTS)
    return np.unique(np.clip(np.searchsorted(along, wanted), 0, len(along) - 1))
