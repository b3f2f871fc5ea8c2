"""Model selection: the simplest learner of each target, by cross-validation and the one-standard-error rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from feature_store.bundles.bundle import OFFERS
from training.arrays import Features
from training.data.dataset import Rows
from training.data.splits import Splits
from training.evidence import Trial
from training.models import spend
from training.models.learners import CLASSIFIERS, Learner, mean_score
from training.parallel import IN_PROCESS, WorkerPool
from training.selection.fold_losses import folds_of, losses_of_scores, scores_of_part
from training.selection.one_standard_error import simplest


@dataclass(frozen=True)
class ChosenLearners:
    """The learner of each target, and all that were tried."""

    learners: dict[str, Learner]
    trials: list[Trial]


def learners_of(target: str, *, with_rates: bool = False) -> Sequence[Learner]:
    """The learners to try for a target, the simplest first; without features of rates, fewer of them."""
    learners = CLASSIFIERS if target in OFFERS else spend.REGRESSORS
    return [learner for learner in learners if with_rates or not learner.sees_rates]


def choose_learners(
    features: Features,
    rows: Rows,
    splits: Mapping[str, Splits],
    seed: int,
    done: Callable[[], None] = lambda: None,
    pool: WorkerPool = IN_PROCESS,
    without_rates: int | None = None,
) -> ChosenLearners:
    """Choose the simplest learner of each target that is within one standard error of the best.

    A part that several learners share is fitted once in each fold.

    Args:
        features: Features ``[n, names]`` of all rows.
        rows: All rows.
        splits: By target.
        seed: Of the learners.
        done: Called after each learner.
        pool: Worker processes.
        without_rates: Number of features before those of rates; None if there are none.
    """
    tried = {target: learners_of(target, with_rates=without_rates is not None) for target in splits}
    folds = {target: folds_of(target, features, rows, split) for target, split in splits.items()}
    fits = [
        (len(fold.labels), target, at, part)
        for target in splits
        for at, fold in enumerate(folds[target])
        for part in dict.fromkeys(part for learner in tried[target] for part in learner.parts)
    ]
    # The longest first, so that all workers are busy until the end.
    tasks = {
        (target, at, part): pool.submit(scores_of_part, part, folds[target][at].seen_by(part, without_rates), seed)
        for _, target, at, part in sorted(fits, key=itemgetter(0), reverse=True)
    }
    learners, trials = {}, []
    for target, split in splits.items():
        candidates = tried[target]
        losses_by_candidate = []
        for candidate in candidates:
            parts = []
            for at, fold in enumerate(folds[target]):
                scores = mean_score([tasks[target, at, part].result() for part in candidate.parts])
                parts.append(losses_of_scores(fold, scores))
            losses_by_candidate.append(np.concatenate(parts))
            done()
        validation = np.concatenate([later for _, later in split.folds])
        chosen, gaps = simplest(losses_by_candidate, rows.group[validation])
        learners[target] = replace(candidates[chosen], without_rates=without_rates)
        for at, (candidate, losses, gap) in enumerate(zip(candidates, losses_by_candidate, gaps, strict=True)):
            trials.append(
                Trial(
                    target=target,
                    model=candidate.name,
                    loss=float(losses.mean()),
                    behind=gap.mean,
                    error=gap.error,
                    chosen=at == chosen,
                )
            )
    return ChosenLearners(learners, trials)
