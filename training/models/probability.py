"""Calibrated probabilities of churn and propensity, and their graph nodes.

Calibration is by a sigmoid (Platt, 1999), because isotonic calibration cannot be exported exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.splits import Split
from training.graph.builder import GraphBuilder
from training.models.learners import Blend, Learner

CALIBRATION_C: Final = 1e3
"""Inverse strength of the calibration's penalty, which only keeps the slope finite if a score separates the
outcomes."""


@dataclass(frozen=True)
class Probability:
    """A fitted and calibrated classifier: the probability is ``expit(slope * score + offset)``."""

    name: str
    estimator: Any
    slope: float = 1.0
    offset: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Probability ``[n]``, computed with scikit-learn."""
        score = self.estimator.decision_function(features.astype(np.float64))
        return np.asarray(expit(self.slope * score + self.offset))


def unscaled(scaler: StandardScaler, weight: Floats, intercept: float) -> tuple[Floats, float]:
    """Weights ``[features]`` and intercept of a linear model of scaled features, for unscaled features."""
    raw = weight / scaler.scale_
    return raw, float(intercept - raw @ scaler.mean_)


def add_linear(graph: GraphBuilder, scaler: StandardScaler, weight: Floats, intercept: float, features: str) -> str:
    """Add a linear model of scaled ``features`` (float32), computed in float64; the scaling is part of the weights."""
    raw, offset = unscaled(scaler, weight, intercept)
    exact = graph.add("Cast", features, to=graph.float64)
    return graph.add("Gemm", exact, graph.constant(raw[:, np.newaxis]), graph.constant(np.array([offset])))


def fit_probability(learner: Learner, features: Features, labels: Floats, split: Split, seed: int) -> Probability:
    """Fit on one block, calibrate on a later one, and fit again on everything with that calibration.

    The blocks must have passed :func:`training.data.splits.check_outcomes`.

    Args:
        learner: What to fit.
        features: Features ``[n, names]`` of all rows.
        labels: Labels ``[n]`` of all rows.
        split: Which rows are for what.
        seed: Of the learner.
    """
    first = learner.fit(features[split.fit], labels[split.fit], seed)
    score = first.decision_function(features[split.calibration].astype(np.float64))
    sigmoid = LogisticRegression(C=CALIBRATION_C, max_iter=1000).fit(score[:, np.newaxis], labels[split.calibration])
    refitted = learner.fit(features[split.everything], labels[split.everything], seed)
    return Probability(learner.name, refitted, float(sigmoid.coef_[0, 0]), float(sigmoid.intercept_[0]))


def add_probabilities(graph: GraphBuilder, models: Sequence[Probability], features: str, columns: int) -> str:
    """Add the models to the graph.

    For single customers the cost of a run is the number of nodes. Therefore everything linear (logistic regression, the
    mean of a blend, calibration) is one product with the features and the scores of trees, side by side.

    Args:
        graph: The graph.
        models: The models, in order of the columns.
        features: Name of the float32 features.
        columns: Their number.

    Returns:
        The name of the probabilities, float64 ``[n, models]``.
    """
    linear, offset = np.zeros((columns, len(models))), np.array([model.offset for model in models])
    scores, shares = [], []
    for at, model in enumerate(models):
        parts = model.estimator.parts if isinstance(model.estimator, Blend) else [model.estimator]
        share = model.slope / len(parts)
        for part in parts:
            if isinstance(part, Pipeline):
                weight, intercept = unscaled(part[0], part[-1].coef_[0], float(part[-1].intercept_[0]))
                linear[:, at] += share * weight
                offset[at] += share * intercept
            else:
                scores.append(graph.trees(part, features, columns))
                shares.append(share * np.eye(len(models))[at])
    inputs = [features, *scores] if linear.any() or not scores else scores
    weights = np.array([*(linear if inputs[0] == features else []), *shares])
    together = graph.add("Concat", *inputs, axis=1) if len(inputs) > 1 else inputs[0]
    exact = graph.add("Cast", together, to=graph.float64)
    return graph.add("Sigmoid", graph.add("Gemm", exact, graph.constant(weights), graph.constant(offset)))
