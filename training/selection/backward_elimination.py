"""Backward elimination: the smallest set of slots that is as good as the best one, by the one-standard-error rule.

It is recursive feature elimination with cross-validation (Guyon et al., 2002) through fixed sizes::

    fold 1:  rank the slots on its earlier rows ──► the first 48, 36, 24, … of them ──► losses on its later rows ──┐
    fold 2:  the same                                                                                           ├─► size
    fold 3:  the same                                                                                           ┘
    all rows: rank the slots ──► the first ones of that size

The rows that a subset is judged by have no part in its choice. Half-samples of the customers (stability selection;
Meinshausen and Bühlmann, 2010, with the complementary pairs of Shah and Samworth, 2013) show how far the choice
depends on the sample.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.data.dataset import Rows
from training.data.splits import Splits, rows_for_medians
from training.evidence import FeatureSubset, SlotStability
from training.graph.features import FeatureMatrix, FeatureSpec, medians
from training.parallel import IN_PROCESS, Task, WorkerPool
from training.selection.fold_losses import fold_for_selection, fold_losses
from training.selection.one_standard_error import paired_loss_gap
from training.selection.slot_ranking import (
    Correlations,
    correlations,
    group_of,
    half_sample_correlations,
    rank_slots,
    slots_of_columns,
)

Done = Callable[[], None]

SHRINK: Final = (256, 128, 96, 64, 48, 36, 24, 20, 16, 12, 8, 6, 4, 2)
"""Sizes of the subsets after that of all slots."""

TIMED_RUNS: Final = 100
TIMED_ROUNDS: Final = 5


@dataclass(frozen=True)
class Elimination:
    """The subsets, from all slots down, exactly one of which is chosen, and how stable the choice is."""

    subsets: list[FeatureSubset]
    stability: list[SlotStability]


def eliminate_backward(
    rows: Rows,
    spec: FeatureSpec,
    splits: Mapping[str, Splits],
    seed: int,
    max_slots: int,
    done: Done = lambda: None,
    keep: Sequence[int] = (),
    pool: WorkerPool = IN_PROCESS,
) -> Elimination:
    """Eliminate slots backward through fixed sizes.

    The smallest subset is chosen that has at most ``max_slots`` slots and, for each target, a loss within one standard
    error of the best subset's. The best one has the smallest sum of relative losses over the targets. If no subset
    qualifies, the one with the smallest standardised gap is chosen (:func:`qualifies`).

    Args:
        rows: Rows with all slots, none of them a test row.
        spec: All features.
        splits: By target; the test and the final split are not used.
        seed: Of the learners and the samples.
        max_slots: Maximum number of slots of the chosen subset.
        done: Called after each size.
        keep: Indexes of slots that are in every subset.
        pool: Worker processes.
    """
    slots = len(spec.layout.features)
    unfilled = FeatureMatrix(replace(spec, fill=None))(rows.state)
    folds = [_Fold.of(unfilled, splits, at) for at in range(max(len(split.folds) for split in splits.values()))]
    full = _filled(unfilled, rows_for_medians(rows, [split.evaluation for split in splits.values()]))
    # Not all rows with a known label: at the latest cut-offs of one target, labels of another may lie in its test.
    known = {target: split.evaluation.everything for target, split in splits.items()}
    customers = int(rows.group.max()) + 1
    fold_tasks = [fold.correlations(rows, seed, pool) for fold in folds]
    all_tasks = [
        pool.submit(correlations, target, full[index], rows.label(target)[index], seed)
        for target, index in known.items()
    ]
    half_tasks = [
        pool.submit(
            half_sample_correlations,
            target,
            full[index],
            rows.label(target)[index],
            rows.group[index],
            customers,
            seed,
        )
        for target, index in known.items()
    ]
    owners = slots_of_columns(spec)

    def rank(by_target: Iterable[Correlations]) -> Task[list[int]]:
        return pool.submit(rank_slots, list(by_target), owners, slots, keep)

    fold_rankings = [rank(task.result() for task in tasks) for tasks in fold_tasks]
    all_ranking = rank(task.result() for task in all_tasks)
    half_rankings = [rank(half) for half in zip(*(task.result() for task in half_tasks), strict=True)]
    rankings = [task.result() for task in fold_rankings]
    sizes = [max(size, len(keep)) for size in subset_sizes(slots, max_slots)]
    losses: list[dict[str, Floats]] = []
    waiting: list[dict[str, Task[Floats]]] = []
    for size in (*sizes, None):  # one size ahead, so that workers are busy and few tasks hold memory
        before = waiting
        if size is not None:
            waiting = [
                fold.losses(rows, spec, ranking[:size], seed, pool)
                for fold, ranking in zip(folds, rankings, strict=True)
            ]
        if before:
            losses.append(_joined(before, splits))
            done()
    ranking = all_ranking.result()
    subsets = _subsets(rows, spec, splits, [sorted(ranking[:size]) for size in sizes], losses, max_slots)
    chosen = next(len(subset.slots) for subset in subsets if subset.chosen)
    chosen_in_halves = [task.result()[:chosen] for task in half_rankings]
    return Elimination(subsets, _stability(spec, ranking[:chosen], chosen_in_halves))


def subset_sizes(slots: int, max_slots: int) -> list[int]:
    """Sizes of the subsets, from all slots down.

    Of the sizes above ``max_slots``, which cannot be chosen, only all slots and the next one above are tried: they show
    what the limit costs, and take the most time.
    """
    above = [size for size in SHRINK if max_slots < size < slots][-1:]
    return [slots, *above, *(size for size in SHRINK if size <= max_slots and size < slots)]


def _microseconds(matrix: FeatureMatrix, state: Floats) -> float:
    """Minimum time to compute the features of one customer."""
    return min(timeit.repeat(lambda: matrix(state), number=TIMED_RUNS, repeat=TIMED_ROUNDS)) / TIMED_RUNS * 1e6


def _relative(losses: Mapping[str, Floats], all_losses: Sequence[Mapping[str, Floats]]) -> list[float]:
    """Mean losses divided by the largest of all subsets, so that targets have equal weight."""
    return [float(losses[target].mean() / max(other[target].mean() for other in all_losses)) for target in losses]


def qualifies(subset: FeatureSubset) -> bool:
    """Whether the loss of every target is within one standard error of the best subset's."""
    return all(subset.behind[target] <= subset.error[target] for target in subset.loss)


def _with_choice(subsets: Sequence[FeatureSubset], max_slots: int) -> list[FeatureSubset]:
    """Mark the smallest subset that qualifies or, if there is none, the one with the smallest gap."""
    allowed = [subset for subset in subsets if len(subset.slots) <= max_slots] or [subsets[-1]]
    within = [subset for subset in allowed if qualifies(subset)]
    chosen = within[-1] if within else min(allowed, key=lambda subset: max(_standardised_gaps(subset)))
    return [subset.model_copy(update={"chosen": subset is chosen}) for subset in subsets]


def _standardised_gaps(subset: FeatureSubset) -> list[float]:
    return [subset.behind[target] / max(subset.error[target], 1e-12) for target in subset.loss]


def _joined(of_folds: Sequence[Mapping[str, Task[Floats]]], targets: Iterable[str]) -> dict[str, Floats]:
    """Losses of the validation rows by target, in the order of the folds."""
    return {
        target: np.concatenate([fold[target].result() for fold in of_folds if target in fold]) for target in targets
    }


def _subsets(
    rows: Rows,
    spec: FeatureSpec,
    splits: Mapping[str, Splits],
    slots_by_size: Sequence[Sequence[int]],
    losses: Sequence[Mapping[str, Floats]],
    max_slots: int,
) -> list[FeatureSubset]:
    """The subsets with their losses, compared with those of the best one."""
    customers = {target: rows.group[np.concatenate([b for _, b in split.folds])] for target, split in splits.items()}
    best = min(losses, key=lambda of_subset: sum(_relative(of_subset, losses)))
    subsets = []
    for slots, of_subset in zip(slots_by_size, losses, strict=True):
        narrow = spec.narrowed(slots)
        gaps = {target: paired_loss_gap(of_subset[target], best[target], customers[target]) for target in splits}
        subsets.append(
            FeatureSubset(
                slots=[spec.layout.features[i].name for i in slots],
                state_bytes=narrow.layout.dtype.itemsize,
                graph_us=_microseconds(FeatureMatrix(narrow), rows.state[:1, slots]),
                loss={target: float(of_subset[target].mean()) for target in splits},
                behind={target: gap.mean for target, gap in gaps.items()},
                error={target: gap.error for target, gap in gaps.items()},
            )
        )
    return _with_choice(subsets, max_slots)


def _stability(spec: FeatureSpec, chosen: Sequence[int], in_halves: Sequence[Sequence[int]]) -> list[SlotStability]:
    """How often each slot, and its group, is among the chosen ones; slots that never are are left out."""
    features = spec.layout.features
    groups = [group_of(feature) for feature in features]
    with_group = [{groups[slot] for slot in half} for half in in_halves]
    lines = []
    for slot, feature in enumerate(features):
        share = sum(slot in half for half in in_halves) / len(in_halves)
        if share or slot in chosen:
            group_share = sum(groups[slot] in half for half in with_group) / len(in_halves)
            lines.append(
                SlotStability(
                    slot=feature.name,
                    group=groups[slot],
                    chosen=slot in chosen,
                    frequency=share,
                    group_frequency=group_share,
                )
            )
    return sorted(lines, key=lambda line: (-line.group_frequency, line.group, -line.frequency, line.slot))


@dataclass(frozen=True)
class _Fold:
    """One fold of all targets: the features of all rows, and by target the earlier and the later rows.

    Missing values are replaced by medians of the earlier rows.
    """

    features: Features
    parts: Mapping[str, tuple[Index, Index]]

    @classmethod
    def of(cls, unfilled: Features, splits: Mapping[str, Splits], at: int) -> _Fold:
        parts = {target: split.folds[at] for target, split in splits.items() if at < len(split.folds)}
        return cls(_filled(unfilled, np.unique(np.concatenate([part for part, _ in parts.values()]))), parts)

    def correlations(self, rows: Rows, seed: int, pool: WorkerPool) -> list[Task[Correlations]]:
        """Correlations of the earlier rows for each target."""
        return [
            pool.submit(correlations, target, self.features[earlier], rows.label(target)[earlier], seed)
            for target, (earlier, _) in self.parts.items()
        ]

    def losses(
        self, rows: Rows, spec: FeatureSpec, slots: Sequence[int], seed: int, pool: WorkerPool
    ) -> dict[str, Task[Floats]]:
        """Losses of the later rows by models with only these slots."""
        place = {name: column for column, name in enumerate(spec.names)}
        columns = [place[name] for name in spec.narrowed(sorted(slots)).names]
        features = self.features[:, columns]
        return {
            target: pool.submit(fold_losses, fold_for_selection(target, features, rows.label(target), part, seed), seed)
            for target, part in self.parts.items()
        }


def _filled(unfilled: Features, index: Index) -> Features:
    """Features ``[n, names]`` with the medians of some rows in place of missing values."""
    return np.where(np.isnan(unfilled), medians(unfilled[index]), unfilled)
