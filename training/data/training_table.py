"""The training table: rows with states and labels, the features made of them, and their splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from feature_store.offline.store import OfflineStore
from feature_store.state.layout import StateLayout
from training.config import TrainingConfig
from training.data import candidate_features
from training.data.clipping import learn_clips
from training.data.cutoffs import TARGETS, CutoffPlan, lay_out
from training.data.dataset import Rows, build_rows, snapshot_rows
from training.data.splits import Splits, check_splits, random_folds, random_splits, temporal_splits
from training.graph.features import FeatureSpec

Progress = Callable[[str, int], Callable[[], None]]
"""Called with the name of a step and its number of parts; returns what to call after each part."""


@dataclass(frozen=True)
class TrainingTable:
    """What models are fitted on.

    Attributes:
        rows: All rows.
        spec: The features made of a state.
        splits: Which rows are for what, by target.
        plan: The cut-offs; None for a snapshot.
    """

    rows: Rows
    spec: FeatureSpec
    splits: Mapping[str, Splits]
    plan: CutoffPlan | None


def build_table(config: TrainingConfig, source: OfflineStore, progress: Progress) -> TrainingTable:
    """Build the table with all candidate features.

    Raises:
        InputError: If the source does not have enough data.
    """
    table = _from_snapshot(config, source) if config.snapshot else _from_events(config, source, progress)
    check_splits(table.rows, table.splits)
    return table


def selection_table(config: TrainingConfig, table: TrainingTable) -> TrainingTable:
    """The part of the table on which slots are selected: no test of any offer has a share in it.

    Rows at cut-offs whose labels are known before the earlier test of both offers (of a snapshot: rows that are not in
    the test), and of more than ``selection_rows`` those of a random sample of the customers. Its splits have no test.
    """
    evaluation, plan = config.evaluation, None if table.plan is None else table.plan.before_tests()
    if plan is None:
        index = np.unique(np.concatenate([split.evaluation.everything for split in table.splits.values()]))
    else:
        index = np.flatnonzero(np.isin(table.rows.cutoff, plan.every))
    rows = _numbered(table.rows.take(index))
    if len(rows) > evaluation.selection_rows:
        draws = np.random.default_rng(evaluation.seed).random(rows.group.max() + 1)
        rows = _numbered(rows.take(draws[rows.group] < evaluation.selection_rows / len(rows)))
    splits = (
        temporal_splits(rows, plan, evaluation.folds)
        if plan
        else random_folds(rows, list(table.splits), evaluation.folds, evaluation.seed)
    )
    # Without features of rates: they depend on the same slots, and would double the time.
    return replace(table, rows=rows, splits=splits, plan=plan, spec=replace(table.spec, rates=None))


def _numbered(rows: Rows) -> Rows:
    """The rows with the numbers of their groups from 0, without gaps: so they do not depend on other rows."""
    return replace(rows, group=np.unique(rows.group, return_inverse=True)[1])


def _from_events(config: TrainingConfig, source: OfflineStore, progress: Progress) -> TrainingTable:
    plan = lay_out(config, source.summary.start, source.summary.end)
    features = candidate_features.candidates(config, source, plan.newest_known)
    layout = StateLayout(learn_clips(source, features, plan.newest_known))
    rates = candidate_features.rates(config, features)
    spec = FeatureSpec(layout, candidate_features.overdue(config, features), rates=rates)
    done = progress("states and labels", len(plan.every))
    # The test must not decide anything, so its customers are not counted.
    rows = build_rows(source, layout, config, plan.every, done, newest_known=plan.newest_known)
    return TrainingTable(rows, spec, temporal_splits(rows, plan, config.evaluation.folds), plan)


def _from_snapshot(config: TrainingConfig, source: OfflineStore) -> TrainingTable:
    layout = StateLayout(candidate_features.candidates(config, source, np.inf))
    rows = snapshot_rows(source, layout, config)
    evaluation = config.evaluation
    targets = [target for target in TARGETS if np.isfinite(rows.label(target)).any()]
    splits = random_splits(rows, targets, evaluation.folds, evaluation.seed)
    return TrainingTable(rows, FeatureSpec(layout), splits, None)
