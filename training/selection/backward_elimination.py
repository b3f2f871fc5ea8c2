"""Backward elimination: the smallest set of slots that is as good as the best one, by the one-standard-error rule.

It is recursive feature elimination with cross-validation (Guyon et al., 2002) through fixed sizes, ranked by
permutation importance.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.data.dataset import Rows
from training.data.splits import Splits
from training.evidence import FeatureSubset
from training.graph.features import FeatureMatrix, FeatureSpec, filled_matrix
from training.parallel import IN_PROCESS, Task, WorkerPool
from training.selection.fold_losses import (
    fold_losses,
    fold_losses_and_importance,
    folds_of,
)
from training.selection.one_standard_error import paired_loss_gap

Done = Callable[[], None]

SHRINK: Final = (256, 128, 96, 64, 48, 36, 24, 20, 16, 12, 8, 6, 4, 2)
"""Sizes of the subsets after that of all slots."""

TIMED_RUNS: Final = 100
TIMED_ROUNDS: Final = 5


def eliminate_backward(
    rows: Rows,
    spec: FeatureSpec,
    splits: Mapping[str, Splits],
    seed: int,
    max_slots: int,
    done: Done = lambda: None,
    keep: Sequence[int] = (),
    pool: WorkerPool = IN_PROCESS,
) -> list[FeatureSubset]:
    """Eliminate slots backward, by permutation importance, through fixed sizes.

    The smallest subset is chosen that has at most ``max_slots`` slots and, for each target, a loss within one standard
    error of the best subset's. The best one has the smallest sum of relative losses over the targets.

    Args:
        rows: Rows with all slots.
        spec: All features.
        splits: By target; only the folds are used.
        seed: Of the learners and the permutations.
        max_slots: Maximum number of slots of the chosen subset.
        done: Called after each subset.
        keep: Indexes of slots that are in every subset.
        pool: Worker processes.

    Returns:
        The subsets, from all slots down; exactly one is chosen.
    """
    slots = list(range(len(spec.layout.features)))
    sizes = subset_sizes(len(slots))
    slots_by_step: list[list[int]] = []
    tasks: list[_SubsetTasks] = []
    for next_size in (*sizes[1:], None):
        slots_by_step.append(slots)
        tasks.append(
            _subset_tasks(rows.narrowed(slots), spec.narrowed(slots), splits, seed, pool, ranked=next_size is not None)
        )
        if next_size is not None:
            importance = tasks[-1].importance()
            ranked = [slots[at] for at in np.argsort(-importance, kind="stable")]
            others = [slot for slot in ranked if slot not in keep]
            slots = sorted([*keep, *others[: max(next_size - len(keep), 0)]])
        done()
    losses = [subset.losses() for subset in tasks]
    customers = {target: rows.group[np.concatenate([b for _, b in split.folds])] for target, split in splits.items()}
    best = min(losses, key=lambda of_subset: sum(_relative(of_subset, losses)))
    subsets = []
    for step_slots, of_subset in zip(slots_by_step, losses, strict=True):
        narrow = spec.narrowed(step_slots)
        gaps = {target: paired_loss_gap(of_subset[target], best[target], customers[target]) for target in splits}
        subsets.append(
            FeatureSubset(
                slots=[spec.layout.features[i].name for i in step_slots],
                state_bytes=narrow.layout.dtype.itemsize,
                graph_us=_microseconds(FeatureMatrix(narrow), rows.state[:1, step_slots]),
                loss={target: float(of_subset[target].mean()) for target in splits},
                behind={target: gap.mean for target, gap in gaps.items()},
                error={target: gap.error for target, gap in gaps.items()},
            )
        )
    return _with_choice(subsets, max_slots)


def subset_sizes(slots: int) -> list[int]:
    """Sizes of the subsets, from all slots down."""
    return [slots, *(size for size in SHRINK if size < slots)]


def _microseconds(matrix: FeatureMatrix, state: Floats) -> float:
    """Minimum time to compute the features of one customer."""
    return min(timeit.repeat(lambda: matrix(state), number=TIMED_RUNS, repeat=TIMED_ROUNDS)) / TIMED_RUNS * 1e6


def _relative(losses: Mapping[str, Floats], all_losses: Sequence[Mapping[str, Floats]]) -> list[float]:
    """Mean losses divided by the largest of all subsets, so that targets have equal weight."""
    return [float(losses[target].mean() / max(other[target].mean() for other in all_losses)) for target in losses]


def _with_choice(subsets: Sequence[FeatureSubset], max_slots: int) -> list[FeatureSubset]:
    """Mark the smallest subset within one standard error or, if there is none, the one with the smallest gap."""
    allowed = [subset for subset in subsets if len(subset.slots) <= max_slots]
    within = [s for s in allowed if all(s.behind[target] <= s.error[target] for target in s.loss)]
    chosen = within[-1] if within else min(allowed, key=lambda subset: max(_standardised_gaps(subset)))
    return [subset.model_copy(update={"chosen": subset is chosen}) for subset in subsets]


def _standardised_gaps(subset: FeatureSubset) -> list[float]:
    return [subset.behind[target] / max(subset.error[target], 1e-12) for target in subset.loss]


@dataclass(frozen=True)
class _SubsetTasks:
    """Tasks of a subset by target: losses of the folds; for the last fold also the importance if slots are ranked."""

    folds: Mapping[str, Sequence[Task[Floats]]]
    last: Mapping[str, Task[tuple[Floats, Floats]]]

    def importance(self) -> Floats:
        """Importance of each slot, summed over the targets."""
        return np.asarray(sum(task.result()[1] for task in self.last.values()))

    def losses(self) -> dict[str, Floats]:
        """Losses of the validation rows by target, in the order of the folds."""
        parts = {target: [task.result() for task in tasks] for target, tasks in self.folds.items()}
        for target, task in self.last.items():
            parts[target].append(task.result()[0])
        return {target: np.concatenate(losses) for target, losses in parts.items()}


def _subset_tasks(
    rows: Rows, spec: FeatureSpec, splits: Mapping[str, Splits], seed: int, pool: WorkerPool, *, ranked: bool
) -> _SubsetTasks:
    matrix = filled_matrix(spec, rows.state)
    features = matrix(rows.state)
    folds = {target: folds_of(target, features, rows, split) for target, split in splits.items()}
    last: dict[str, Task[tuple[Floats, Floats]]] = {}
    if ranked:  # first, because the next subset depends on it
        for target, split in splits.items():
            states = rows.state[split.folds[-1][1]]
            last[target] = pool.submit(fold_losses_and_importance, folds[target].pop(), seed, matrix, states)
    return _SubsetTasks(
        {target: [pool.submit(fold_losses, fold, seed) for fold in of_target] for target, of_target in folds.items()},
        last,
    )


def fold_loss(target: str, rows: Rows, spec: FeatureSpec, splits: Splits, seed: int) -> float:
    """Mean cross-validation loss of the selection learner."""
    return float(_subset_tasks(rows, spec, {target: splits}, seed, IN_PROCESS, ranked=False).losses()[target].mean())
