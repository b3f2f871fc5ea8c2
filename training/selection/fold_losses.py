"""Losses of learners on the later rows of each fold, and how much they grow when the values of a slot are shuffled.

Functions depend on their arguments alone, so that worker processes can run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.data.dataset import Rows
from training.data.splits import Splits
from training.graph.features import FeatureMatrix
from training.models import probability, spend
from training.models.probability import Learner, Make, fit_part
from training.models.trees import ScoresOfChanged
from training.statistics import log_losses, poisson_losses, random_rows

JUDGED_ROWS: Final = 4000
"""Rows by which slots are ranked: shuffling each of many slots on all rows would take most of a fit."""


@dataclass(frozen=True)
class Fold:
    """Earlier rows of a target to fit on, and later ones to be judged by: features ``[n, names]``, labels ``[n]``."""

    target: str
    features: Features
    labels: Floats
    later_features: Features
    later_labels: Floats


def folds_of(target: str, features: Features, rows: Rows, splits: Splits) -> list[Fold]:
    """The folds of a target, from features ``[n, names]`` of all rows."""
    labels = rows.label(target)
    return [
        Fold(target, features[earlier], labels[earlier], features[later], labels[later])
        for earlier, later in splits.folds
    ]


def thorough(target: str) -> Learner:
    """By what features are chosen: it can use them in every way."""
    return probability.THOROUGH if target in OFFERS else spend.THOROUGH


def scores_of_part(part: Make, fold: Fold, seed: int) -> Floats:
    """Scores ``[n]`` of the later rows by one part of a learner, fitted on the earlier ones."""
    return _scores(fold.target, fit_part(part, fold.features, fold.labels, seed), fold.later_features)


def losses_of_scores(fold: Fold, scores: Floats) -> Floats:
    """Losses ``[n]`` of the later rows."""
    return losses_of(fold.target, fold.later_labels, _prediction(fold.target, scores))


def fold_losses(fold: Fold, seed: int) -> Floats:
    """Losses ``[n]`` of the later rows by the thorough learner."""
    (part,) = thorough(fold.target).parts
    return losses_of_scores(fold, scores_of_part(part, fold, seed))


def fold_losses_and_importance(fold: Fold, seed: int, matrix: FeatureMatrix, states: Floats) -> tuple[Floats, Floats]:
    """Losses by the thorough learner, and the permutation importance of each slot (Breiman 2001, "Random forests").

    Args:
        fold: The fold.
        seed: Of the learner, and of the shuffles.
        matrix: Makes features from states.
        states: States ``[n, slots]`` of the fold's later rows.

    Returns:
        Losses ``[n]`` of the later rows, and for each slot ``[slots]`` the share by which the mean loss grows when its
        values are shuffled, on at most JUDGED_ROWS of the later rows.
    """
    (part,) = thorough(fold.target).parts
    fitted = fit_part(part, fold.features, fold.labels, seed)
    losses = losses_of_scores(fold, _scores(fold.target, fitted, fold.later_features))
    judged = _sample(np.arange(len(fold.later_labels)), JUDGED_ROWS, seed)
    usual, labels, states = fold.later_features[judged], fold.later_labels[judged], states[judged]
    scores_of = ScoresOfChanged(fitted, usual.astype(np.float64))

    def mean_loss(features: Features) -> float:
        raw = scores_of(features.astype(np.float64), (features != usual).any(axis=0))
        scores = raw if fold.target in OFFERS else np.exp(raw)  # the trees of spend have a log link
        return float(losses_of(fold.target, labels, _prediction(fold.target, scores)).mean())

    before = mean_loss(usual)
    columns = range(states.shape[1])
    return losses, np.array([mean_loss(matrix(shuffled(states, column, seed))) / before - 1 for column in columns])


def losses_of(target: str, labels: Floats, found: Floats) -> Floats:
    """Loss of each row: log loss of a probability, Poisson deviance of spend."""
    return log_losses(labels, found) if target in OFFERS else poisson_losses(labels, found)


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
    """Scores ``[n]`` as a probability, or as spend above 0."""
    return np.asarray(expit(scores)) if target in OFFERS else np.maximum(scores, spend.LEAST)


def _sample(index: Index, most: int, seed: int) -> Index:
    return index[random_rows(len(index), most, seed)]
