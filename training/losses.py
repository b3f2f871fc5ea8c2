"""What a model loses on rows it was not made from, and whether another one loses more beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from feature_store.state.layout import Floats
from training.data.dataset import Index


def log_losses(label: Floats, probability: Floats) -> Floats:
    """Log loss of each row; probabilities are kept off 0 and 1 by a hair."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.asarray(-(label * np.log(p) + (1 - label) * np.log1p(-p)))


def poisson_losses(actual: Floats, expected: Floats) -> Floats:
    """Poisson deviance of each row."""
    return np.asarray(2 * (xlogy(actual, actual / expected) - actual + expected))


@dataclass(frozen=True)
class Behind:
    """How much more one loses than the best, in the mean, with its standard error."""

    mean: float
    error: float

    @property
    def within(self) -> bool:
        """Whether noise alone may explain it: not more than one standard error."""
        return self.mean <= self.error


def behind(losses: Floats, best: Floats, customer: Index) -> Behind:
    """Paired comparison of losses on the same rows ``[n]``.

    The standard error takes a customer's rows together, because they are much alike.
    """
    difference = losses - best
    mean = float(difference.mean())
    by_customer = np.bincount(customer, weights=difference - mean)
    return Behind(mean, float(np.sqrt((by_customer**2).sum()) / len(losses)))


def simplest(losses: Sequence[Floats], customer: Index) -> tuple[int, list[Behind]]:
    """The first (simplest) of several that is within one standard error of the best, and how far behind each is."""
    best = min(losses, key=lambda one: float(one.mean()))
    found = [behind(one, best, customer) for one in losses]
    return next(at for at, one in enumerate(found) if one.within), found
