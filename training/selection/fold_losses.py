"""Cross-validation losses of learners, and shuffled slots for permutation importance.

The functions depend on their arguments only, so that worker processes can run them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.special import expit

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.data.dataset import Rows
from training.data.splits import Splits
from training.graph.features import FeatureSpec, filled_matrix
from training.models import spend
from training.models.learners import SELECTION_CLASSIFIER, Part
from training.statistics import log_losses, poisson_losses, random_rows

MAX_FIT_ROWS: Final = 20_000
"""Maximum number of rows that the learners for feature selection are fitted on: they compare subsets of slots."""


@dataclass(frozen=True)
class FoldRows:
    """A fold of a target: rows to fit on, and later ones to validate on: features ``[n, names]``, labels ``[n]``."""

    target: str
    features: Features
    labels: Floats
    later_features: Features
    later_labels: Floats

    def seen_by(self, part: Part, without_rates: int | None) -> FoldRows:
        """The fold with those features that a part of a learner sees."""
        earlier, later = (part.columns(features, without_rates) for features in (self.features, self.later_features))
        return replace(self, features=earlier, later_features=later)


def folds_of(target: str, features: Features, rows: Rows, splits: Splits) -> list[FoldRows]:
    """The folds of a target, from features ``[n, names]`` of all rows."""
    labels = rows.label(target)
    return [
        FoldRows(target, features[earlier], labels[earlier], features[later], labels[later])
        for earlier, later in splits.folds
    ]


def fold_for_selection(
    target: str, features: Features, labels: Floats, parts: tuple[Index, Index], seed: int
) -> FoldRows:
    """A fold for comparing subsets of slots: a sample of the earlier rows to fit on, and all of the later ones.

    Args:
        target: One of TARGETS.
        features: Features ``[n, names]`` of all rows.
        labels: Labels ``[n]`` of all rows.
        parts: Indexes of the earlier and of the later rows.
        seed: Of the sample, which is the same for all subsets.
    """
    earlier, later = parts
    fit = earlier[random_rows(len(earlier), MAX_FIT_ROWS, seed)]
    return FoldRows(target, features[fit], labels[fit], features[later], labels[later])


def scores_of_part(part: Part, fold: FoldRows, seed: int) -> Floats:
    """Scores ``[n]`` of the later rows by one part of a learner, fitted on the earlier ones."""
    return _scores(fold.target, part.fit(fold.features, fold.labels, seed), fold.later_features)


def losses_of_scores(fold: FoldRows, scores: Floats) -> Floats:
    """Losses ``[n]`` of the later rows."""
    return losses_of(fold.target, fold.later_labels, _prediction(fold.target, scores))


def fold_losses(fold: FoldRows, seed: int) -> Floats:
    """Losses ``[n]`` of the later rows by the learner for feature selection."""
    part = SELECTION_CLASSIFIER if fold.target in OFFERS else spend.SELECTION_REGRESSOR
    return losses_of_scores(fold, scores_of_part(part, fold, seed))


def validation_losses(target: str, rows: Rows, spec: FeatureSpec, splits: Splits, seed: int) -> Floats:
    """Losses of the later rows of all folds by the learner for feature selection, with all slots of the rows."""
    labels = rows.label(target)
    losses = []
    for earlier, later in splits.folds:
        features = filled_matrix(spec, rows.state[earlier])(rows.state)
        losses.append(fold_losses(fold_for_selection(target, features, labels, (earlier, later), seed), seed))
    return np.concatenate(losses)


def losses_of(target: str, labels: Floats, predicted: Floats) -> Floats:
    """Loss of each row: log loss of a probability, Poisson deviance of spend."""
    return log_losses(labels, predicted) if target in OFFERS else poisson_losses(labels, predicted)


def shuffled(state: Floats, column: int, seed: int) -> Floats:
    """States ``[n, slots]`` in which the values of one slot are permuted among the rows."""
    changed = state.copy()
    changed[:, column] = np.random.default_rng(seed + column).permutation(state[:, column])
    return changed


def _scores(target: str, fitted: Any, features: Features) -> Floats:
    """Output ``[n]`` of an uncalibrated estimator: a score on the logistic scale, or spend."""
    exact = features.astype(np.float64)
    return np.asarray(fitted.decision_function(exact) if target in OFFERS else fitted.predict(exact), dtype=np.float64)


def _prediction(target: str, scores: Floats) -> Floats:
    """Scores ``[n]`` as probability, or as spend above 0."""
    return np.asarray(expit(scores)) if target in OFFERS else np.maximum(scores, spend.MIN_SPEND)
