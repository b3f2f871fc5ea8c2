"""When calls begin and whom they are about: drawn beforehand from a seed, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemark.load.plan import Arrivals, Draw

BLOCK: Final = 1024
"""Drawn at a time: few enough not to hold up calls that are due."""


def times(
    arrivals: Arrivals, rate: float, start: float, stop: float, rng: np.random.Generator, phase: float = 0.0
) -> Iterator[NDArray[np.float64]]:
    """Blocks of times from ``start`` on, before ``stop``, in order, at so many a second.

    Constant arrivals begin ``phase`` of an interval after the start, so that processes take turns.
    """
    last = start
    for block in count():
        if arrivals == "poisson":
            found = last + np.cumsum(rng.exponential(1 / rate, BLOCK))
        else:
            found = start + (np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float64) + phase) / rate
        last = float(found[-1])
        yield found[: int(np.searchsorted(found, stop))]
        if last >= stop:
            return


class Ids:
    """Draws from so many ids by their index: all alike, or by Zipf's law over ranks given by lot.

    The lot is that of ``seed``, so that all processes have the same favourites; the draws are each one's own.
    """

    def __init__(self, number: int, draw: Draw, exponent: float, seed: int) -> None:
        self._number: Final = number
        self._cumulative: NDArray[np.float64] | None = None
        if draw == "zipf":
            weights = np.arange(1, number + 1, dtype=np.float64) ** -exponent
            self._cumulative = np.cumsum(weights / weights.sum())
            self._ranked = np.random.default_rng(seed).permutation(number)

    def draw(self, number: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """So many indices."""
        if self._cumulative is None:
            return rng.integers(self._number, size=number)
        at = np.searchsorted(self._cumulative, rng.random(number))
        return np.asarray(self._ranked[np.minimum(at, self._number - 1)], dtype=np.int64)
