"""Values of customers who left, corrected by what customers of equal risk brought who stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.arrays import Bools, Index

STRATA: Final = 20
MIN_STAYERS: Final = 10
"""Minimum number of customers in a stratum who stayed and whose spend is known."""


@dataclass(frozen=True)
class Stayers:
    """What the customers who stayed say about the values of customers of equal risk who left.

    Attributes:
        stratum: Number of the row's stratum ``[n]``, from 0; a stratum has customers of about equal risk.
        residual: Realised minus estimated value of a customer who stayed ``[n]``; 0 for others.
        has_stayed: 1 for customers who stayed and whose value is known, otherwise 0 ``[n]``.
        left_per_stayer: Number of customers who left for each of these, by stratum.
        realised_total: Total realised value of these, by stratum.
    """

    stratum: Index
    residual: Floats
    has_stayed: Floats
    left_per_stayer: Floats
    realised_total: Floats

    @property
    def correction(self) -> Floats:
        """What each row adds to the values of the customers who left ``[n]``."""
        return self.left_per_stayer[self.stratum] * self.residual

    def sampling_error(self, weight: Floats, label: Bools, value: Floats) -> Floats:
        """Contribution ``[n]`` of each row to the error of the scale and the odds of its stratum (linearisation).

        Args:
            weight: Probability ``[n]`` with which a policy contacts each row.
            label: Whether the customer left ``[n]``.
            value: The scaled values ``[n]``.
        """
        odds, stayers = self.left_per_stayer, np.bincount(self.stratum, self.has_stayed)
        paid = np.bincount(self.stratum, weight * label * value)
        of_stayers = np.bincount(self.stratum, weight * self.has_stayed * value)
        total = np.where(self.realised_total > 0, self.realised_total, 1.0)
        scale = ((paid - odds * of_stayers) / total)[self.stratum] * self.residual
        surplus = np.bincount(self.stratum, weight * self.residual) / stayers
        counts = surplus[self.stratum] * (label - odds[self.stratum] * self.has_stayed)
        return np.asarray(scale + counts)


def corrected_by_stayers(
    estimate: Floats, probability: Floats, label: Bools, stay_value: Floats
) -> tuple[Floats, Stayers | None]:
    """Correct values estimated from histories by what customers of equal risk brought who stayed.

    The history of a customer who left ends early, so an estimate from it is too low; those who stayed show by how much.
    Customers are grouped by their probability of churn (subclassification on the propensity score, Rosenbaum and Rubin,
    1984). In each stratum the estimates are scaled to the total of the customers who stayed. What is left of their
    errors is paid to them, weighted by the number of customers who left for each who stayed. So the total over any
    group of customers that a policy may choose is doubly robust (Robins, Rotnitzky and Zhao, 1994): it is right if the
    strata hold customers of equal risk, or if the scaled estimates are right.

    The assumption is that a customer who is won back spends like one of equal risk and history who stayed.

    Args:
        estimate: Values ``[n]`` by an estimate that the model did not make.
        probability: Of churn ``[n]``; only its order matters.
        label: Whether the customer left ``[n]``.
        stay_value: Realised value ``[n]`` of the customers who stayed; NaN for others, and where it is not known yet.

    Returns:
        The scaled values ``[n]``, and what the customers who stayed say about them; the estimate itself and None if too
        few customers stayed.
    """
    stayed = np.isfinite(stay_value) & ~label
    if stayed.sum() < MIN_STAYERS or not estimate[stayed].any():
        return estimate, None
    stratum = _strata(probability, stayed)
    brought = np.where(stayed, stay_value, 0.0)
    estimated: Floats = np.bincount(stratum, stayed * estimate).astype(np.float64)
    realised: Floats = np.bincount(stratum, brought).astype(np.float64)
    scale = np.where(estimated > 0, realised / np.where(estimated > 0, estimated, 1.0), 1.0)
    scaled = estimate * scale[stratum]
    odds = np.bincount(stratum, label) / np.bincount(stratum, stayed)
    residual = np.where(stayed, brought - scaled, 0.0)
    return scaled, Stayers(stratum, residual, stayed.astype(np.float64), odds, realised)


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
