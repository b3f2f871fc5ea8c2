"""Values of customers who left, learnt from what comparable customers brought who stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import logit

from feature_store.state.layout import Floats
from training.arrays import Bools, Index

STRATA: Final = 10
MIN_STAYERS: Final = 30
"""Minimum number of customers in a stratum who stayed and whose spend is known."""

_INTERCEPT_PENALTY: Final = 1e-3
_SLOPE_PENALTY: Final = 1.0
"""Of a Gaussian prior: one observation's worth of information that a standardised covariate does not matter."""
_MAX_STEPS: Final = 50
_TOLERANCE: Final = 1e-10
_MAX_EXPONENT: Final = 30.0
_MIN_RISK: Final = 1e-6
_MIN_VALUE: Final = 1e-9


@dataclass(frozen=True)
class Stayers:
    """What the customers who stayed say about the values of comparable customers who left; each array has n rows.

    Attributes:
        has_left: 1 for customers who left, otherwise 0 ``[n]``.
        odds: Number of customers who left for each such customer who stayed ``[n]``; 0 for others.
        value: Value that is estimated from the history ``[n]``.
        residual: Realised minus estimated value of a customer who stayed ``[n]``; 0 for others.
        odds_fit: The regression of the odds.
        value_fit: The regression of the values, in units of their mean.
        unit: That mean.
    """

    has_left: Floats
    odds: Floats
    value: Floats
    residual: Floats
    odds_fit: LogLinear
    value_fit: LogLinear
    unit: float

    @property
    def correction(self) -> Floats:
        """What each row adds to the values of the customers who left ``[n]``."""
        return self.odds * self.residual

    def sampling_error(self, weight: Floats) -> Floats:
        """Contribution of each row to the error of both regressions in the total value that a policy is paid.

        This is the linearisation by the stacked estimating equations (Stefanski and Boos, 2002, "The calculus of
        M-estimation").

        Args:
            weight: Probability with which each policy contacts each row ``[n, policies]``.

        Returns:
            ``[n, policies]``; every column adds up to 0.
        """
        of_values, of_odds = self.value_fit, self.odds_fit
        by_value = of_values.design.T @ (weight * ((self.has_left - self.odds) * self.value)[:, np.newaxis])
        by_odds = of_odds.design.T @ (weight * self.correction[:, np.newaxis])
        value_step = of_values.solve(by_value)
        # The odds weight the rows of the value regression, so their errors move its coefficients.
        both = (of_values.design * (self.correction / self.unit)[:, np.newaxis]).T @ of_odds.design
        odds_step = of_odds.solve(by_odds + both.T @ value_step)
        error = of_values.scores() @ value_step + of_odds.scores() @ odds_step
        return np.asarray(error - error.mean(axis=0))


@dataclass(frozen=True)
class LogLinear:
    """A regression with a logarithmic link: weights a, targets b and coefficients with sum a·exp(x·β)·x = sum b·x.

    Attributes:
        design: Covariates x ``[n, k]``.
        fitted: a·exp(x·β) ``[n]``.
        target: b ``[n]``.
        exponential: exp(x·β) ``[n]``, for all rows.
        curvature: Derivative of the equations with respect to the coefficients ``[k, k]``.
    """

    design: Floats
    fitted: Floats
    target: Floats
    exponential: Floats
    curvature: Floats

    def solve(self, right: Floats) -> Floats:
        """Coefficients' change ``[k, m]`` for changes of the equations ``[k, m]``."""
        return np.asarray(np.linalg.solve(self.curvature, right))

    def scores(self) -> Floats:
        """Each row's part of the equations ``[n, k]``."""
        return np.asarray((self.target - self.fitted)[:, np.newaxis] * self.design)


def fit_log_linear(design: Floats, weight: Floats, target: Floats, penalty: Floats) -> LogLinear:
    """Fit by Newton's method, with a ridge penalty ``[k]`` on the coefficients."""
    penalties = np.diag(penalty)
    coefficients = np.zeros(design.shape[1])

    def exponential(at: Floats) -> Floats:
        return np.asarray(np.exp(np.minimum(design @ at, _MAX_EXPONENT)))

    def objective(at: Floats) -> float:
        return float(weight @ exponential(at) - target @ (design @ at) + at @ penalties @ at / 2)

    value = objective(coefficients)
    for _ in range(_MAX_STEPS):
        fitted = weight * exponential(coefficients)
        gradient = design.T @ (fitted - target) + penalties @ coefficients
        step = np.linalg.solve((design * fitted[:, np.newaxis]).T @ design + penalties, gradient)
        before = value
        while (value := objective(coefficients - step)) > before and np.abs(step).max() > _TOLERANCE:
            step = step / 2
        coefficients = coefficients - step
        if before - value <= _TOLERANCE * (1 + abs(value)):
            break
    each = exponential(coefficients)
    fitted = weight * each
    curvature = (design * fitted[:, np.newaxis]).T @ design + penalties
    return LogLinear(design, fitted, target, each, curvature)


def corrected_by_stayers(
    estimate: Floats, probability: Floats, model_value: Floats, label: Bools, stay_value: Floats
) -> tuple[Floats, Stayers | None]:
    """Estimate the values of customers who left from what comparable customers brought who stayed.

    What a customer who left would have brought cannot be observed. Two regressions on the rows stand in for it:

    - the *odds* of having left, with an intercept for each stratum of risk (Rosenbaum and Rubin, 1984). Weighted by
      them, the customers who stayed agree with those who left in the number of each stratum and in the mean of both
      covariates (entropy balancing; Hainmueller, 2012);
    - the *values* of customers who stayed, weighted by the odds, on the risk and both covariates.

    The covariates are the value of the customer's own history and the model's value. The model's value counts as far as
    the money that came agrees with it: its coefficients are learnt from that money, so a worthless one has none.

    Customers who left are paid the estimated value. The errors for customers who stayed, weighted by the odds, are paid
    as well. So the total over any group of customers that a policy chooses is doubly robust (Robins, Rotnitzky and
    Zhao, 1994): it is right if the odds or the values are.

    The assumption is that a customer who is won back spends like one of equal risk and history who stayed.

    Args:
        estimate: Values ``[n]`` from the history of each customer alone, which are returned if too few stayed.
        probability: Of churn ``[n]``.
        model_value: The model's values ``[n]``.
        label: Whether the customer left ``[n]``.
        stay_value: Realised value ``[n]`` of the customers who stayed; NaN for others, and where it is not known yet.

    Returns:
        The values ``[n]``, and what the customers who stayed say about them; the estimate itself and None if too few
        customers stayed.
    """
    stayed = np.isfinite(stay_value) & ~label
    brought = np.where(stayed, stay_value, 0.0)
    if stayed.sum() < MIN_STAYERS or not brought.any():
        return estimate, None
    stratum = _strata(probability, stayed)
    risk = logit(np.clip(probability, _MIN_RISK, 1 - _MIN_RISK))
    own = np.log1p(estimate / max(float(estimate.mean()), _MIN_VALUE))
    covariates = _standardised(np.column_stack([risk, own, np.log(np.maximum(model_value, _MIN_VALUE))]), stayed)
    # The strata stand for the risk in the odds: with a slope, the few customers of the highest risk who stay would
    # have most of the weight.
    odds_fit = _fit(np.eye(stratum.max() + 1)[stratum], covariates[:, 1:], stayed, label)
    odds, unit = odds_fit.fitted, float(brought.sum() / stayed.sum())
    value_fit = _fit(np.ones((len(label), 1)), covariates, odds, odds * brought / unit)
    value = unit * value_fit.exponential
    residual = np.where(stayed, brought - value, 0.0)
    return value, Stayers(label.astype(np.float64), odds, value, residual, odds_fit, value_fit, unit)


def _standardised(covariates: Floats, stayed: Bools) -> Floats:
    """Covariates ``[n, k]`` with mean 0 and standard deviation 1 among the customers who stayed, within their range.

    Beyond the range of the customers who stayed nothing is known, so nothing is extrapolated.
    """
    of_stayers = covariates[stayed]
    inside = np.clip(covariates, of_stayers.min(axis=0), of_stayers.max(axis=0))
    deviation = of_stayers.std(axis=0)
    return np.asarray((inside - of_stayers.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))


def _fit(intercepts: Floats, slopes: Floats, weight: Floats | Bools, target: Floats | Bools) -> LogLinear:
    penalty = np.repeat([_INTERCEPT_PENALTY, _SLOPE_PENALTY], [intercepts.shape[1], slopes.shape[1]])
    design = np.column_stack([intercepts, slopes])
    return fit_log_linear(design, np.asarray(weight, dtype=np.float64), np.asarray(target, dtype=np.float64), penalty)


def _strata(probability: Floats, stayed: Bools) -> Index:
    """Strata ``[n]`` of about equal size by rank of the probability, each with at least MIN_STAYERS who stayed."""
    stratum = np.zeros(len(probability), dtype=np.intp)
    number, stayers, later = 0, 0, int(stayed.sum())
    # From the highest risk down, because few customers stay there.
    for part in np.array_split(np.argsort(-probability, kind="stable"), STRATA):
        stratum[part] = number
        stayers, later = stayers + int(stayed[part].sum()), later - int(stayed[part].sum())
        if min(stayers, later) >= MIN_STAYERS:
            number, stayers = number + 1, 0
    return stratum
