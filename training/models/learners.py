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
class Part:
    """A part of a learner: how its estimator is made, and whether it also sees the features of rates."""

    make: Make
    sees_rates: bool = False

    def columns(self, features: Features, without_rates: int | None) -> Features:
        """Those of the features ``[n, names]`` that the part sees: all, or the first ``without_rates`` ones."""
        return features if self.sees_rates else features[:, :without_rates]

    def fit(self, features: Features, labels: Floats, seed: int) -> Any:
        """Fit an estimator, on the features that the part sees."""
        return self.make(seed, len(features)).fit(features.astype(np.float64), labels)


@dataclass(frozen=True)
class Learner:
    """A candidate; the score of several parts is their mean.

    Attributes:
        name: Its name.
        parts: Its parts.
        without_rates: Number of features before those of rates, which not all parts see; None if there are none.
    """

    name: str
    parts: tuple[Part, ...]
    without_rates: int | None = None

    @property
    def sees_rates(self) -> bool:
        """Whether any part sees the features of rates."""
        return any(part.sees_rates for part in self.parts)

    def fit(self, features: Features, labels: Floats, seed: int) -> Any:
        """Fit an estimator on features ``[n, names]``."""
        fitted = []
        for part in self.parts:
            seen = part.columns(features, self.without_rates)
            estimator = part.fit(seen, labels, seed)
            fitted.append(estimator if seen.shape == features.shape else FirstColumns(estimator, seen.shape[1]))
        return fitted[0] if len(fitted) == 1 else Blend(fitted)


@dataclass(frozen=True)
class FirstColumns:
    """A fitted estimator that takes more features than it was fitted on, and uses the first ones."""

    estimator: Any
    columns: int

    def decision_function(self, features: Floats) -> Floats:
        """Scores ``[n]``."""
        return np.asarray(self.estimator.decision_function(features[:, : self.columns]))

    def predict(self, features: Floats) -> Floats:
        """Predictions ``[n]``."""
        return np.asarray(self.estimator.predict(features[:, : self.columns]))


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
_TREES_50, _TREES_100 = Part(partial(_trees, 50)), Part(partial(_trees, 100))
_LINEAR, _LINEAR_WITH_RATES = Part(_logistic), Part(_logistic, sees_rates=True)

SELECTION_TREES: Final = 50
"""Number of trees of the learners for feature selection: they compare subsets, and are not served."""

CLASSIFIERS: Final = (
    Learner("logistic regression", (_LINEAR,)),
    Learner("boosted trees (50)", (_TREES_50,)),
    Learner("boosted trees (100)", (_TREES_100,)),
    Learner("logistic regression and boosted trees (50)", (_LINEAR, _TREES_50)),
    Learner("logistic regression and boosted trees (100)", (_LINEAR, _TREES_100)),
    Learner("logistic regression with rates and boosted trees (50)", (_LINEAR_WITH_RATES, _TREES_50)),
    Learner("logistic regression with rates and boosted trees (100)", (_LINEAR_WITH_RATES, _TREES_100)),
)
"""Learners of probabilities, the simplest first. Trees find the shapes of rates themselves."""

SELECTION_CLASSIFIER: Final = Part(partial(_trees, SELECTION_TREES))
"""The learner for feature selection: flexible, so that it can exploit any feature."""
