"""Models of spend: what a customer spends if an offer wins, which the threshold of each customer depends on.

The value of a win is margin times a *conditional* expectation, the second part of a two-part model (Duan et al., 1983,
"A comparison of alternative models for the demand for medical care"); the probability of the outcome is the first.

- churn: spend over the value horizon of customers who stay. Spend of all customers would count the risk twice, because
  a customer who leaves spends nothing in the same time.
- propensity: the mean amount of one purchase of customers who buy. The offer wins one more purchase, not all of them.

It is assumed that a customer whom an offer wins then spends like a similar customer who stays, or buys, without one.

The candidates are a generalised linear model and boosted trees, both for Poisson deviance with a log link. They are
calibrated on a later block, like probabilities are, by a factor, because spend drifts as a whole (prices, seasons). The
amount of a purchase is also calibrated by a power, the calibration slope of Cox (1958), because its models draw large
values towards the mean, and offers go to customers with large values. In every fold of the sample it lowered the loss,
and the tenth with the largest values went from 0.93 to 0.96 of what came. For spend over a horizon, whose slope changes
with the season, it raised the loss in two folds of three.
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
from training.models.learners import SELECTION_TREES, Learner, Part, tree_parameters
from training.models.scores import Score

MIN_SPEND: Final = 1e-9
"""Lower bound of predictions, because the deviance needs positive ones."""


def _linear(seed: int, rows: int) -> Pipeline:  # noqa: ARG001 - the signature of Make
    # Newton's method: with amounts of a few units, lbfgs has not converged after 1,000 iterations.
    return make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-2, solver="newton-cholesky", max_iter=100))


def _trees(iterations: int, seed: int, rows: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(loss="poisson", **tree_parameters(seed, rows, iterations))


REGRESSORS: Final = (
    Learner("Poisson GLM", (Part(_linear),)),
    Learner("Poisson boosted trees", (Part(partial(_trees, 100)),)),
)
"""Learners of spend, the simplest first."""

SELECTION_REGRESSOR: Final = Part(partial(_trees, SELECTION_TREES))
"""The learner for feature selection."""


MIN_CALIBRATION_ROWS: Final = 100
"""From about this number of rows on, the power of the calibration follows the rows rather than the prior of 1."""
_MAX_STEPS: Final = 50
_TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class SpendModel:
    """A fitted regressor with its calibration: ``scale`` times its prediction to the power of ``slope``.

    Without a regressor, the scale is the spend.
    """

    name: str
    regressor: Any
    scale: float = 1.0
    slope: float = 1.0

    def predict(self, features: Features) -> Floats:
        """Spend ``[n]``, at least MIN_SPEND."""
        if self.regressor is None:
            return np.full(len(features), max(self.scale, MIN_SPEND))
        predicted: Floats = self.regressor.predict(features.astype(np.float64)).astype(np.float64)
        return np.maximum(predicted**self.slope * self.scale, MIN_SPEND)

    def score(self) -> Score:
        """The logarithm of the spend, for the graph."""
        parts = [] if self.regressor is None else [(self.regressor, self.slope)]
        return Score(parts, float(np.log(max(self.scale, MIN_SPEND))))


def fit_spend(
    learner: Learner, features: Features, spend: Floats, split: Split, seed: int, *, with_power: bool = False
) -> tuple[SpendModel, SpendModel]:
    """Fit on one block, calibrate on a later one, and fit again on everything with that calibration.

    Args:
        learner: What to fit.
        features: Features ``[n, names]`` of all rows.
        spend: Spend ``[n]`` of all rows.
        split: Which rows are for what.
        seed: Of the learner.
        with_power: Whether the calibration has a power beside the factor.

    Returns:
        The model, and the first one, which has not been fitted on the calibration block.
    """
    regressor = learner.fit(features[split.fit], spend[split.fit], seed)
    scale, slope = 1.0, 1.0
    if len(split.calibration):
        predicted = SpendModel(learner.name, regressor).predict(features[split.calibration])
        scale, slope = calibration(predicted, spend[split.calibration], with_power=with_power)
    refitted = learner.fit(features[split.everything], spend[split.everything], seed)
    return SpendModel(learner.name, refitted, scale, slope), SpendModel(learner.name, regressor, scale, slope)


def calibration(predicted: Floats, actual: Floats, *, with_power: bool) -> tuple[float, float]:
    """Factor and power of predictions ``[n]`` that fit the actual spend ``[n]`` best, by Poisson regression.

    With both, the predictions have the total of the actual spend, and agree with it on the large ones as on the small
    ones. A prior of MIN_CALIBRATION_ROWS rows holds the power near 1.

    Returns:
        The factor and the power; 1 and 1 if nothing was spent. The power is 1 if it is not wanted.
    """
    if not actual.any():
        return 1.0, 1.0
    if not with_power:
        return float(actual.sum() / predicted.sum()), 1.0
    logarithm = np.log(predicted)
    centred = logarithm - float(np.average(logarithm, weights=predicted))
    spread = float(np.average(centred**2, weights=predicted))
    slope = 1.0
    prior = MIN_CALIBRATION_ROWS * float(actual.mean()) * spread
    for _ in range(_MAX_STEPS):
        fitted = np.exp(slope * centred)
        fitted *= actual.sum() / fitted.sum()
        around = centred - float(np.average(centred, weights=fitted))
        gradient = float(around @ (actual - fitted)) + prior * (1 - slope)
        step = gradient / max(float(around**2 @ fitted) + prior, MIN_SPEND)
        slope += step
        if abs(step) < _TOLERANCE:
            break
    return float(actual.sum() / (predicted**slope).sum()), slope


def same_for_all(value: float) -> SpendModel:
    """The model for a shop without data on spend."""
    return SpendModel("the same for all", None, value)
