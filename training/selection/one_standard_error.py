"""The one-standard-error rule: the simplest candidate whose loss is within one standard error of the best.

Breiman et al. (1984, Classification and Regression Trees, section 3.4.3) use the standard error of the best candidate's
loss. Here it is that of the paired difference from the best, clustered by customer: all candidates are evaluated on the
same rows, and the rows of a customer are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_store.state.layout import Floats
from training.arrays import Index
from training.statistics import clustered_standard_error


@dataclass(frozen=True)
class LossGap:
    """How much higher a mean loss is than the best one, with the standard error of the difference."""

    mean: float
    error: float

    @property
    def within_one_se(self) -> bool:
        """Whether the gap is at most one standard error."""
        return self.mean <= self.error


def paired_loss_gap(losses: Floats, best: Floats, customer: Index) -> LossGap:
    """Compare losses on the same rows.

    Args:
        losses: Losses ``[n]`` of a candidate.
        best: Losses ``[n]`` of the best candidate.
        customer: Number of the customer of each row ``[n]``, from 0.
    """
    difference = losses - best
    return LossGap(float(difference.mean()), clustered_standard_error(difference, customer))


def simplest(losses: Sequence[Floats], customer: Index) -> tuple[int, list[LossGap]]:
    """Choose by the one-standard-error rule.

    Args:
        losses: Losses ``[n]`` of each candidate, the simplest first.
        customer: Number of the customer of each row ``[n]``, from 0.

    Returns:
        The index of the chosen candidate, and the gap of each.
    """
    best = min(losses, key=lambda candidate: float(candidate.mean()))
    gaps = [paired_loss_gap(candidate, best, customer) for candidate in losses]
    return next(index for index, gap in enumerate(gaps) if gap.within_one_se), gaps
