"""Splits of the rows into fit, calibration, test and cross-validation folds: by time, or for a snapshot at random.

::

    by time     folds: expanding windows within the training cut-offs, purged of one horizon
                evaluation: fit | gap | calibration, then the test cut-offs, which are used only once
                final: the same, with the test cut-offs to fit on as well

    at random   customers (or groups of them): a fifth is the test, the rest is divided into folds. A table without time
                allows nothing better, but the results are too optimistic for later data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from feature_store.bundles.bundle import OFFERS
from feature_store.errors import InputError
from feature_store.state.layout import Floats
from training.arrays import Bools, Index
from training.data.cutoffs import TARGETS, CutoffPlan, Cutoffs
from training.data.dataset import Rows

TEST_PARTS: Final = 5
"""One in this number of a snapshot's rows is for the test, and one in this number of the others for calibration."""

MIN_OUTCOMES: Final = 5
"""Minimum number of rows with the rarer outcome in each block."""


@dataclass(frozen=True)
class Split:
    """Row indexes to fit on, to calibrate on, and all that may be used (with the gap between the two)."""

    fit: Index
    calibration: Index
    everything: Index


@dataclass(frozen=True)
class Splits:
    """All splits of a target, as indexes of rows with a known label."""

    folds: list[tuple[Index, Index]]
    evaluation: Split
    test: Index
    final: Split


def temporal_splits(rows: Rows, plan: CutoffPlan, folds: int) -> dict[str, Splits]:
    """Split the rows by cut-off, for each target."""
    return {target: _temporal_splits(rows, target, plan.of(target), folds) for target in TARGETS}


def _temporal_splits(rows: Rows, target: str, cutoffs: Cutoffs, folds: int) -> Splits:
    known = np.isfinite(rows.label(target))

    def at(times: Sequence[float]) -> Index:
        return np.flatnonzero(known & np.isin(rows.cutoff, times))

    def split(blocks: Cutoffs) -> Split:
        return Split(at(blocks.fit), at(blocks.calibration), at(blocks.training))

    pairs = [(at(earlier), at(later)) for earlier, later in cutoffs.folds(folds)]
    return Splits(pairs, split(cutoffs), at(cutoffs.test), split(cutoffs.final()))


def random_splits(rows: Rows, targets: Sequence[str], folds: int, seed: int) -> dict[str, Splits]:
    """Split the rows at random, in the same way for all targets.

    Rows of a group stay together, and every part has about the same share of each outcome of the first target. Each
    target has only the rows where it is known.
    """
    everything, labels = np.arange(len(rows)), rows.label(targets[0])
    known, test = _grouped_folds(rows, everything, labels, TEST_PARTS, seed)[0]
    split = Split(*_grouped_folds(rows, known, labels, TEST_PARTS, seed + 1)[0], known)
    final = Split(*_grouped_folds(rows, everything, labels, TEST_PARTS, seed + 2)[0], everything)
    splits = Splits(_grouped_folds(rows, known, labels, folds, seed + 3), split, test, final)
    return {target: _where(splits, np.isfinite(rows.label(target))) for target in targets}


def _where(splits: Splits, known: Bools) -> Splits:
    """The splits with only the rows whose label is known; ``known`` ``[n]``."""

    def split(part: Split) -> Split:
        return Split(*(index[known[index]] for index in (part.fit, part.calibration, part.everything)))

    folds = [(earlier[known[earlier]], later[known[later]]) for earlier, later in splits.folds]
    return Splits(folds, split(splits.evaluation), splits.test[known[splits.test]], split(splits.final))


def random_folds(rows: Rows, targets: Sequence[str], folds: int, seed: int) -> dict[str, Splits]:
    """Divide all rows into folds like ``random_splits``, without a test."""
    everything, labels = np.arange(len(rows)), rows.label(targets[0])
    nothing = everything[:0]
    split = Split(everything, nothing, everything)
    splits = Splits(_grouped_folds(rows, everything, labels, folds, seed + 3), split, nothing, split)
    return {target: _where(splits, np.isfinite(rows.label(target))) for target in targets}


def _grouped_folds(rows: Rows, index: Index, labels: Floats, parts: int, seed: int) -> list[tuple[Index, Index]]:
    """Stratified and grouped k-fold split of the rows at ``index``: pairs of (all parts but one, that part).

    Args:
        rows: All rows.
        index: Rows to split.
        labels: Labels of all rows ``[n]``; any label other than 0 and 1, such as NaN, counts as a third outcome.
        parts: Number of parts.
        seed: Of the draw.
    """
    groups, outcome = rows.group[index], np.where(np.isin(labels[index], (0, 1)), labels[index], 2).astype(np.intp)
    too_rare = np.bincount(outcome)[np.unique(outcome)].min() < parts  # to have one in each part
    if too_rare:
        folds = GroupKFold(parts, shuffle=True, random_state=seed).split(index, groups=groups)
    elif len(np.unique(groups)) == len(groups):
        folds = StratifiedKFold(parts, shuffle=True, random_state=seed).split(index, outcome)
    else:
        folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(index, outcome, groups)
    return [(index[rest], index[part]) for rest, part in folds]


def rows_for_medians(rows: Rows, parts: Iterable[Split]) -> Index:
    """Rows from which the replacements of missing values are learnt: up to the newest cut-off that all parts may use.

    Features are common to all targets, so a target with later cut-offs must not bring in rows of another one's test.
    """
    everything = [part.everything for part in parts]
    newest = min(float(rows.cutoff[index].max()) for index in everything)
    index = np.unique(np.concatenate(everything))
    return index[rows.cutoff[index] <= newest]


def check_splits(rows: Rows, splits: Mapping[str, Splits]) -> None:
    """Check that every block has enough outcomes to fit on or to test with; InputError if not."""
    for target, split in splits.items():
        labels = rows.label(target)
        if target not in OFFERS:
            check_spend(labels[split.evaluation.fit])
            continue
        blocks = {"fit": split.evaluation.fit, "calibration": split.evaluation.calibration, "test": split.test}
        for block, index in blocks.items():
            check_outcomes(target, block, labels[index])


def check_outcomes(name: str, block: str, labels: Floats) -> None:
    """Check that a block has at least MIN_OUTCOMES of both outcomes; InputError if not."""
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    if rarer < MIN_OUTCOMES:
        raise InputError(
            f"{name}: of {len(labels)} customers at the {block} cut-offs, {rarer} have the rarer outcome; "
            f"{MIN_OUTCOMES} are required: add customers, or change {name}.event, {name}.horizon_days or "
            "churn.active_days"
        )


def check_spend(spend: Floats) -> None:
    """Check that there is any spend; InputError if not."""
    if not spend.any():
        raise InputError(
            "economics: no customer spends anything within the horizon of the fit cut-offs: select an amount in "
            "source.events, or change economics.event"
        )
