"""Models of spend: what a customer spends if an offer wins, which the threshold of each customer depends on.

The value of a win is margin times a *conditional* expectation, the second part of a two-part model (Duan et al., 1983,
"A comparison of alternative models for the demand for medical care"); the probability of the outcome is the first.

- churn: spend over the value horizon of customers who stay. Spend of all customers would count the risk twice, because
  a customer who leaves spends nothing in the same time.
- propensity: the mean amount of one purchase of customers who buy. The offer wins one more purchase, not all of them.

It is assumed that a customer whom an offer wins then spends like a similar customer who stays, or buys, without one.

The candidates are a generalised linear model and boosted trees, both for Poisson deviance with a log link. The total is
calibrated on a later block, like probabilities are: by one factor, because spend drifts as a whole (prices, seasons).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import PoissonRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.splits import Split
from training.models.learners import SELECTION_TREES, Learner, tree_parameters
from training.models.scores import Score

MIN_SPEND: Final = 1e-9
"""Lower bound of predictions, because the deviance needs positive ones."""


def _linear(seed: int, rows: int) -> Pipeline:  # noqa: ARG001 - the signature of Make
    # Newton's method: with amounts of a few units, lbfgs has not converged after 1,000 iterations.
    return make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-2, solver="newton-cholesky", max_iter=100))


def _trees(iterations: int, seed: int, rows: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(loss="poisson", **tree_parameters(seed, rows, iterations))


REGRESSORS: Final = (
    Learner("Poisson GLM", (_linear,)),
    Learner("Poisson boosted trees", (partial(_trees, 100),)),
)
"""Learners of spend, the simplest first."""

SELECTION_REGRESSOR: Final = partial(_trees, SELECTION_TREES)
"""The learner for feature selection."""


@dataclass(frozen=True)
class SpendModel:
    """A fitted regressor with the factor that calibrates its total; without a regressor, the factor is the spend."""

    name: str
    regressor: Any
    scale: float = 1.0

    def predict(self, features: Features) -> Floats:
        """Spend ``[n]``, at least MIN_SPEND."""
        if self.regressor is None:
            return np.full(len(features), max(self.scale, MIN_SPEND))
        predicted: Floats = self.regressor.predict(features.astype(np.float64)).astype(np.float64)
        return np.maximum(predicted * self.scale, MIN_SPEND)

    def score(self) -> Score:
        """The logarithm of the spend, for the graph."""
        parts = [] if self.regressor is None else [(self.regressor, 1.0)]
        return Score(parts, float(np.log(max(self.scale, MIN_SPEND))))


def fit_spend(
    learner: Learner, features: Features, spend: Floats, split: Split, seed: int
) -> tuple[SpendModel, SpendModel]:
    """Fit on one block, calibrate on a later one, and fit again on everything with that calibration.

    Args:
        learner: What to fit.
        features: Features ``[n, names]`` of all rows.
        spend: Spend ``[n]`` of all rows.
        split: Which rows are for what.
        seed: Of the learner.

    Returns:
        The model, and the first one, which has not been fitted on the calibration block.
    """
    first = SpendModel(learner.name, learner.fit(features[split.fit], spend[split.fit], seed))
    actual = float(spend[split.calibration].sum())
    scale = actual / float(first.predict(features[split.calibration]).sum()) if actual > 0 else 1.0
    refitted = learner.fit(features[split.everything], spend[split.everything], seed)
    return SpendModel(learner.name, refitted, scale), SpendModel(learner.name, first.regressor, scale)


def same_for_all(value: float) -> SpendModel:
    """The model for a shop without data on spend."""
    return SpendModel("the same for all", None, value)
