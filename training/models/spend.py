"""Expected spend over the value horizon, which makes the thresholds each customer's own.

Two candidates with a log link, a generalised linear model and boosted trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import PoissonRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.arrays import Features
from training.graph.builder import GraphBuilder
from training.models.probability import Learner, add_linear
from training.models.trees import tree_parameters

LEAST: Final = 1e-9
"""Predictions are positive; the deviance needs that."""


def _linear(seed: int, rows: int) -> Pipeline:  # noqa: ARG001  # as every candidate is made
    return make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-2, max_iter=1000))


def _trees(seed: int, rows: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(loss="poisson", **tree_parameters(seed, rows))


LEARNERS: Final = (Learner("Poisson GLM", (_linear,)), Learner("Poisson boosted trees", (_trees,)))
"""Simplest first."""

THOROUGH: Final = LEARNERS[-1]


@dataclass(frozen=True)
class SpendModel:
    """A fitted regressor, or without one the same spend for all."""

    name: str
    regressor: Any
    constant: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Expected spend [n], at least LEAST."""
        if self.regressor is None:
            return np.full(len(features), max(self.constant, LEAST))
        predicted: Floats = self.regressor.predict(features.astype(np.float64)).astype(np.float64)
        return np.maximum(predicted, LEAST)

    def add_to(self, graph: GraphBuilder, features: str, columns: int) -> str:
        """The model as graph nodes on ``features`` (float32); returns the name of expected spend, float64 [n, 1]."""
        if self.regressor is None:
            nothing = graph.add("Mul", "age", graph.constant(np.array([0.0])))
            return graph.add("Add", nothing, graph.constant(np.array([max(self.constant, LEAST)])))
        if isinstance(self.regressor, Pipeline):
            scaler, model = self.regressor[0], self.regressor[-1]
            log = add_linear(graph, scaler, model.coef_, float(model.intercept_), features)
        else:
            log = graph.add("Cast", graph.trees(self.regressor, features, columns), to=graph.float64)
        return graph.add("Max", graph.add("Exp", log), graph.constant(np.array([[LEAST]])))


def fit_spend(learner: Learner, features: Features, spend: Floats, seed: int) -> SpendModel:
    """Fitted on all rows given."""
    return SpendModel(learner.name, learner.fit(features, spend, seed))


def same_for_all(value: float) -> SpendModel:
    """A shop that knows no spend of its customers."""
    return SpendModel("the same for all", None, value)
