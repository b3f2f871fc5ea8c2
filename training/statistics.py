"""Intervals by the bootstrap, with customers drawn whole: a customer's rows at several cut-offs are not independent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.state.layout import Floats

RESAMPLES: Final = 500
INTERVAL: Final = (2.5, 97.5)

# Customers at once: what is held in memory is this many times the number of resamples.
_CHUNK: Final = 4096
_BITS: Final = 16


@dataclass(frozen=True)
class Interval:
    """95 % of the resampled figures lie within."""

    low: float
    high: float


def resampled_totals(
    contributions: Floats, customer: npt.NDArray[np.uint64], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Totals of columns over resampled customers: ``[resamples, columns]`` from ``[rows, columns]``.

    Each customer is drawn a Poisson(1) number of times and the total brought back to as many customers as there are,
    which is the multinomial bootstrap without its bookkeeping.
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
    drawn_customers = np.maximum(totals[:, -1:], 1.0)
    return np.asarray(totals[:, :-1] * (len(names) / drawn_customers))


def interval(resampled: Floats, point: float) -> Interval:
    """The interval of one figure ``[resamples]``; it holds the figure itself, whatever the rounding or the skew."""
    low, high = np.percentile(resampled, INTERVAL)
    return Interval(min(float(low), point), max(float(high), point))


def _poisson_table() -> Floats:
    """The Poisson(1) quantile of each 16-bit number: far cheaper to look up than to draw."""
    chances = [math.exp(-1) / math.factorial(times) for times in range(10)]
    numbers = (np.arange(2**_BITS) + 0.5) / 2**_BITS
    return np.searchsorted(np.cumsum(chances), numbers).astype(np.float64)
