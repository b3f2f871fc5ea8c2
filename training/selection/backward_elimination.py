"""What is kept: the fewest slots, and the simplest models, that do as well on later data as the best, beyond noise."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.arrays import Features
from training.data.dataset import Rows
from training.data.splits import Splits
from training.evidence import Rung, Trial
from training.graph.features import FeatureMatrix, FeatureSpec, filled_matrix
from training.models import probability, spend
from training.models.probability import Learner, mean_score
from training.parallel import IN_PROCESS, Task, WorkerPool
from training.selection.fold_losses import (
    fold_losses,
    fold_losses_and_importance,
    folds_of,
    losses_of_scores,
    scores_of_part,
)
from training.selection.one_standard_error import paired_loss_gap, simplest

Done = Callable[[], None]

SHRINK: Final = (256, 128, 96, 64, 48, 36, 24, 20, 16, 12, 8, 6, 4, 2)
"""Numbers of slots that the ladder stands on."""

TIMED_RUNS: Final = 100
TIMED_ROUNDS: Final = 5


@dataclass(frozen=True)
class Chosen:
    """The learner for each target, and what was tried."""

    learners: dict[str, Learner]
    trials: list[Trial]


def learners_of(target: str) -> Sequence[Learner]:
    """Candidates for a target, simplest first."""
    return probability.LEARNERS if target in OFFERS else spend.LEARNERS


def choose_learners(
    features: Features,
    rows: Rows,
    splits: Mapping[str, Splits],
    seed: int,
    done: Done = lambda: None,
    pool: WorkerPool = IN_PROCESS,
) -> Chosen:
    """The simplest candidate of each target that is within one standard error of the best in the folds.

    A part that several candidates share is fitted once in each fold.
    """
    folds = {target: folds_of(target, features, rows, split) for target, split in splits.items()}
    fits = [
        (len(fold.labels), target, at, part)
        for target in splits
        for at, fold in enumerate(folds[target])
        for part in dict.fromkeys(part for learner in learners_of(target) for part in learner.parts)
    ]
    # The longest first, so that all workers are busy until the end.
    tasks = {
        (target, at, part): pool.submit(scores_of_part, part, folds[target][at], seed)
        for _, target, at, part in sorted(fits, key=itemgetter(0), reverse=True)
    }
    learners, trials = {}, []
    for target, split in splits.items():
        candidates = learners_of(target)
        found = []
        for candidate in candidates:
            parts = []
            for at, fold in enumerate(folds[target]):
                scores = mean_score([tasks[target, at, part].result() for part in candidate.parts])
                parts.append(losses_of_scores(fold, scores))
            found.append(np.concatenate(parts))
            done()
        judged = np.concatenate([later for _, later in split.folds])
        chosen, distances = simplest(found, rows.group[judged])
        learners[target] = candidates[chosen]
        for at, (candidate, losses, distance) in enumerate(zip(candidates, found, distances, strict=True)):
            trials.append(
                Trial(
                    target=target,
                    model=candidate.name,
                    loss=float(losses.mean()),
                    behind=distance.mean,
                    error=distance.error,
                    chosen=at == chosen,
                )
            )
    return Chosen(learners, trials)


def climb(
    rows: Rows,
    spec: FeatureSpec,
    splits: Mapping[str, Splits],
    seed: int,
    most: int,
    done: Done = lambda: None,
    keep: Sequence[int] = (),
    pool: WorkerPool = IN_PROCESS,
) -> list[Rung]:
    """The ladder: at each rung the slots that mattered most on the one above; the smallest one that does is chosen.

    Slots in ``keep`` are on every rung.
    A rung does where each target's loss in the folds is within one standard error of the rung that is best for all
    targets together, and where it has at most ``most`` slots.
    """
    slots = list(range(len(spec.layout.features)))
    sizes = rungs_of(len(slots))
    kept: list[list[int]] = []
    tasks: list[_RungTasks] = []
    for below in (*sizes[1:], None):
        kept.append(slots)
        tasks.append(
            _rung_tasks(rows.narrowed(slots), spec.narrowed(slots), splits, seed, pool, ranked=below is not None)
        )
        if below is not None:
            importance = tasks[-1].importance()
            ranked = [slots[at] for at in np.argsort(-importance, kind="stable")]
            others = [slot for slot in ranked if slot not in keep]
            slots = sorted([*keep, *others[: max(below - len(keep), 0)]])
        done()
    losses = [rung.losses() for rung in tasks]
    judged = {target: rows.group[np.concatenate([b for _, b in split.folds])] for target, split in splits.items()}
    best = min(losses, key=lambda rung: sum(_relative(rung, losses)))
    rungs = []
    for some, rung in zip(kept, losses, strict=True):
        narrow = spec.narrowed(some)
        distance = {target: paired_loss_gap(rung[target], best[target], judged[target]) for target in splits}
        rungs.append(
            Rung(
                slots=[spec.layout.features[i].name for i in some],
                state_bytes=narrow.layout.dtype.itemsize,
                graph_us=_microseconds(FeatureMatrix(narrow), rows.state[:1, some]),
                loss={target: float(rung[target].mean()) for target in splits},
                behind={target: found.mean for target, found in distance.items()},
                error={target: found.error for target, found in distance.items()},
            )
        )
    return _chosen(rungs, most)


def rungs_of(slots: int) -> list[int]:
    """The sizes of the rungs, from all slots down."""
    return [slots, *(size for size in SHRINK if size < slots)]


def _microseconds(matrix: FeatureMatrix, state: Floats) -> float:
    """What it takes to make the features of one customer, at best."""
    return min(timeit.repeat(lambda: matrix(state), number=TIMED_RUNS, repeat=TIMED_ROUNDS)) / TIMED_RUNS * 1e6


def _relative(rung: Mapping[str, Floats], all_rungs: Sequence[Mapping[str, Floats]]) -> list[float]:
    """Mean losses as shares of the largest of all rungs, so that targets count alike."""
    return [float(rung[target].mean() / max(one[target].mean() for one in all_rungs)) for target in rung]


def _chosen(rungs: Sequence[Rung], most: int) -> list[Rung]:
    allowed = [rung for rung in rungs if len(rung.slots) <= most]
    good = [rung for rung in allowed if all(rung.behind[target] <= rung.error[target] for target in rung.loss)]
    # Where no rung that is allowed does as well, the one that is least behind.
    pick = good[-1] if good else min(allowed, key=lambda rung: max(_distances(rung)))
    return [rung.model_copy(update={"chosen": rung is pick}) for rung in rungs]


def _distances(rung: Rung) -> list[float]:
    return [rung.behind[target] / max(rung.error[target], 1e-12) for target in rung.loss]


@dataclass(frozen=True)
class _RungTasks:
    """The folds of a rung by target; in the last one of each the slots are ranked too, where there is a rung below."""

    folds: Mapping[str, Sequence[Task[Floats]]]
    last: Mapping[str, Task[tuple[Floats, Floats]]]

    def importance(self) -> Floats:
        """Of each slot, all targets together."""
        return np.asarray(sum(task.result()[1] for task in self.last.values()))

    def losses(self) -> dict[str, Floats]:
        """Losses of the later rows by target, in the order of the folds."""
        parts = {target: [task.result() for task in tasks] for target, tasks in self.folds.items()}
        for target, task in self.last.items():
            parts[target].append(task.result()[0])
        return {target: np.concatenate(losses) for target, losses in parts.items()}


def _rung_tasks(
    rows: Rows, spec: FeatureSpec, splits: Mapping[str, Splits], seed: int, pool: WorkerPool, *, ranked: bool
) -> _RungTasks:
    matrix = filled_matrix(spec, rows.state)
    features = matrix(rows.state)
    folds = {target: folds_of(target, features, rows, split) for target, split in splits.items()}
    last: dict[str, Task[tuple[Floats, Floats]]] = {}
    if ranked:  # first, because the next rung waits for it, while the other folds need not be ready yet
        for target, split in splits.items():
            states = rows.state[split.folds[-1][1]]
            last[target] = pool.submit(fold_losses_and_importance, folds[target].pop(), seed, matrix, states)
    return _RungTasks(
        {target: [pool.submit(fold_losses, fold, seed) for fold in found] for target, found in folds.items()}, last
    )


def fold_loss(target: str, rows: Rows, spec: FeatureSpec, splits: Splits, seed: int) -> float:
    """Mean loss in the folds with these slots."""
    return float(_rung_tasks(rows, spec, {target: splits}, seed, IN_PROCESS, ranked=False).losses()[target].mean())
