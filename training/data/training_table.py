"""From a source to rows with the slots that are kept: candidates, cut-offs, states, labels, splits, ladder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout
from training.config import TrainingConfig
from training.data import candidate_features as candidates
from training.data import splits
from training.data.clipping import learn_clips
from training.data.cutoffs import TARGETS, CutoffPlan, lay_out
from training.data.dataset import Rows, build_rows, snapshot_rows
from training.data.splits import Splits, check_splits
from training.evidence import Rung, Tag
from training.graph.features import FeatureSpec
from training.parallel import IN_PROCESS, WorkerPool
from training.selection.backward_elimination import climb, fold_loss, rungs_of
from training.selection.redundant_tags import binary_columns, find_redundant, has_enough_binary

Progress = Callable[[str, int], Callable[[], None]]
"""Called with a step's name and its number of parts; returns what to call after each part."""


@dataclass(frozen=True)
class Data:
    """What models are made from: rows ``[n]`` with the kept slots, what is made of these, and which rows are for what.

    plan: cut-offs, None for a snapshot; rungs: the ladder, empty where the config left nothing to choose; tags: of a
    table of tags which of them say the same, and what leaving some out costs.
    """

    rows: Rows
    spec: FeatureSpec
    splits: Mapping[str, Splits]
    plan: CutoffPlan | None
    rungs: list[Rung] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)
    tags_cost: Mapping[str, float] = field(default_factory=dict)


def prepare(config: TrainingConfig, source: OfflineStore, progress: Progress, pool: WorkerPool = IN_PROCESS) -> Data:
    """Rows, splits and slots; InputError where the source cannot support them."""
    wide = _snapshot(config, source) if config.snapshot else _events(config, source, progress)
    check_splits(wide.rows, wide.splits)
    some = _some(config, wide)
    most = None if config.candidates is None else config.candidates.most_slots
    data = wide if most is None else _narrowed(config, most, wide, some, progress, pool)
    done = progress("tags that say the same", 1)
    tags, cost = _tags(some, config.evaluation.seed)
    done()
    return replace(data, tags=tags, tags_cost=cost)


def _events(config: TrainingConfig, source: OfflineStore, progress: Progress) -> Data:
    plan = lay_out(config, source.summary.start, source.summary.end)
    lines = candidates.candidates(config, source, plan.newest_known)
    layout = StateLayout(learn_clips(source, lines, plan.newest_known))
    spec = FeatureSpec(layout, candidates.overdue(config, lines))
    rows = build_rows(source, layout, config, plan.every, progress("states and labels", len(plan.every)))
    return Data(rows, spec, splits.temporal_splits(rows, plan, config.evaluation.folds), plan)


def _snapshot(config: TrainingConfig, source: OfflineStore) -> Data:
    layout = StateLayout(candidates.candidates(config, source, np.inf))
    rows = snapshot_rows(source, layout, config)
    plan = config.evaluation
    targets = [target for target in TARGETS if np.isfinite(rows.label(target)).any()]
    return Data(rows, FeatureSpec(layout), splits.random_splits(rows, targets, plan.folds, plan.seed), None)


def _some(config: TrainingConfig, wide: Data) -> Data:
    """Rows to choose by: those of some customers where all would take too long."""
    plan, rows = config.evaluation, wide.rows
    if len(rows) <= plan.selection_rows:
        return wide
    groups = np.random.default_rng(plan.seed).random(rows.group.max() + 1)
    some = rows.take(groups[rows.group] < plan.selection_rows / len(rows))
    judged = (
        splits.temporal_splits(some, wide.plan, plan.folds)
        if wide.plan
        else splits.random_splits(some, list(wide.splits), plan.folds, plan.seed)
    )
    return replace(wide, rows=some, splits=judged)


def _narrowed(config: TrainingConfig, most: int, wide: Data, some: Data, progress: Progress, pool: WorkerPool) -> Data:
    """The same with the slots of the chosen rung."""
    features = wide.spec.layout.features
    done = progress("slots worth keeping", len(rungs_of(len(features))))
    keep = _pinned(config, features)
    rungs = climb(some.rows, wide.spec, some.splits, config.evaluation.seed, most, done, keep, pool)
    names = next(rung.slots for rung in rungs if rung.chosen)
    kept = [i for i, feature in enumerate(features) if feature.name in names]
    return Data(wide.rows.narrowed(kept), wide.spec.narrowed(kept), wide.splits, wide.plan, rungs)


def _pinned(config: TrainingConfig, features: Sequence[Feature]) -> list[int]:
    """Slots that are kept whatever they tell: costs, which thresholds need, and the time of the last event of churn.

    Few customers cannot show that a slot is missed, and a model without that one may do worse than the baseline.
    """
    costs = candidates.cost_columns(config)
    latest = next(
        (i for i, f in enumerate(features) if f.aggregate == "latest" and f.event == config.churn.event), None
    )
    own = [i for i, f in enumerate(features) if f.aggregate == "attribute" and f.source_column in costs]
    return own if latest is None else [*own, latest]


def _tags(some: Data, seed: int) -> tuple[list[Tag], dict[str, float]]:
    """Of many 0/1 attributes, those that say the same, and what leaving them out costs in the loss of the folds."""
    names = [feature.name for feature in some.spec.layout.features]
    columns = {name: some.rows.state[:, at] for at, name in enumerate(names)}
    if not has_enough_binary(columns):
        return [], {}
    mine = binary_columns(columns)
    others = [at for at, name in enumerate(names) if name not in mine]
    values = np.column_stack([columns[name] for name in mine]) == 1
    offer = next(offer for offer in OFFERS if offer in some.splits)

    def loss(indexes: list[int]) -> float:
        slots = sorted([*others, *(names.index(mine[at]) for at in indexes)])
        return fold_loss(offer, some.rows.narrowed(slots), some.spec.narrowed(slots), some.splits[offer], seed)

    return find_redundant(values, mine, loss, seed=seed)
