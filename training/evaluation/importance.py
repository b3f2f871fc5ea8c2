"""Permutation importance of the slots on the test rows (Breiman, 2001, "Random forests")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.evaluation.scorer import EvaluationScorer, ScoringGraph
from training.evidence import Importance
from training.parallel import Task, WorkerPool
from training.selection.fold_losses import shuffled
from training.statistics import poisson_losses

REPEATS: Final = 3


def permutation_importance(scorer: EvaluationScorer, pool: WorkerPool) -> dict[str, Task[dict[str, list[Importance]]]]:
    """Queue the computation of the importance of all slots.

    Targets with the same test rows share a task, and with it the runs of the graph.

    Returns:
        By target, the task whose result has the lines of the target.
    """
    table = scorer.table
    slots = [feature.name for feature in table.spec.layout.features]
    targets_by_test: dict[bytes, list[str]] = {}
    for target, split in table.splits.items():
        targets_by_test.setdefault(split.test.tobytes(), []).append(target)
    tasks: dict[str, Task[dict[str, list[Importance]]]] = {}
    for targets in targets_by_test.values():
        rows = table.rows.take(table.splits[targets[0]].test)
        labels = {target: rows.label(target) for target in targets}
        tasks |= dict.fromkeys(targets, pool.submit(_importance, scorer.graph, rows.state, labels, slots, scorer.seed))
    return {target: tasks[target] for target in table.splits}


def _importance(
    graph: ScoringGraph, state: Floats, labels: Mapping[str, Floats], slots: Sequence[str], seed: int
) -> dict[str, list[Importance]]:
    unchanged = _quality(labels, graph.run(state))
    lines: dict[str, list[Importance]] = {target: [] for target in labels}
    for column, slot in enumerate(slots):
        permuted = [
            _quality(labels, graph.run(shuffled(state, column, seed + 1000 * repeat))) for repeat in range(REPEATS)
        ]
        for target, of_target in lines.items():
            lost = [unchanged[target] - changed[target] for changed in permuted]
            of_target.append(
                Importance(target=target, slot=slot, lost=float(np.mean(lost)), spread=float(np.std(lost)))
            )
    return lines


def _quality(labels: Mapping[str, Floats], outputs: Mapping[str, Floats]) -> dict[str, float]:
    """By target: AUC of an offer, or the negative Poisson deviance of spend."""
    return {
        target: float(roc_auc_score(label, outputs[f"{target}_probability"]))
        if target in OFFERS
        else -float(poisson_losses(label, outputs["expected_spend"]).mean())
        for target, label in labels.items()
    }
