"""Off-policy evaluation: the value of a policy, estimated from data in which an offer was randomised.

Each customer was treated with a known probability. Customers whose treatment agrees with a policy represent all
customers when they are weighted by the inverse probability of their treatment, so no assumption about customers is
needed:

    IPS     inverse propensity scoring, the weighted mean: unbiased, with the largest variance
    SNIPS   self-normalised IPS (Swaminathan and Joachims, 2015): slightly biased, invariant to shifts of the outcome
    DR      doubly robust (Dudik et al., 2011): a model's prediction, corrected by weighted residuals; unbiased for any
            model, and of lower variance with a good one

The 95 % intervals come from the influence of each customer (all rows of a customer together).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.evidence import Finding, Value
from training.statistics import clustered_standard_error

Z_95: Final = 1.959964
# Two tests of the stated probabilities, each with a false alarm rate of one in a thousand.
Z_ALARM: Final = 3.2905
MIN_PER_ARM: Final = 50


@dataclass(frozen=True)
class Experiment:
    """A randomised offer, each array ``[n]``.

    Attributes:
        treated: Whether the customer was treated.
        chance: Probability with which the customer was treated.
        outcome: The observed outcome.
        cost: Cost of treating the customer, in the unit of the outcome.
        customer: Hash of the id, uint64.
    """

    treated: npt.NDArray[np.bool_]
    chance: Floats
    outcome: Floats
    cost: Floats
    customer: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.treated)

    @property
    def gained(self) -> Floats:
        """The outcome net of the cost of treatment."""
        return self.outcome - self.cost * self.treated


def experiment(
    treated: npt.ArrayLike,
    chance: npt.ArrayLike,
    outcome: npt.ArrayLike,
    customer: npt.NDArray[np.uint64],
    cost: npt.ArrayLike = 0.0,
) -> Experiment:
    """Check the columns of a randomised offer.

    Args:
        treated: 0 or 1, ``[n]``.
        chance: Probability of treatment, ``[n]`` or one number.
        outcome: ``[n]``.
        customer: Hashes of the ids, ``[n]``.
        cost: Cost of treating, ``[n]`` or one number.

    Raises:
        InputError: If the columns are not those of a randomised trial with enough customers.
    """
    flags, n = _numbers("treatment.column", treated), len(customer)
    chances = np.broadcast_to(_numbers("treatment.probability", chance), n)
    costs = np.broadcast_to(_numbers("treatment.cost", cost), n)
    outcomes = _numbers("treatment.outcome", outcome)
    _refuse("treatment.column", flags, np.isin(flags, (0.0, 1.0)), "0 or 1", "1 if the offer was made, otherwise 0")
    fix = "a probability between 0 and 1 for everybody, and leave out customers whose treatment was not randomised"
    _refuse("treatment.probability", chances, (chances > 0) & (chances < 1), "above 0 and below 1", fix)
    _refuse("treatment.outcome", outcomes, np.isfinite(outcomes), "a number", "0 if there was no outcome")
    _refuse("treatment.cost", costs, np.isfinite(costs) & (costs >= 0), "0 or more", "the cost of treating a customer")
    arms = int(flags.sum()), int(len(flags) - flags.sum())
    if min(arms) < MIN_PER_ARM:
        raise InputError(
            f"treatment.column: {arms[0]:,} rows were treated and {arms[1]:,} were not; {MIN_PER_ARM} of each are "
            "needed to measure an effect: include the rows of both groups, as randomised"
        )
    return Experiment(flags.astype(bool), chances, outcomes, costs, customer)


def check_chance(data: Experiment) -> Finding | None:
    """A warning if the stated probabilities are implausible, given who was treated."""
    surprise = data.treated - data.chance
    slope = data.chance - data.chance.mean()
    z = _z(surprise, data.customer), _z(surprise * slope, data.customer)
    if max(abs(z[0]), abs(z[1])) < Z_ALARM:
        return None
    observed, stated = float(data.treated.mean()), float(data.chance.mean())
    how = (
        f"{observed:.4f} of the rows were treated; by the stated probability it should be {stated:.4f} (z = {z[0]:.1f})"
    )
    if abs(z[0]) < Z_ALARM:
        how = f"customers with a higher stated probability were not treated accordingly more often (z = {z[1]:.1f})"
    return Finding(
        severity="warning",
        check="treatment probability",
        where="treatment.probability",
        message=f"{how}: every policy value below is biased",
        fix="give the probability that was used for each customer, and check that no rows were lost in one group",
        share=observed,
    )


def policy_values(policy: str, influence: dict[str, Floats], customer: npt.NDArray[np.uint64]) -> list[Value]:
    """The value by each estimator, from the ``influences`` of a policy or their difference between two policies."""
    cluster = np.unique(customer, return_inverse=True)[1]
    values = []
    for estimator, contribution in influence.items():
        value = float(contribution.mean())
        error = Z_95 * clustered_standard_error(contribution, cluster, small_sample=True)
        values.append(Value(policy=policy, estimator=estimator, value=value, low=value - error, high=value + error))
    return values


def influences(choice: Floats, data: Experiment, predicted: Floats) -> dict[str, Floats]:
    """Contribution ``[n]`` of each row to the value of a policy, by estimator; the mean is the estimate.

    Args:
        choice: Probability ``[n]`` with which the policy treats.
        data: The randomised offer.
        predicted: Predicted outcomes untreated and treated ``[2, n]``, by models that have not seen the row.
    """
    agrees = np.where(data.treated, choice / data.chance, (1 - choice) / (1 - data.chance))
    untreated, treated = predicted[0], predicted[1] - data.cost
    weighted = agrees * data.gained
    mean_weight = agrees.mean() or 1.0
    ratio = weighted.mean() / mean_weight
    residual = agrees * (data.gained - np.where(data.treated, treated, untreated))
    return {
        "IPS": weighted,
        "SNIPS": ratio + agrees / mean_weight * (data.gained - ratio),
        "DR": choice * treated + (1 - choice) * untreated + residual,
    }


def _numbers(key: str, column: npt.ArrayLike) -> Floats:
    try:
        return np.asarray(np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan))
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: the column is not a number: convert it in SQL") from error


def _refuse(key: str, column: Floats, good: npt.NDArray[np.bool_], wanted: str, fix: str) -> None:
    """Raise an InputError with the number of bad values and the first of them, if there are any."""
    bad = np.flatnonzero(~good)
    if len(bad):
        first = f"{column[bad[0]]:g}"
        raise InputError(f"{key}: {len(bad):,} of {len(column):,} are not {wanted} (the first is {first}): give {fix}")


def _by_customer(values: Floats, customer: npt.NDArray[np.uint64]) -> Floats:
    names, rows = np.unique(customer, return_inverse=True)
    return np.bincount(rows, values, len(names)).astype(np.float64)


def _z(values: Floats, customer: npt.NDArray[np.uint64]) -> float:
    """Distance of the sum from zero, in standard errors clustered by customer."""
    sums = _by_customer(values, customer)
    return float(sums.sum() / max(np.sqrt((sums**2).sum()), 1e-12))
