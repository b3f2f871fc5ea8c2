"""Offers made at random: what a policy would have been worth, and the rates that the config otherwise assumes.

Each customer was treated with a known chance. Weighted by one over the chance of what was done, the customers whose
treatment agrees with a policy stand for all of them, so the policy's value needs no assumption about customers:

    IPS     the plain weighted mean: unbiased, and the widest
    SNIPS   the same over the mean weight: nearly unbiased, and does not mind how outcomes are centred
    DR      a model's prediction, put right by the weighted residuals: unbiased whatever the model, narrower if good

Intervals are 95 % ones from the influence of each customer (all rows of a customer together).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.evidence import Finding, Value

Z_95: Final = 1.959964
# Two tests of the stated chances, each wrong for one good config in a thousand.
Z_ALARM: Final = 3.2905
LEAST_PER_ARM: Final = 50
LEAST_EVENTS: Final = 5


@dataclass(frozen=True)
class Experiment:
    """Rows of an offer made at random, each array ``[n]``.

    treated: bool; chance: with which the customer was treated; outcome: what came, and cost: what treating costs, both
    in the same unit; customer: uint64 hash of the id.
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
        """The outcome after what treating has cost."""
        return self.outcome - self.cost * self.treated


@dataclass(frozen=True)
class MeasuredRate:
    """A success rate measured on randomised data, with its 95 % interval, and the rates it was made from.

    For churn it is the share of leavers that the offer kept, for propensity the further buyers for each one there would
    have been anyway. It may be negative (the offer does harm) or, for propensity, above 1.
    """

    success_rate: float
    low: float
    high: float
    untreated: float
    treated: float

    @property
    def usable(self) -> float:
        """The rate for a config, which takes shares."""
        return min(max(self.success_rate, 0.0), 1.0)


def experiment(
    treated: npt.ArrayLike,
    chance: npt.ArrayLike,
    outcome: npt.ArrayLike,
    customer: npt.NDArray[np.uint64],
    cost: npt.ArrayLike = 0.0,
) -> Experiment:
    """Columns as a table has them; ``chance`` and ``cost`` may be one number. InputError where they are no trial."""
    flags, n = _numbers("treatment.column", treated), len(customer)
    chances = np.broadcast_to(_numbers("treatment.probability", chance), n)
    costs = np.broadcast_to(_numbers("treatment.cost", cost), n)
    outcomes = _numbers("treatment.outcome", outcome)
    _refuse("treatment.column", flags, np.isin(flags, (0.0, 1.0)), "0 or 1", "1 where the offer was made, 0 where not")
    fix = "a chance between the two for everybody, and no rows of customers for whom chance did not decide"
    _refuse("treatment.probability", chances, (chances > 0) & (chances < 1), "above 0 and below 1", fix)
    _refuse("treatment.outcome", outcomes, np.isfinite(outcomes), "a number", "0 where nothing came")
    _refuse("treatment.cost", costs, np.isfinite(costs) & (costs >= 0), "0 or more", "what treating a customer costs")
    arms = int(flags.sum()), int(len(flags) - flags.sum())
    if min(arms) < LEAST_PER_ARM:
        raise InputError(
            f"treatment.column: {arms[0]:,} rows were treated and {arms[1]:,} were not, {LEAST_PER_ARM} of each are "
            "needed to measure an effect: bring the rows of both, as chance made them"
        )
    return Experiment(flags.astype(bool), chances, outcomes, costs, customer)


def check_chance(data: Experiment) -> Finding | None:
    """A warning where the stated chances cannot be those that treated these customers."""
    surprise = data.treated - data.chance
    slope = data.chance - data.chance.mean()
    z = _z(surprise, data.customer), _z(surprise * slope, data.customer)
    if max(abs(z[0]), abs(z[1])) < Z_ALARM:
        return None
    observed, stated = float(data.treated.mean()), float(data.chance.mean())
    how = (
        f"{observed:.4f} of the rows were treated, by the stated probability it should be {stated:.4f} (z = {z[0]:.1f})"
    )
    if abs(z[0]) < Z_ALARM:
        how = f"customers with a higher stated probability were not treated as much more often (z = {z[1]:.1f})"
    return Finding(
        severity="warning",
        check="treatment probability",
        where="treatment.probability",
        message=f"{how}: every policy value below is biased",
        fix="state the chance that decided for each customer, and see that no rows were lost on one side",
        share=observed,
    )


def policy_values(policy: str, influence: dict[str, Floats], customer: npt.NDArray[np.uint64]) -> list[Value]:
    """One row for each estimator, from ``influences`` of a policy or the difference of two."""
    found = []
    for estimator, each in influence.items():
        value = float(each.mean())
        error = Z_95 * _standard_error(each, customer)
        found.append(Value(policy=policy, estimator=estimator, value=value, low=value - error, high=value + error))
    return found


def influences(choice: Floats, data: Experiment, predicted: Floats) -> dict[str, Floats]:
    """What each row says about the value of a policy, ``[n]`` by estimator: its mean is the estimate.

    choice: the chance ``[n]`` with which the policy treats; predicted: ``[2, n]`` outcome untreated and treated, by a
    model that has not seen the row.
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


def measured_rates(
    name: str, label: npt.ArrayLike, treated: npt.ArrayLike, chance: npt.ArrayLike, customer: npt.NDArray[np.uint64]
) -> MeasuredRate:
    """The success rate of an offer (``churn``: label is leaving; ``propensity``: buying), to use in place of a guess.

    InputError where too few customers left (or bought) in either arm to say anything.
    """
    data = experiment(treated, chance, label, customer)
    meant = data.outcome > 0
    events = int((meant & data.treated).sum()), int((meant & ~data.treated).sum())
    if min(events) < LEAST_EVENTS:
        raise InputError(
            f"treatment: {events[0]} treated and {events[1]} untreated rows have a {name} label, {LEAST_EVENTS} each "
            f"are needed to measure a rate: leave economics.{name}.success_rate as it is, or bring more rows"
        )
    binary = Experiment(data.treated, data.chance, meant.astype(np.float64), np.zeros(len(data)), customer)
    none = np.zeros((2, len(data)))
    untreated, everybody = (influences(np.full(len(data), share), binary, none)["SNIPS"] for share in (0.0, 1.0))
    rates = float(untreated.mean()), float(everybody.mean())
    ratio = rates[1] / rates[0]
    # On the log scale, where the error of a ratio is symmetric.
    spread = math.exp(Z_95 * _standard_error(everybody / rates[1] - untreated / rates[0], customer))
    ends = ratio / spread, ratio, ratio * spread
    low, rate, high = (1 - end for end in reversed(ends)) if name == "churn" else (end - 1 for end in ends)
    return MeasuredRate(rate, low, high, *rates)


def _numbers(key: str, column: npt.ArrayLike) -> Floats:
    try:
        return np.asarray(np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan))
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: the column is no number: turn it into one in the SQL") from error


def _refuse(key: str, column: Floats, good: npt.NDArray[np.bool_], wanted: str, fix: str) -> None:
    """InputError naming how many values are bad, and the first."""
    bad = np.flatnonzero(~good)
    if len(bad):
        first = f"{column[bad[0]]:g}"
        raise InputError(f"{key}: {len(bad):,} of {len(column):,} are not {wanted} (the first is {first}): give {fix}")


def _by_customer(values: Floats, customer: npt.NDArray[np.uint64]) -> Floats:
    names, rows = np.unique(customer, return_inverse=True)
    return np.bincount(rows, values, len(names)).astype(np.float64)


def _standard_error(values: Floats, customer: npt.NDArray[np.uint64]) -> float:
    """Of the mean of ``values``, where rows of a customer belong together."""
    sums = _by_customer(values - values.mean(), customer)
    return float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)) / len(values))


def _z(values: Floats, customer: npt.NDArray[np.uint64]) -> float:
    """How many standard errors the sum is away from nought."""
    sums = _by_customer(values, customer)
    return float(sums.sum() / max(np.sqrt((sums**2).sum()), 1e-12))
