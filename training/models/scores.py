"""Linear parts and trees of all models as graph nodes: every score of a customer comes from one matrix product.

For single customers the cost of a run is the number of nodes. Therefore everything linear (logistic regression, the
mean of a blend, calibration, Poisson regression and its scale) is one product with the features and the scores of
trees, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.graph.builder import GraphBuilder
from training.models.learners import FirstColumns

NEVER: Final = -1e4
"""A score whose sigmoid and exponential are exactly 0."""


@dataclass(frozen=True)
class Score:
    """A score: the offset plus a weighted sum of the outputs of estimators, before any link function.

    Attributes:
        parts: Estimators (a scaled linear model, or boosted trees) with their weights.
        offset: What is added.
    """

    parts: Sequence[tuple[Any, float]]
    offset: float


NO_MODEL: Final = Score((), NEVER)
"""The score of an offer without a model: probability 0, spend 0."""


def add_scores(graph: GraphBuilder, scores: Sequence[Score], features: str, columns: int) -> str:
    """Add scores to the graph.

    Args:
        graph: The graph.
        scores: The scores, in order of the columns.
        features: Name of the float32 features.
        columns: Their number.

    Returns:
        The name of the scores, float64 ``[n, scores]``.
    """
    linear, offset = np.zeros((columns, len(scores))), np.array([score.offset for score in scores])
    trees, weights_of_trees = [], []
    for at, score in enumerate(scores):
        for part, weight in score.parts:
            estimator = part.estimator if isinstance(part, FirstColumns) else part
            if isinstance(estimator, Pipeline):
                model = estimator[-1]
                raw, intercept = _unscaled(estimator[0], np.ravel(model.coef_), float(np.ravel(model.intercept_)[0]))
                linear[: len(raw), at] += weight * raw
                offset[at] += weight * intercept
            else:
                trees.append(graph.trees(estimator, features, columns))
                weights_of_trees.append(weight * np.eye(len(scores))[at])
    inputs = [features, *trees] if linear.any() or not trees else trees
    weights = np.array([*(linear if inputs[0] == features else []), *weights_of_trees])
    together = graph.add("Concat", *inputs, axis=1) if len(inputs) > 1 else inputs[0]
    exact = graph.add("Cast", together, to=graph.float64)
    return graph.add("Gemm", exact, graph.constant(weights), graph.constant(offset))


def _unscaled(scaler: StandardScaler, weight: Floats, intercept: float) -> tuple[Floats, float]:
    """Weights ``[features]`` and intercept of a linear model of scaled features, for unscaled features."""
    raw = weight / scaler.scale_
    return raw, float(intercept - raw @ scaler.mean_)
