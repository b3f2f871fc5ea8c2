"""From a source to rows with the slots that are kept: candidates, cut-offs, states, labels, splits, ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from feature_store.offline import OfflineStore
from feature_store.state import StateLayout
from training import candidates, splits
from training.clips import learn_clips
from training.config import TrainingConfig
from training.cutoffs import TARGETS, Plan, lay_out
from training.dataset import Rows, build_rows, snapshot_rows
from training.evidence import Rung
from training.features import FeatureSpec
from training.models import check_splits
from training.selection import climb, rungs_of
from training.splits import Splits

Progress = Callable[[str, int], Callable[[], None]]
"""Called with a step's name and its number of parts; returns what to call after each part."""


@dataclass(frozen=True)
class Data:
    """What models are made from: rows ``[n]`` with the kept slots, what is made of these, and which rows are for what.

    plan: cut-offs, None for a snapshot; rungs: the ladder, empty where the config left nothing to choose.
    """

    rows: Rows
    spec: FeatureSpec
    splits: Mapping[str, Splits]
    plan: Plan | None
    rungs: list[Rung] = field(default_factory=list)


def prepare(config: TrainingConfig, source: OfflineStore, progress: Progress) -> Data:
    """Rows, splits and slots; InputError where the source cannot support them."""
    wide = _snapshot(config, source) if config.snapshot else _events(config, source, progress)
    check_splits(wide.rows, wide.splits)
    if config.candidates is None:
        return wide
    return _narrowed(config, config.candidates.most_slots, wide, progress)


def _events(config: TrainingConfig, source: OfflineStore, progress: Progress) -> Data:
    plan = lay_out(config, source.summary.start, source.summary.end)
    lines = candidates.candidates(config, source, plan.newest_known)
    layout = StateLayout(learn_clips(source, lines, plan.newest_known))
    spec = FeatureSpec(layout, candidates.overdue(config, lines))
    rows = build_rows(source, layout, config, plan.every, progress("states and labels", len(plan.every)))
    return Data(rows, spec, splits.in_time(rows, plan, config.evaluation.folds), plan)


def _snapshot(config: TrainingConfig, source: OfflineStore) -> Data:
    layout = StateLayout(candidates.candidates(config, source, np.inf))
    rows = snapshot_rows(source, layout, config)
    plan = config.evaluation
    targets = [target for target in TARGETS if np.isfinite(rows.label(target)).any()]
    return Data(rows, FeatureSpec(layout), splits.by_lot(rows, targets, plan.folds, plan.seed), None)


def _narrowed(config: TrainingConfig, most: int, wide: Data, progress: Progress) -> Data:
    """The same with the slots of the chosen rung. Choosing looks at some customers where all would take too long."""
    plan, rows = config.evaluation, wide.rows
    groups = np.random.default_rng(plan.seed).random(rows.group.max() + 1)
    some = rows.take(groups[rows.group] < plan.selection_rows / len(rows))
    judged = (
        splits.in_time(some, wide.plan, plan.folds)
        if wide.plan
        else splits.by_lot(some, list(wide.splits), plan.folds, plan.seed)
    )
    done = progress("slots worth keeping", len(rungs_of(len(wide.spec.layout.features))))
    rungs = climb(some, wide.spec, judged, plan.seed, most, done)
    names = next(rung.slots for rung in rungs if rung.chosen)
    costs = candidates.cost_columns(config)  # kept whatever they tell: the thresholds need them
    features = wide.spec.layout.features
    kept = [i for i, f in enumerate(features) if f.name in names or (f.categories is None and f.source_column in costs)]
    return Data(rows.narrowed(kept), wide.spec.narrowed(kept), wide.splits, wide.plan, rungs)
