"""Expected spend over the value horizon, on which the threshold of each customer depends.

The candidates are a generalised linear model and boosted trees, both for Poisson deviance with a log link.
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
from training.models.learners import Learner, tree_parameters
from training.models.probability import add_linear

MIN_SPEND: Final = 1e-9
"""Lower bound of predictions, because the deviance needs positive ones."""


def _linear(seed: int, rows: int) -> Pipeline:  # noqa: ARG001 - the signature of Make
    return make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-2, max_iter=1000))


def _trees(seed: int, rows: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(loss="poisson", **tree_parameters(seed, rows))


REGRESSORS: Final = (Learner("Poisson GLM", (_linear,)), Learner("Poisson boosted trees", (_trees,)))
"""Learners of spend, the simplest first."""

SELECTION_REGRESSOR: Final = REGRESSORS[-1]
"""The learner for feature selection."""


@dataclass(frozen=True)
class SpendModel:
    """A fitted regressor; if it is None, all customers have the constant spend."""

    name: str
    regressor: Any
    constant: float = 0.0

    def predict(self, features: Features) -> Floats:
        """Expected spend ``[n]``, at least MIN_SPEND."""
        if self.regressor is None:
            return np.full(len(features), max(self.constant, MIN_SPEND))
        predicted: Floats = self.regressor.predict(features.astype(np.float64)).astype(np.float64)
        return np.maximum(predicted, MIN_SPEND)

    def add_to(self, graph: GraphBuilder, features: str, columns: int) -> str:
        """Add the model to a graph, on ``features`` (float32); returns the name of the spend, float64 ``[n, 1]``."""
        if self.regressor is None:
            zero = graph.add("Mul", "age", graph.constant(np.array([0.0])))
            return graph.add("Add", zero, graph.constant(np.array([max(self.constant, MIN_SPEND)])))
        if isinstance(self.regressor, Pipeline):
            scaler, model = self.regressor[0], self.regressor[-1]
            log = add_linear(graph, scaler, model.coef_, float(model.intercept_), features)
        else:
            log = graph.add("Cast", graph.trees(self.regressor, features, columns), to=graph.float64)
        return graph.add("Max", graph.add("Exp", log), graph.constant(np.array([[MIN_SPEND]])))


def fit_spend(learner: Learner, features: Features, spend: Floats, seed: int) -> SpendModel:
    """Fit on all these rows."""
    return SpendModel(learner.name, learner.fit(features, spend, seed))


def same_for_all(value: float) -> SpendModel:
    """The model for a shop without data on spend."""
    return SpendModel("the same for all", None, value)
