"""Losses by row, standard errors clustered by customer, and the cluster bootstrap.

The rows of a customer at several cut-offs are not independent, so customers, not rows, are the unit everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from feature_store.state.layout import Floats
from training.arrays import Index

RESAMPLES: Final = 500
INTERVAL: Final = (2.5, 97.5)
NORMAL_95: Final = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
_LITTLE_SKEWNESS: Final = 1e-6
"""Below it Hall's transformation is the identity up to rounding errors."""

# Customers at a time: memory is this number times the number of resamples.
_CHUNK: Final = 4096
_BITS: Final = 16


def log_losses(label: npt.ArrayLike, probability: Floats, *, clip: float = 1e-12) -> Floats:
    """Log loss of each row, in nats; probabilities are clipped to [clip, 1 - clip]."""
    outcome, p = np.asarray(label, dtype=np.float64), np.clip(probability, clip, 1 - clip)
    return np.asarray(-(outcome * np.log(p) + (1 - outcome) * np.log1p(-p)))


def poisson_losses(actual: Floats, expected: Floats) -> Floats:
    """Poisson deviance of each row; ``expected`` must be positive."""
    return np.asarray(2 * (xlogy(actual, actual / expected) - actual + expected))


def clustered_standard_error(values: Floats, cluster: Index, *, small_sample: bool = False) -> float:
    """Standard error of a mean, with rows clustered (Liang and Zeger, 1986).

    Args:
        values: ``[n]``.
        cluster: Number of the cluster of each row ``[n]``, from 0.
        small_sample: Apply the correction G / (G - 1) for G clusters; then every number up to G - 1 must occur.
    """
    sums = np.bincount(cluster, values - values.mean())
    squares = (sums**2).sum()
    if small_sample:
        squares = squares * len(sums) / max(len(sums) - 1, 1)
    return float(np.sqrt(squares) / len(values))


def random_rows(rows: int, size: int, seed: int) -> Index:
    """Ascending indexes of ``size`` random rows out of ``rows``; of all rows if there are not more."""
    if rows <= size:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def resampled_totals(
    contributions: Floats, customer: npt.NDArray[np.uint64], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Totals of columns over resampled customers, by the Poisson bootstrap (Chamandy et al., 2012).

    Each customer is drawn a Poisson(1) number of times, and the total is scaled to the original number of customers,
    which approximates the multinomial bootstrap.

    Args:
        contributions: ``[rows, columns]``.
        customer: Hash of the customer of each row ``[rows]``, uint64.
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        Totals ``[resamples, columns]``.
    """
    names, rows = np.unique(customer, return_inverse=True)
    by_customer = np.column_stack(
        [*(np.bincount(rows, column, len(names)) for column in contributions.T), np.ones(len(names))]
    )
    random, table = np.random.default_rng(seed), _poisson_table()
    totals = np.zeros((resamples, by_customer.shape[1]))
    for start in range(0, len(names), _CHUNK):
        part = by_customer[start : start + _CHUNK]
        drawn = table[random.integers(0, len(table), (resamples, len(part)), dtype=np.uint16)]
        totals += drawn @ part
    customers_drawn = np.maximum(totals[:, -1:], 1.0)
    return np.asarray(totals[:, :-1] * (len(names) / customers_drawn))


def interval(resampled: Floats, point: float) -> Interval:
    """The percentile interval of resampled figures ``[resamples]``, extended to contain the estimate ``point``."""
    low, high = np.percentile(resampled, INTERVAL)
    return Interval(min(float(low), point), max(float(high), point))


def total_intervals(contributions: Floats, customer: npt.NDArray[np.uint64]) -> list[Interval]:
    """The 95 % interval of the total of each column, with rows clustered by customer.

    A few customers with large amounts make totals skew, so the bounds follow Hall's transformation ("On the removal of
    skewness by transformation", 1992), a correction of the normal interval by the skewness of the sums over customers.

    Args:
        contributions: ``[rows, columns]``.
        customer: Hash of the customer of each row ``[rows]``, uint64.

    Returns:
        One interval per column.
    """
    names, rows = np.unique(customer, return_inverse=True)
    sums = np.column_stack([np.bincount(rows, column, len(names)) for column in contributions.T])
    deviations = sums - sums.mean(axis=0)
    squares = (deviations**2).sum(axis=0)
    error = np.sqrt(squares * len(names) / max(len(names) - 1, 1))
    skewness = (deviations**3).sum(axis=0) / np.where(squares > 0, squares, 1.0) ** 1.5
    low, high = (_hall_quantile(z, skewness) for z in (NORMAL_95, -NORMAL_95))
    totals = sums.sum(axis=0)
    return [
        Interval(float(bottom), float(top))
        for bottom, top in zip(totals - error * low, totals - error * high, strict=True)
    ]


def _hall_quantile(z: float, skewness: Floats) -> Floats:
    """Quantiles of studentised totals ``[n]`` with this skewness: the inverse of Hall's transformation."""
    skew = np.abs(skewness) > _LITTLE_SKEWNESS
    divisor = np.where(skew, skewness, 1.0)
    transformed = 3 / divisor * (np.cbrt(1 + divisor * (z - divisor / 6)) - 1)
    return np.where(skew, transformed, z)


def _poisson_table() -> Floats:
    """The Poisson(1) quantile of each 16-bit number, so that a draw is a table look-up."""
    chances = [math.exp(-1) / math.factorial(times) for times in range(10)]
    numbers = (np.arange(2**_BITS) + 0.5) / 2**_BITS
    return np.searchsorted(np.cumsum(chances), numbers).astype(np.float64)
