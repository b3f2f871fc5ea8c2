"""The two probabilities, churn and propensity: the candidates, and a chosen one with its calibration.

Sigmoid calibration, because isotonic calibration does not export exactly. What cannot be exported exactly is no
candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.splits import Split
from training.graph.builder import GraphBuilder
from training.models.trees import tree_parameters

WEAK: Final = 1e3
"""Of the calibration's penalty, which only keeps it finite where a score parts the outcomes without an error."""


Make = Callable[[int, int], Any]
"""Makes an unfitted estimator for a seed and a number of rows."""


@dataclass(frozen=True)
class Learner:
    """A candidate: its name, and how its parts are made; the score of several parts is their mean."""

    name: str
    parts: tuple[Make, ...]

    def fit(self, features: Features, labels: Floats, seed: int) -> Any:
        """A fitted estimator."""
        fitted = [fit_part(part, features, labels, seed) for part in self.parts]
        return fitted[0] if len(fitted) == 1 else Together(fitted)


def fit_part(part: Make, features: Features, labels: Floats, seed: int) -> Any:
    """A fitted estimator of one part of a learner."""
    return part(seed, len(features)).fit(features.astype(np.float64), labels)


def _logistic(seed: int, rows: int) -> Pipeline:  # noqa: ARG001  # as every candidate is made
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, random_state=seed))


def _trees(iterations: int, seed: int, rows: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(**tree_parameters(seed, rows, iterations))


class Together:
    """A logistic regression and boosted trees, whose score is the mean of both: they err in different ways."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def decision_function(self, features: Floats) -> Floats:
        """Scores [n]."""
        return mean_score([part.decision_function(features) for part in self.parts])


def mean_score(scores: Sequence[Floats]) -> Floats:
    """The score of a learner from those of its parts, each ``[n]``."""
    return scores[0] if len(scores) == 1 else np.asarray(np.mean(scores, axis=0))


# Not lambdas: worker processes are sent them.
_TREES_50, _TREES_100 = partial(_trees, 50), partial(_trees, 100)

LEARNERS: Final = (
    Learner("logistic regression", (_logistic,)),
    Learner("boosted trees (50)", (_TREES_50,)),
    Learner("boosted trees (100)", (_TREES_100,)),
    Learner("logistic regression and boosted trees (50)", (_logistic, _TREES_50)),
    Learner("logistic regression and boosted trees (100)", (_logistic, _TREES_100)),
)
"""Simplest first."""

THOROUGH: Final = LEARNERS[2]
"""By what features are chosen: it can use them in every way."""


@dataclass(frozen=True)
class Probability:
    """A fitted candidate, whose score becomes a probability by ``expit(slope * score + offset)``."""

    name: str
    estimator: Any
    slope: float = 1.0
    offset: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Probability [n], computed with scikit-learn."""
        score = self.estimator.decision_function(features.astype(np.float64))
        return np.asarray(expit(self.slope * score + self.offset))


def unscaled(scaler: StandardScaler, weight: Floats, intercept: float) -> tuple[Floats, float]:
    """Weights ``[features]`` and intercept of a linear model of scaled features, for features as they are."""
    own = weight / scaler.scale_
    return own, float(intercept - own @ scaler.mean_)


def add_linear(graph: GraphBuilder, scaler: StandardScaler, weight: Floats, intercept: float, features: str) -> str:
    """A linear model of scaled ``features`` (float32) in float64, as few nodes: the scaling is in the weights."""
    own, offset = unscaled(scaler, weight, intercept)
    exact = graph.add("Cast", features, to=graph.float64)
    return graph.add("Gemm", exact, graph.constant(own[:, np.newaxis]), graph.constant(np.array([offset])))


def fit_probability(learner: Learner, features: Features, labels: Floats, split: Split, seed: int) -> Probability:
    """Fitted on one block, calibrated on a later one, then fitted again on everything with that calibration.

    Blocks must have passed :func:`training.data.splits.check_outcomes`.
    """
    first = learner.fit(features[split.fit], labels[split.fit], seed)
    score = first.decision_function(features[split.calibration].astype(np.float64))
    sigmoid = LogisticRegression(C=WEAK, max_iter=1000).fit(score[:, np.newaxis], labels[split.calibration])
    refitted = learner.fit(features[split.everything], labels[split.everything], seed)
    return Probability(learner.name, refitted, float(sigmoid.coef_[0, 0]), float(sigmoid.intercept_[0]))


def add_probabilities(graph: GraphBuilder, models: Sequence[Probability], features: str, columns: int) -> str:
    """The models as graph nodes on ``features`` (float32); returns the name of float64 ``[n, models]``.

    With one customer at a time it is the number of nodes that a run costs. So all that is linear is a single product of
    the features and the scores of the trees, side by side: logistic regression, the mean of two, and calibration.
    """
    linear, offset = np.zeros((columns, len(models))), np.array([model.offset for model in models])
    scores, shares = [], []
    for at, model in enumerate(models):
        parts = model.estimator.parts if isinstance(model.estimator, Together) else [model.estimator]
        share = model.slope / len(parts)
        for part in parts:
            if isinstance(part, Pipeline):
                weight, intercept = unscaled(part[0], part[-1].coef_[0], float(part[-1].intercept_[0]))
                linear[:, at] += share * weight
                offset[at] += share * intercept
            else:
                scores.append(graph.trees(part, features, columns))
                shares.append(share * np.eye(len(models))[at])
    known = [features, *scores] if linear.any() or not scores else scores
    weights = np.array([*(linear if known[0] == features else []), *shares])
    together = graph.add("Concat", *known, axis=1) if len(known) > 1 else known[0]
    exact = graph.add("Cast", together, to=graph.float64)
    return graph.add("Sigmoid", graph.add("Gemm", exact, graph.constant(weights), graph.constant(offset)))
