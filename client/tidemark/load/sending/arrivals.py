"""When calls start and which customers they ask for: drawn from a seed in advance, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemark.load.plan import Arrivals, IdDistribution

BLOCK: Final = 1024
"""How many are drawn at a time: few enough not to delay calls that are due."""


def arrival_times(
    arrivals: Arrivals, rate: float, start: float, stop: float, rng: np.random.Generator, phase: float = 0.0
) -> Iterator[NDArray[np.float64]]:
    """Draw the times at which calls start, in seconds.

    Args:
        arrivals: ``poisson`` for exponential gaps, ``constant`` for equal ones.
        rate: calls a second.
        start: the first time may be here.
        stop: all times are before this.
        rng: source of the exponential gaps.
        phase: constant arrivals begin this share of an interval after ``start``, so that processes take turns.

    Yields:
        Blocks of increasing times.
    """
    last = start
    for block in count():
        if arrivals == "poisson":
            times = last + np.cumsum(rng.exponential(1 / rate, BLOCK))
        else:
            times = start + (np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64) + phase) / rate
        last = float(times[-1])
        yield times[: int(np.searchsorted(times, stop))]
        if last >= stop:
            return


class IdSampler:
    """Draws indices of ids, uniformly or by Zipf's law: the id of rank r has a weight of r ** -exponent.

    The ranks are assigned at random from ``seed``, so that all processes have the same popular ids.
    """

    def __init__(self, number: int, distribution: IdDistribution, exponent: float, seed: int) -> None:
        self._number: Final = number
        self._cumulative: NDArray[np.float64] | None = None
        if distribution == "zipf":
            weights = np.arange(1, number + 1, dtype=np.float64) ** -exponent
            self._cumulative = np.cumsum(weights / weights.sum())
            self._ranked = np.random.default_rng(seed).permutation(number)

    def sample(self, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``size`` indices, with replacement."""
        if self._cumulative is None:
            return rng.integers(self._number, size=size)
        ranks = np.searchsorted(self._cumulative, rng.random(size))
        return np.asarray(self._ranked[np.minimum(ranks, self._number - 1)], dtype=np.int64)
