"""Permutation importance of the slots on the test rows (Breiman, 2001, "Random forests")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score

from feature_store.bundles.bundle import OFFERS
from feature_store.state.layout import Floats
from training.data.cutoffs import TARGETS, VALUE_TARGETS
from training.evaluation.scorer import EvaluationScorer, ScoringGraph
from training.evidence import Importance
from training.parallel import Task, WorkerPool
from training.selection.fold_losses import shuffled
from training.statistics import poisson_losses

REPEATS: Final = 3
MIN_VALUE: Final = 1e-9
"""Lower bound of a predicted value, because the deviance needs positive ones."""


def permutation_importance(scorer: EvaluationScorer, pool: WorkerPool) -> dict[str, Task[dict[str, list[Importance]]]]:
    """Queue the computation of the importance of all slots, for the probability and the value if won of each offer.

    Offers with the same test rows share a task, and with it the runs of the graph.

    Returns:
        By target, the task whose result has the lines of the target.
    """
    table, margin = scorer.table, scorer.config.economics.margin
    slots = [feature.name for feature in table.spec.layout.features]
    offers_by_test: dict[bytes, list[str]] = {}
    for offer in scorer.offers:
        offers_by_test.setdefault(table.splits[offer].test.tobytes(), []).append(offer)
    tasks: dict[str, Task[dict[str, list[Importance]]]] = {}
    for offers in offers_by_test.values():
        rows = table.rows.take(table.splits[offers[0]].test)
        labels = {offer: rows.label(offer) for offer in offers}
        values = {VALUE_TARGETS[offer]: margin * rows.label(VALUE_TARGETS[offer]) for offer in offers}
        labels |= {target: value for target, value in values.items() if np.isfinite(value).any()}
        tasks |= dict.fromkeys(labels, pool.submit(_importance, scorer.graph, rows.state, labels, slots, scorer.seed))
    return {target: tasks[target] for target in TARGETS if target in tasks}


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
    """By target: AUC of an offer, or the negative Poisson deviance of a value on the rows where it is known."""
    quality = {}
    for target, label in labels.items():
        if target in OFFERS:
            quality[target] = float(roc_auc_score(label, outputs[f"{target}_probability"]))
        else:
            offer = next(offer for offer in OFFERS if VALUE_TARGETS[offer] == target)
            known = np.isfinite(label)
            value = np.maximum(outputs[f"{offer}_value_if_won"][known], MIN_VALUE)
            quality[target] = -float(poisson_losses(label[known], value).mean())
    return quality
