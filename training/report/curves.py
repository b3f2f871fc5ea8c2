"""What is drawn of the scored rows: curves and bins of at most a few hundred points, however many rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from training.evidence import Floats, TestRows

POINTS: Final = 300
BINS: Final = 10
QUINTILES: Final = 5
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reliability:
    """Bins of equal size: mean prediction, share that came true and its 95 % error; and a histogram over [0, 1]."""

    predicted: Floats
    observed: Floats
    error: Floats
    histogram: Floats


def has_baseline(rows: TestRows) -> bool:
    """Whether there is a baseline to compare with (a snapshot may have none)."""
    return bool(len(rows.baseline)) and bool(np.isfinite(rows.baseline).all())


def roc(labels: Labels, score: Floats) -> tuple[Floats, Floats, float]:
    """False and true positive rates, and the area below all of them."""
    false, true, _ = roc_curve(labels, score)
    kept = _spread(false + true)
    return false[kept], true[kept], float(auc(false, true))


def precision_recall(labels: Labels, score: Floats) -> tuple[Floats, Floats, float]:
    """Precision and recall, recall falling, and the average precision of all of them."""
    precision, recall, _ = precision_recall_curve(labels, score)
    kept = _spread(-recall)
    return precision[kept], recall[kept], float(-np.sum(np.diff(recall) * precision[:-1]))


def reliability(labels: Labels, probability: Floats) -> Reliability:
    """As the reliability plot shows it."""
    bins = [b for b in np.array_split(np.argsort(probability, kind="stable"), BINS) if len(b)]
    sizes = np.array([len(b) for b in bins])
    observed = np.array([labels[b].mean() for b in bins])
    return Reliability(
        predicted=np.array([probability[b].mean() for b in bins]),
        observed=observed,
        error=1.96 * np.sqrt(observed * (1 - observed) / sizes),
        histogram=np.histogram(probability, bins=20, range=(0, 1))[0] / len(probability),
    )


def gains(labels: Labels, score: Floats) -> tuple[Floats, Floats]:
    """Share of customers contacted, best first, and share of the customers meant who are among them."""
    reached = np.concatenate([[0.0], np.cumsum(labels[np.argsort(-score, kind="stable")])]) / max(labels.sum(), 1)
    contacted = np.linspace(0, 1, 101)
    return contacted, np.interp(contacted, np.linspace(0, 1, len(reached)), reached)


def lift(labels: Labels, score: Floats) -> Floats:
    """Share of the customers meant in each tenth, best first, over that of all."""
    tenths = np.array_split(labels[np.argsort(-score, kind="stable")], BINS)
    shares = np.array([tenth.mean() if len(tenth) else 0.0 for tenth in tenths])
    return np.asarray(shares / max(labels.mean(), 1e-12))


def thresholds_by_value(rows: TestRows) -> list[dict[str, Any]]:
    """Of each fifth by value: its range, the spread of thresholds, and the shares never acted on and alerted now."""
    fifths = np.array_split(np.argsort(rows.value, kind="stable"), QUINTILES)
    found = []
    for fifth in fifths:
        if len(fifth):
            low, first, middle, third, high = np.percentile(rows.threshold[fifth], [5, 25, 50, 75, 95])
            value = rows.value[fifth]
            found.append(
                {
                    "from": float(value.min()),
                    "to": float(value.max()),
                    "box": {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "fliers": []},
                    "never": float((rows.threshold[fifth] >= 1).mean()),
                    "alerts": float((rows.probability[fifth] >= rows.threshold[fifth]).mean()),
                }
            )
    return found


def clustered_mean(figures: Floats, customer: npt.NDArray[np.uint64]) -> tuple[float, float]:
    """Mean of the rows' figures and its standard error, by customers."""
    mean = float(figures.mean())
    _, owner = np.unique(customer, return_inverse=True)
    sums = np.bincount(owner, figures - mean)
    return mean, float(np.sqrt((sums**2).sum()) / len(figures))


def _spread(along: Floats) -> npt.NDArray[np.intp]:
    """Indices of at most POINTS of a curve, first and last among them, evenly along its course (rising)."""
    if len(along) <= POINTS:
        return np.arange(len(along))
    wanted = np.linspace(along[0], along[-1], POINTS)
    return np.unique(np.clip(np.searchsorted(along, wanted), 0, len(along) - 1))
