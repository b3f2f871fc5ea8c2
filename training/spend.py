"""Expected spend over the value horizon, which makes the thresholds each customer's own.

Two candidates with a log link, a generalised linear model and boosted trees; the one with the smaller Poisson deviance
on later cut-offs is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.errors import InputError
from feature_store.state import Floats
from training.onnx_graph import GraphBuilder
from training.probability import Features
from training.trees import tree_parameters

LEAST = 1e-9
"""Predictions are positive; the deviance needs that."""


@dataclass(frozen=True)
class SpendModel:
    """A fitted regressor. ``exports_log``: its exported graph yields the logarithm of what it predicts."""

    name: str
    regressor: Any
    exports_log: bool

    def predict(self, features: Features) -> Floats:
        """Expected spend [n], at least LEAST."""
        predicted: Floats = self.regressor.predict(features).astype(np.float64)
        return np.maximum(predicted, LEAST)

    def add_to(self, graph: GraphBuilder, features: str, columns: int) -> str:
        """The model as graph nodes on ``features`` (float32); returns the name of expected spend, float64 [n, 1]."""
        found = graph.model(self.regressor, features, columns, "variable")
        spend = graph.add("Cast", found, to=graph.float64)
        if self.exports_log:
            spend = graph.add("Exp", spend)  # skl2onnx leaves the inverse link of boosted trees out, without a word
        return graph.add("Max", spend, graph.constant(np.array([[LEAST]])))


Block = tuple[Features, Floats]


def fit_spend(fit: Block, later: Block, everything: Block, seed: int) -> SpendModel:
    """The candidate that, fitted on one block, predicts a later one best, fitted again on everything.

    InputError where nobody spends anything.
    """
    if not fit[1].any():
        raise InputError(
            "economics: no customer spends anything within the horizon of the fit cut-offs: select an amount in "
            "source.events, or change economics.event"
        )
    linear = make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-2, max_iter=1000))
    trees = HistGradientBoostingRegressor(loss="poisson", **tree_parameters(seed))
    candidates = [
        SpendModel("Poisson GLM", linear.fit(*fit), exports_log=False),
        SpendModel("Poisson boosted trees", trees.fit(*fit), exports_log=True),
    ]
    features, spend = later
    best = min(candidates, key=lambda model: mean_poisson_deviance(spend, model.predict(features)))
    best.regressor.fit(*everything)
    return best
