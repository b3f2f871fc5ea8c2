"""Paired cluster bootstrap: differences of two models on the same rows, with customers resampled as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats
from training.arrays import Index
from training.evidence import HoldoutRows
from training.graph.thresholds import Terms, gain
from training.statistics import log_losses

RESAMPLES: Final = 1000
SEED: Final = 7

EPSILON: Final = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Pairs:
    """Rows of an offer that both bundles have, in the same order; ``owner`` ``[n]``: number of the customer."""

    a: HoldoutRows
    b: HoldoutRows
    owner: Index

    @property
    def label(self) -> npt.NDArray[np.bool_]:
        """The observed outcomes, the same in both."""
        return self.a.label


class Statistics:
    """Differences of an offer, prepared so that a resample costs a few sums.

    Profit is realised profit, with the realised values of A and what customers who stayed add to them. Losses and
    profit are summed by customer. For the AUC the rows are sorted once; a resample only changes their weights.
    """

    def __init__(self, pair: Pairs, customers: int, offer: Terms) -> None:
        self.pair = pair
        self.rows = np.bincount(pair.owner, minlength=customers).astype(np.float64)
        realised = gain(pair.label.astype(np.float64), pair.a.realised_value, offer)
        realised = realised + offer.success_rate * pair.a.value_correction
        self.by_row = {
            "log_loss": [log_losses(pair.label, rows.probability, clip=EPSILON) for rows in (pair.a, pair.b)],
            "brier": [(rows.probability - pair.label) ** 2 for rows in (pair.a, pair.b)],
            "profit": [np.where(rows.probability >= rows.threshold, realised, 0.0) for rows in (pair.a, pair.b)],
        }
        self.sums = {
            measure: np.bincount(pair.owner, b - a, minlength=customers).astype(np.float64)
            for measure, (a, b) in self.by_row.items()
        }
        self.auc = [Ranks(pair.label, rows.probability, pair.owner) for rows in (pair.a, pair.b)]

    def differences(self, weight: Floats) -> dict[str, float]:
        """B minus A by measure, with each customer counted ``weight`` times ``[customers]``."""
        count = _dot(weight, self.rows)
        means = {measure: _dot(weight, sums) / max(count, 1.0) for measure, sums in self.sums.items()}
        means["profit"] *= len(self.pair.label)
        a, b = (ranks.auc(weight) for ranks in self.auc)
        return means | {"auc": b - a}

    def totals(self) -> dict[str, tuple[float, float]]:
        """The measures of A and of B on all rows, the decisive one first."""
        everybody = np.ones(len(self.rows))
        means = {measure: (float(a.mean()), float(b.mean())) for measure, (a, b) in self.by_row.items()}
        earned = self.by_row["profit"]
        return {
            "log_loss": means["log_loss"],
            "brier": means["brier"],
            "auc": (self.auc[0].auc(everybody), self.auc[1].auc(everybody)),
            "profit": (float(earned[0].sum()), float(earned[1].sum())),
        }


class Ranks:
    """AUC of a score for any weights of the customers: by the weight of the negatives below each positive."""

    def __init__(self, label: npt.NDArray[np.bool_], score: Floats, owner: Index) -> None:
        positive, negative = np.flatnonzero(label), np.flatnonzero(~label)
        positive = positive[np.argsort(score[positive], kind="stable")]
        negative = negative[np.argsort(score[negative], kind="stable")]
        self.positive, self.negative = owner[positive], owner[negative]
        self.below = np.searchsorted(score[negative], score[positive], "left")
        upto = np.searchsorted(score[negative], score[positive], "right")
        self.upto = None if np.array_equal(upto, self.below) else upto

    def auc(self, weight: Floats) -> float:
        """Share of the pairs in the right order, with ties counted half; 0.5 if there are no pairs."""
        positive = weight[self.positive]
        lighter = np.concatenate([[0.0], np.cumsum(weight[self.negative])])
        pairs = positive.sum() * lighter[-1]
        if not pairs:
            return 0.5
        ordered = lighter[self.below] if self.upto is None else (lighter[self.below] + lighter[self.upto]) / 2
        return _dot(positive, ordered) / float(pairs)


def resample(customers: int, statistics: Mapping[str, Statistics], resamples: int) -> dict[str, dict[str, Floats]]:
    """Resampled differences ``[resamples]`` of each offer and measure.

    Customers are drawn with replacement, the same ones for all offers.
    """
    random = np.random.default_rng(SEED)
    drawn: list[dict[str, dict[str, float]]] = []
    for _ in range(resamples):
        weight = np.bincount(random.integers(0, customers, customers), minlength=customers).astype(np.float64)
        drawn.append({name: offer.differences(weight) for name, offer in statistics.items()})
    return {
        name: {measure: np.array([draw[name][measure] for draw in drawn]) for measure in drawn[0][name]}
        for name in statistics
    }


def _dot(a: Floats, b: Floats) -> float:
    """Dot product without BLAS, whose threads wait for each other for milliseconds on a busy machine."""
    return float(np.einsum("i,i->", a, b))
