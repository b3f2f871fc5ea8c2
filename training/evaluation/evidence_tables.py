"""The tables of the evidence: what the evaluation models did on the test rows, and on variations of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.config import Offer
from training.data.splits import Split
from training.data.training_table import Progress
from training.evaluation.cost_metrics import cost_metrics
from training.evaluation.holdout_metrics import TestMetrics
from training.evaluation.importance import permutation_importance
from training.evaluation.negative_control import run_negative_control
from training.evaluation.policies import compare_over_rates
from training.evaluation.robustness import DAMAGES, robustness
from training.evaluation.scored_rows import ScoredRows
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.treatment import evaluate_randomised_offer
from training.evaluation.value_horizons import horizon_effects
from training.evidence import (
    OPTIMISTIC,
    Cell,
    Evidence,
    Finding,
    HoldoutRows,
    NegativeControl,
    Optimism,
    Quality,
    Segment,
)
from training.models.learners import Learner
from training.models.probability import fit_probability
from training.models.segments import profile
from training.parallel import Task, WorkerPool
from training.selection.model_selection import ChosenLearners
from training.selection.select_features import SelectedFeatures

RANDOM_TEST_SHARE: Final = 0.25
RANDOM_CALIBRATION_SHARE: Final = 0.2


def gather_tables(
    scorer: EvaluationScorer,
    selected: SelectedFeatures,
    chosen: ChosenLearners,
    scored: Mapping[str, HoldoutRows],
    metrics: TestMetrics,
    findings: Sequence[Finding],
    source: OfflineStore,
    progress: Progress,
    pool: WorkerPool,
) -> tuple[Evidence, dict[str, HoldoutRows]]:
    """Compute the tables of the evidence.

    Args:
        scorer: The evaluation models.
        selected: The features, and how they were selected.
        chosen: The learners, and all that were tried.
        scored: The scored test rows by offer.
        metrics: Of the test rows, with the policies and the reliability of values.
        findings: Of the audit.
        source: The source, still open.
        progress: Called when a step begins.
        pool: Worker processes.

    Returns:
        The tables, and the scored rows completed by the probabilities of a random split.
    """
    table, subsets = scorer.table, selected.subsets
    done = progress("evidence", 5 + (1 if table.plan is None else 3) * len(DAMAGES))
    # Workers compute the slow tables while this process uses the source: they have no access to its DuckDB.
    optimism_tasks = {} if table.plan is None else _compare_splits(scorer, chosen.learners, scored, pool)
    importance_tasks = permutation_importance(scorer, pool)
    policy_tasks = _compare_policies(scorer, pool)
    treatment, warnings = evaluate_randomised_offer(scorer, source)
    done()
    damages = list(robustness(scorer, source, done))
    horizons = horizon_effects(scorer, chosen.learners, source)
    done()
    policies = [task.result() for task in policy_tasks]
    done()
    importance = [line for target, task in importance_tasks.items() for line in task.result()[target]]
    done()
    optimism, completed = [], dict(scored)
    for offer, task in optimism_tasks.items():
        line, random = task.result()
        optimism.append(line)
        completed[offer] = replace(completed[offer], random=random)
    done()
    evidence = Evidence(
        audit=[*findings, *warnings],
        optimism=optimism,
        trials=chosen.trials,
        ladder=subsets,
        stability=selected.stability,
        candidates=max((len(subset.slots) for subset in subsets), default=0),
        earned_nothing=1
        - min((len(subset.slots) for subset in subsets if subset.chosen), default=1)
        / max((len(subset.slots) for subset in subsets), default=1),
        importance=importance,
        robustness=damages,
        segments=_profile_segments(scorer),
        policies=metrics.policies,
        grid=[cell for of_offer in policies for cell in of_offer.cells],
        controls=[of_offer.control for of_offer in policies],
        values=list(metrics.values),
        horizons=horizons,
        costs={name: value for of_offer in policies for name, value in of_offer.costs.items()},
        treatment=treatment,
        tags=selected.attributes,
        tags_cost=dict(selected.attribute_losses),
        notes=_notes(scorer, selected, findings),
    )
    return evidence, completed


def _notes(scorer: EvaluationScorer, selected: SelectedFeatures, findings: Sequence[Finding]) -> list[str]:
    notes = [f"{finding.where}: {finding.message}" for finding in findings if finding.check in OPTIMISTIC]
    if scorer.table.plan is None:
        notes.append(
            f"a snapshot cannot be split by time: the test customers were chosen {scorer.config.test_rows}, so expect "
            "worse results on later data"
        )
    if selected.none_qualifies:
        notes.append(
            "feature selection: no set of features of the allowed size has a loss within one standard error of the "
            "best set's for every target, so the set with the smallest gap was taken"
        )
    if not selected.subsets:
        notes.append("the config lists its features, so there was no feature selection")
    return notes


def _compare_splits(
    scorer: EvaluationScorer,
    learners: Mapping[str, Learner],
    scored: Mapping[str, HoldoutRows],
    pool: WorkerPool,
) -> dict[str, Task[tuple[Optimism, Floats]]]:
    """Compare a random split of all rows with the temporal split.

    Returns:
        By offer a task with the comparison, and for each test row ``[n]`` the probability by the model of the random
        split, NaN if the row was in its training part.
    """
    table = scorer.table
    features = scorer.models.matrix(table.rows.state)
    tasks = {}
    for offer in scorer.offers:
        split, labels = table.splits[offer], table.rows.label(offer)
        known = np.union1d(split.evaluation.everything, split.test)
        place = np.searchsorted(known, split.test)
        tasks[offer] = pool.submit(
            _optimism, offer, learners[offer], scored[offer], features[known], labels[known], place, scorer.seed
        )
    return tasks


def _optimism(
    offer: str, learner: Learner, test: HoldoutRows, features: Features, labels: Floats, place: Index, seed: int
) -> tuple[Optimism, Floats]:
    """Comparison for an offer, from features and labels of all rows; ``place`` ``[n]``: test rows among them.

    Like is compared with like: both models are calibrated on rows that they were not fitted on, and both are judged on
    those test rows that the random split holds out.
    """
    known, holdout = train_test_split(np.arange(len(labels)), test_size=RANDOM_TEST_SHARE, random_state=seed)
    fit, calibration = train_test_split(known, test_size=RANDOM_CALIBRATION_SHARE, random_state=seed)
    model, _ = fit_probability(learner, features, labels, Split(fit, calibration, known), seed)
    by_row = np.full(len(labels), np.nan)
    by_row[holdout] = model.predict(features[holdout])
    random = by_row[place]
    both, label = np.isfinite(random), test.label.astype(np.float64)
    line = Optimism(
        offer=offer,
        random=_quality(label[both], random[both]),
        temporal=_quality(label[both], test.probability[both]),
    )
    return line, random


def _quality(label: Floats, probability: Floats) -> Quality:
    return Quality(auc=float(roc_auc_score(label, probability)), log_loss=float(log_loss(label, probability)))


@dataclass(frozen=True)
class _PolicyTables:
    """Profits of the dynamic threshold for other rates, the negative control, and cost-sensitive metrics."""

    cells: list[Cell]
    control: NegativeControl
    costs: dict[str, float]


def _compare_policies(scorer: EvaluationScorer, pool: WorkerPool) -> list[Task[_PolicyTables]]:
    """Queue the comparisons of policies of each offer."""
    return [
        pool.submit(
            _policy_tables,
            offer,
            scorer.config.economics.offer(offer),
            scorer.calibration_rows(offer),
            scorer.test_rows(offer),
            scorer.config.economics.threshold_min,
            scorer.seed,
        )
        for offer in scorer.offers
    ]


def _policy_tables(
    name: str, offer: Offer, calibration: ScoredRows, test: ScoredRows, threshold_min: float, seed: int
) -> _PolicyTables:
    """The tables of an offer."""
    metrics = cost_metrics(offer, calibration, test, threshold_min=threshold_min)
    return _PolicyTables(
        compare_over_rates(name, offer, calibration, test, threshold_min=threshold_min),
        run_negative_control(name, offer, calibration, test, threshold_min=threshold_min, seed=seed),
        {f"{name}_{metric}": value for metric, value in metrics.items()},
    )


def _profile_segments(scorer: EvaluationScorer) -> list[Segment]:
    """Profile the segments on the test rows of churn, or of the only offer."""
    target = "churn" if "churn" in scorer.table.splits else scorer.offers[0]
    rows = scorer.table.rows.take(scorer.table.splits[target].test)

    def known(label: Floats) -> Floats | None:
        return label if np.isfinite(label).all() else None

    churn, propensity = known(rows.churn), known(rows.propensity)
    return profile(
        scorer.models.segments,
        scorer.models.matrix(rows.state),
        None if churn is None else churn > 0,
        None if propensity is None else propensity > 0,
        known(rows.spend),
    )
