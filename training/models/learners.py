"""Learners: logistic regression, boosted trees and blends of both, and the exact scores of single trees.

Only learners that can be exported exactly are candidates. Trees are small, with many rows per leaf: their size decides
the cost of running the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.arrays import Features

MAX_LEAVES: Final = 12
MAX_LEAF_SAMPLES: Final = 100

Make = Callable[[int, int], Any]
"""Makes an unfitted estimator for a seed and a number of rows."""


@dataclass(frozen=True)
class Learner:
    """A candidate: its name, and how its parts are made; the score of several parts is their mean."""

    name: str
    parts: tuple[Make, ...]

    def fit(self, features: Features, labels: Floats, seed: int) -> Any:
        """Fit an estimator."""
        fitted = [fit_part(part, features, labels, seed) for part in self.parts]
        return fitted[0] if len(fitted) == 1 else Blend(fitted)


def fit_part(part: Make, features: Features, labels: Floats, seed: int) -> Any:
    """Fit an estimator for one part of a learner."""
    return part(seed, len(features)).fit(features.astype(np.float64), labels)


class Blend:
    """Fitted classifiers whose score is the mean of their scores; they make different errors."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def decision_function(self, features: Floats) -> Floats:
        """Scores ``[n]``."""
        return mean_score([part.decision_function(features) for part in self.parts])


def mean_score(scores: Sequence[Floats]) -> Floats:
    """The score of a learner from those of its parts, each ``[n]``."""
    return scores[0] if len(scores) == 1 else np.asarray(np.mean(scores, axis=0))


def tree_parameters(seed: int, rows: int, iterations: int = 100) -> dict[str, Any]:
    """Parameters of scikit-learn's histogram gradient boosting, for fitting on this number of rows."""
    return {
        "max_iter": iterations,
        "learning_rate": 6 / iterations,
        "max_leaf_nodes": MAX_LEAVES,
        "min_samples_leaf": min(MAX_LEAF_SAMPLES, max(10, rows // 100)),
        "l2_regularization": 10.0,
        "max_features": 0.5,
        "early_stopping": False,
        "random_state": seed,
    }


def _logistic(seed: int, rows: int) -> Pipeline:  # noqa: ARG001 - the signature of Make
    # Newton's method: with many rows and few features it takes half the time of lbfgs.
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, solver="newton-cholesky"))


def _trees(iterations: int, seed: int, rows: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(**tree_parameters(seed, rows, iterations))


# Not lambdas, because they are sent to worker processes.
_TREES_50, _TREES_100 = partial(_trees, 50), partial(_trees, 100)

SELECTION_TREES: Final = 50
"""Number of trees of the learners for feature selection: they compare subsets, and are not served."""

CLASSIFIERS: Final = (
    Learner("logistic regression", (_logistic,)),
    Learner("boosted trees (50)", (_TREES_50,)),
    Learner("boosted trees (100)", (_TREES_100,)),
    Learner("logistic regression and boosted trees (50)", (_logistic, _TREES_50)),
    Learner("logistic regression and boosted trees (100)", (_logistic, _TREES_100)),
)
"""Learners of probabilities, the simplest first."""

SELECTION_CLASSIFIER: Final = partial(_trees, SELECTION_TREES)
"""The learner for feature selection: flexible, so that it can exploit any feature."""
