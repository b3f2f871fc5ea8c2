"""Selecting features: the training table with the slots that are kept, and the redundant binary attributes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from feature_store.bundles.bundle import OFFERS
from feature_store.definitions import Feature
from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats
from training.config import TrainingConfig
from training.data.candidate_features import cost_columns
from training.data.training_table import Progress, TrainingTable, build_table, selection_table
from training.evidence import BinaryAttribute, FeatureSubset, SlotStability
from training.parallel import IN_PROCESS, WorkerPool
from training.selection.backward_elimination import Elimination, eliminate_backward, qualifies, subset_sizes
from training.selection.fold_losses import validation_losses
from training.selection.redundant_tags import binary_columns, find_redundant, has_enough_binary


@dataclass(frozen=True)
class SelectedFeatures:
    """The result of feature selection.

    Attributes:
        table: The training table with only the slots that are kept.
        subsets: The steps of backward elimination; empty if the config has no candidates.
        stability: How often each slot is chosen on half of the customers.
        attributes: The binary attributes with their redundancy; empty if there are too few.
        attribute_losses: Cross-validation losses of the sets of binary attributes that were tried.
    """

    table: TrainingTable
    subsets: list[FeatureSubset] = field(default_factory=list)
    stability: list[SlotStability] = field(default_factory=list)
    attributes: list[BinaryAttribute] = field(default_factory=list)
    attribute_losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def none_qualifies(self) -> bool:
        """Whether no subset of the allowed size was as good as the best one, so that the closest was taken."""
        return any(subset.chosen and not qualifies(subset) for subset in self.subsets)


def select_features(
    config: TrainingConfig, source: OfflineStore, progress: Progress, pool: WorkerPool = IN_PROCESS
) -> SelectedFeatures:
    """Build the training table and select its slots.

    Args:
        config: The config.
        source: The open source.
        progress: Called when a step begins.
        pool: Worker processes.

    Raises:
        InputError: If the source does not have enough data.
    """
    full = build_table(config, source, progress)
    sample = selection_table(config, full)
    made = Elimination([], [])
    if config.candidates is not None:
        made = _eliminate(config, sample, config.candidates.most_slots, progress, pool)
    table = _narrowed(full, made.subsets) if made.subsets else full
    done = progress("redundant attributes", 1)
    attributes, losses = _redundant_attributes(sample, config.evaluation.seed)
    done()
    return SelectedFeatures(table, made.subsets, made.stability, attributes, losses)


def _eliminate(
    config: TrainingConfig, sample: TrainingTable, max_slots: int, progress: Progress, pool: WorkerPool
) -> Elimination:
    features = sample.spec.layout.features
    done = progress("feature selection", len(subset_sizes(len(features), max_slots)))
    return eliminate_backward(
        sample.rows,
        sample.spec,
        {target: split for target, split in sample.splits.items() if target in _targets(sample.splits)},
        config.evaluation.seed,
        max_slots,
        done,
        _pinned(config, features),
        pool,
    )


def _targets(splits: Collection[str]) -> list[str]:
    """The targets that features are selected for: the outcomes, and spend.

    Spend stands for the values of a win, which depend on the same slots: a model of each in every step would take a
    quarter of the time of a fit.
    """
    return [target for target in (*OFFERS, "spend") if target in splits]


def _narrowed(table: TrainingTable, subsets: Sequence[FeatureSubset]) -> TrainingTable:
    """The table with the slots of the chosen subset."""
    names = next(subset.slots for subset in subsets if subset.chosen)
    slots = [i for i, feature in enumerate(table.spec.layout.features) if feature.name in names]
    return TrainingTable(table.rows.narrowed(slots), table.spec.narrowed(slots), table.splits, table.plan)


def _pinned(config: TrainingConfig, features: Sequence[Feature]) -> list[int]:
    """Slots that are always kept: costs, which thresholds need, and the time of the last churn event.

    With few customers it may not show that a slot is needed, and a model without that one may be worse than the
    baseline.
    """
    costs = cost_columns(config)
    latest = next(
        (i for i, f in enumerate(features) if f.aggregate == "latest" and f.event == config.churn.event), None
    )
    cost_slots = [i for i, f in enumerate(features) if f.aggregate == "attribute" and f.source_column in costs]
    return cost_slots if latest is None else [*cost_slots, latest]


def _redundant_attributes(sample: TrainingTable, seed: int) -> tuple[list[BinaryAttribute], dict[str, float]]:
    """The redundant ones of many binary attributes, and the cross-validation losses without them."""
    names = [feature.name for feature in sample.spec.layout.features]
    columns = {name: sample.rows.state[:, at] for at, name in enumerate(names)}
    if not has_enough_binary(columns):
        return [], {}
    binary = binary_columns(columns)
    others = [at for at, name in enumerate(names) if name not in binary]
    values = np.column_stack([columns[name] for name in binary]) == 1
    offer = next(offer for offer in OFFERS if offer in sample.splits)

    def losses(indexes: list[int]) -> Floats:
        slots = sorted([*others, *(names.index(binary[at]) for at in indexes)])
        rows, spec = sample.rows.narrowed(slots), sample.spec.narrowed(slots)
        return validation_losses(offer, rows, spec, sample.splits[offer], seed)

    groups = sample.rows.group[np.concatenate([later for _, later in sample.splits[offer].folds])]
    return find_redundant(values, binary, losses, groups, seed=seed)
