"""Which rows a model learns from, is calibrated on, and is judged by: by time, or for a snapshot by lot.

::

    by time   folds: expanding windows within the training cut-offs, purged of one horizon
              evaluation: fit | gap | calibration, then the test cut-offs, which are looked at once
              final: the same with the test cut-offs to learn from as well

    by lot    customers (or groups of them) drawn at random: a fifth is the test, the rest makes folds. That is all that
              a table without time allows, and it promises more than later data will hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.model_selection import GroupKFold

from training.data.cutoffs import TARGETS, Cutoffs, Plan
from training.data.dataset import Index, Rows

TEST_PARTS: Final = 5
"""Of a snapshot one in so many rows is the test, and one in so many of the others calibrates."""


@dataclass(frozen=True)
class Split:
    """Rows to fit on, later ones to calibrate on, and all that may be learnt from."""

    fit: Index
    calibration: Index
    everything: Index


@dataclass(frozen=True)
class Splits:
    """All splits of a target's rows, as indexes of the rows whose label is known."""

    folds: list[tuple[Index, Index]]
    evaluation: Split
    test: Index
    final: Split


def in_time(rows: Rows, plan: Plan, folds: int) -> dict[str, Splits]:
    """Splits by cut-off for each target."""
    return {target: _in_time(rows, target, plan.of(target), folds) for target in TARGETS}


def _in_time(rows: Rows, target: str, cutoffs: Cutoffs, folds: int) -> Splits:
    known = np.isfinite(rows.label(target))

    def at(some: Sequence[float]) -> Index:
        return np.flatnonzero(known & np.isin(rows.cutoff, some))

    def split(blocks: Cutoffs) -> Split:
        return Split(at(blocks.fit), at(blocks.calibration), at(blocks.training))

    pairs = [(at(earlier), at(later)) for earlier, later in cutoffs.folds(folds)]
    return Splits(pairs, split(cutoffs), at(cutoffs.test), split(cutoffs.final()))


def by_lot(rows: Rows, targets: Sequence[str], folds: int, seed: int) -> dict[str, Splits]:
    """The same splits for all targets; rows of a group stay together."""
    everything = np.arange(len(rows))
    known, test = _parted(rows, everything, TEST_PARTS, seed)[0]
    split = Split(*_parted(rows, known, TEST_PARTS, seed + 1)[0], known)
    final = Split(*_parted(rows, everything, TEST_PARTS, seed + 2)[0], everything)
    found = Splits(_parted(rows, known, folds, seed + 3), split, test, final)
    return dict.fromkeys(targets, found)


def _parted(rows: Rows, index: Index, parts: int, seed: int) -> list[tuple[Index, Index]]:
    """Pairs of (all but one part, that part) of some rows."""
    cut = GroupKFold(parts, shuffle=True, random_state=seed)
    return [(index[most], index[part]) for most, part in cut.split(index, groups=rows.group[index])]
