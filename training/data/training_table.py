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
from training.data.splits import Splits, check_splits, random_splits, temporal_splits
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


def sample_for_selection(config: TrainingConfig, table: TrainingTable) -> TrainingTable:
    """The table, or if it has more than ``selection_rows`` rows, that of a random sample of the customers."""
    evaluation, rows = config.evaluation, table.rows
    if len(rows) <= evaluation.selection_rows:
        return table
    draws = np.random.default_rng(evaluation.seed).random(rows.group.max() + 1)
    sample = rows.take(draws[rows.group] < evaluation.selection_rows / len(rows))
    splits = (
        temporal_splits(sample, table.plan, evaluation.folds)
        if table.plan
        else random_splits(sample, list(table.splits), evaluation.folds, evaluation.seed)
    )
    return replace(table, rows=sample, splits=splits)


def _from_events(config: TrainingConfig, source: OfflineStore, progress: Progress) -> TrainingTable:
    plan = lay_out(config, source.summary.start, source.summary.end)
    features = candidate_features.candidates(config, source, plan.newest_known)
    layout = StateLayout(learn_clips(source, features, plan.newest_known))
    spec = FeatureSpec(layout, candidate_features.overdue(config, features))
    rows = build_rows(source, layout, config, plan.every, progress("states and labels", len(plan.every)))
    return TrainingTable(rows, spec, temporal_splits(rows, plan, config.evaluation.folds), plan)


def _from_snapshot(config: TrainingConfig, source: OfflineStore) -> TrainingTable:
    layout = StateLayout(candidate_features.candidates(config, source, np.inf))
    rows = snapshot_rows(source, layout, config)
    evaluation = config.evaluation
    targets = [target for target in TARGETS if np.isfinite(rows.label(target)).any()]
    splits = random_splits(rows, targets, evaluation.folds, evaluation.seed)
    return TrainingTable(rows, FeatureSpec(layout), splits, None)
