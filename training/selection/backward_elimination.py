"""What is kept: the fewest slots, and the simplest models, that do as well on later data as the best, beyond noise."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.data.dataset import Index, Rows
from training.data.splits import Splits
from training.evidence import Rung, Trial
from training.graph.features import FeatureMatrix, FeatureSpec, filled_matrix
from training.losses import behind, log_losses, poisson_losses, simplest
from training.models import probability, spend
from training.models.probability import Features, Learner

Done = Callable[[], None]

SHRINK: Final = (256, 128, 96, 64, 48, 36, 24, 20, 16, 12, 8, 6, 4, 2)
"""Numbers of slots that the ladder stands on."""

JUDGED_ROWS: Final = 4000
"""Rows by which the slots of a rung are ranked: shuffling each of many slots on all rows would take most of a fit."""

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
    features: Features, rows: Rows, splits: Mapping[str, Splits], seed: int, done: Done = lambda: None
) -> Chosen:
    """The simplest candidate of each target that is within one standard error of the best in the folds."""
    learners, trials = {}, []
    for target, split in splits.items():
        candidates = learners_of(target)
        found = []
        for candidate in candidates:
            found.append(_fold_losses(candidate, target, features, rows, split, seed))
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
) -> list[Rung]:
    """The ladder: at each rung the slots that mattered most on the one above; the smallest one that does is chosen.

    Slots in ``keep`` are on every rung.
    A rung does where each target's loss in the folds is within one standard error of the rung that is best for all
    targets together, and where it has at most ``most`` slots.
    """
    slots = list(range(len(spec.layout.features)))
    sizes = rungs_of(len(slots))
    kept: list[list[int]] = []
    losses: list[dict[str, Floats]] = []
    for size in sizes:
        if kept:
            ranked = _rank(rows.narrowed(slots), spec.narrowed(slots), splits, seed, slots)
            others = [slot for slot in ranked if slot not in keep]
            slots = sorted([*keep, *others[: max(size - len(keep), 0)]])
        kept.append(slots)
        losses.append(_rung_losses(rows.narrowed(slots), spec.narrowed(slots), splits, seed))
        done()
    judged = {target: rows.group[np.concatenate([b for _, b in split.folds])] for target, split in splits.items()}
    best = min(losses, key=lambda rung: sum(_relative(rung, losses)))
    rungs = []
    for some, rung in zip(kept, losses, strict=True):
        narrow = spec.narrowed(some)
        distance = {target: behind(rung[target], best[target], judged[target]) for target in splits}
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


def _rung_losses(rows: Rows, spec: FeatureSpec, splits: Mapping[str, Splits], seed: int) -> dict[str, Floats]:
    features = filled_matrix(spec, rows.state)(rows.state)
    return {
        target: _fold_losses(_thorough(target), target, features, rows, split, seed) for target, split in splits.items()
    }


def _thorough(target: str) -> Learner:
    """By what features are chosen: it can use them in every way."""
    return probability.THOROUGH if target in OFFERS else spend.THOROUGH


def _fold_losses(learner: Learner, target: str, features: Features, rows: Rows, splits: Splits, seed: int) -> Floats:
    labels, parts = rows.label(target), []
    for earlier, later in splits.folds:
        fitted = learner.fit(features[earlier], labels[earlier], seed)
        parts.append(losses_of(target, labels[later], predicted(target, fitted, features[later])))
    return np.concatenate(parts)


def fold_loss(target: str, rows: Rows, spec: FeatureSpec, splits: Splits, seed: int) -> float:
    """Mean loss in the folds with these slots."""
    return float(_rung_losses(rows, spec, {target: splits}, seed)[target].mean())


def predicted(target: str, fitted: Any, features: Features) -> Floats:
    """What an uncalibrated estimator says: a probability, or spend."""
    exact = features.astype(np.float64)
    if target in OFFERS:
        return np.asarray(expit(fitted.decision_function(exact)))
    return np.maximum(np.asarray(fitted.predict(exact), dtype=np.float64), spend.LEAST)


def losses_of(target: str, labels: Floats, found: Floats) -> Floats:
    """Loss of each row: log loss of a probability, Poisson deviance of spend."""
    return log_losses(labels, found) if target in OFFERS else poisson_losses(labels, found)


def _rank(rows: Rows, spec: FeatureSpec, splits: Mapping[str, Splits], seed: int, slots: Sequence[int]) -> list[int]:
    """Slots, the most important first: by how much loss grows on later rows when a slot's values are shuffled."""
    matrix = filled_matrix(spec, rows.state)
    features = matrix(rows.state)
    lost = np.zeros(len(slots))
    for target, split in splits.items():
        labels, (earlier, later) = rows.label(target), split.folds[-1]
        fitted = _thorough(target).fit(features[earlier], labels[earlier], seed)
        some = _some(later, JUDGED_ROWS, seed)
        usual = losses_of(target, labels[some], predicted(target, fitted, features[some])).mean()
        for column in range(len(slots)):
            state = shuffled(rows.state[some], column, seed)
            changed = losses_of(target, labels[some], predicted(target, fitted, matrix(state))).mean()
            lost[column] += changed / usual - 1
    return [slots[at] for at in np.argsort(-lost, kind="stable")]


def shuffled(state: Floats, column: int, seed: int) -> Floats:
    """States in which one slot's values have changed customers."""
    changed = state.copy()
    changed[:, column] = np.random.default_rng(seed + column).permutation(state[:, column])
    return changed


def _some(index: Index, most: int, seed: int) -> Index:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, most, replace=False))
