"""Evaluation: metrics of the evaluation models for the manifest, and the tables of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

from feature_store.offline.store import OfflineStore
from feature_store.state.layout import Floats
from training.arrays import Features, Index
from training.data.splits import Split
from training.data.training_table import Progress
from training.evaluation.cost_metrics import cost_metrics
from training.evaluation.importance import permutation_importance
from training.evaluation.metrics import (
    Metrics,
    calibration_uncertainty,
    policy_metrics,
    probability_metrics,
    recency_probability,
    spend_metrics,
)
from training.evaluation.policies import compare_over_rates, compare_policies
from training.evaluation.robustness import DAMAGES, robustness
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.treatment import evaluate_randomised_offer
from training.evidence import (
    OPTIMISTIC,
    Cell,
    Evidence,
    Finding,
    HoldoutRows,
    Optimism,
    Policy,
    Quality,
    Segment,
    hashed_ids,
)
from training.graph.customer_costs import terms_of
from training.models.learners import Learner
from training.models.probability import fit_probability
from training.models.segments import profile
from training.parallel import Task, WorkerPool
from training.selection.model_selection import ChosenLearners
from training.selection.select_features import SelectedFeatures

RANDOM_TEST_SHARE: Final = 0.25
RANDOM_CALIBRATION_SHARE: Final = 0.2


@dataclass(frozen=True)
class OfferMetrics:
    """Metrics of an offer on the test rows.

    Attributes:
        probability: Of the calibrated probability.
        alert_share_newest_block: Share of alerts on the calibration rows.
        policy: Profits of policies with equal contacts.
        recency_alone: Of the baseline; None for a snapshot.
    """

    probability: Metrics
    alert_share_newest_block: float
    policy: Metrics
    recency_alone: Metrics | None

    def as_json(self) -> dict[str, Any]:
        """The metrics as the manifest has them."""
        lines: dict[str, Any] = {
            **self.probability,
            "alert_share_newest_block": self.alert_share_newest_block,
            "policy": self.policy,
        }
        return lines if self.recency_alone is None else lines | {"recency_alone": self.recency_alone}


@dataclass(frozen=True)
class TestMetrics:
    """Metrics of the evaluation models on the test rows.

    Attributes:
        offers: By offer.
        spend: Of expected spend; empty for a snapshot without a column of values.
    """

    __test__ = False

    offers: Mapping[str, OfferMetrics]
    spend: Metrics

    def as_json(
        self, models: Mapping[str, str], parity: Mapping[str, float], rows: Mapping[str, int]
    ) -> dict[str, Any]:
        """The section ``metrics`` of a manifest.

        Args:
            models: Names of the served models by offer, and of the spend model.
            parity: Largest differences between graph and scikit-learn by output.
            rows: Numbers of rows.
        """
        return {
            **{f"{offer}_auc": metrics.probability["auc"] for offer, metrics in self.offers.items()},
            **{offer: metrics.as_json() | {"model": models[offer]} for offer, metrics in self.offers.items()},
            "spend": {**self.spend, "model": models["spend"]},
            "parity": dict(parity),
            "rows": dict(rows),
        }


def evaluate(scorer: EvaluationScorer) -> tuple[TestMetrics, dict[str, HoldoutRows]]:
    """Metrics on the test rows, and the scored test rows by offer."""
    offers: dict[str, OfferMetrics] = {}
    scored: dict[str, HoldoutRows] = {}
    for offer in scorer.offers:
        offers[offer], scored[offer] = _evaluate_offer(scorer, offer)
    spend: Metrics = {}
    if "spend" in scorer.table.splits:
        rows = scorer.table.rows.take(scorer.table.splits["spend"].test)
        spend = spend_metrics(rows.spend, scorer.run(rows.state)["expected_spend"])
    return TestMetrics(offers, spend), scored


def _evaluate_offer(scorer: EvaluationScorer, offer: str) -> tuple[OfferMetrics, HoldoutRows]:
    split, rows = scorer.table.splits[offer], scorer.table.rows
    known, test = rows.take(split.evaluation.everything), rows.take(split.test)
    outputs, newest = scorer.run(test.state), scorer.run(rows.state[split.evaluation.calibration])
    label, probability = test.label(offer) > 0, outputs[f"{offer}_probability"]
    value = scorer.config.economics.margin * outputs["expected_spend"]
    terms = terms_of(scorer.config, scorer.table.spec.layout, offer, test.state)
    has_time = scorer.table.plan is not None
    baseline = np.full(len(test), known.label(offer).mean())
    if has_time:
        baseline = recency_probability(known.recency_days, known.label(offer) > 0, test.recency_days)
    metrics = OfferMetrics(
        probability=probability_metrics(label, probability)
        | calibration_uncertainty(
            label, probability, test.group, resamples=scorer.config.evaluation.bootstrap, seed=scorer.seed
        ),
        alert_share_newest_block=float((newest[f"{offer}_probability"] >= newest[f"{offer}_threshold"]).mean()),
        policy=policy_metrics(label, probability, value, outputs[f"{offer}_threshold"], terms),
        recency_alone=probability_metrics(label, baseline) if has_time else None,
    )
    return metrics, HoldoutRows(
        customer=hashed_ids(test.customer_id.tolist()),
        cutoff=test.cutoff,
        label=label,
        probability=probability,
        threshold=outputs[f"{offer}_threshold"],
        value=value,
        contact_cost=np.broadcast_to(terms.contact_cost, len(test)).astype(np.float64),
        offer_cost=np.broadcast_to(terms.offer_cost, len(test)).astype(np.float64),
        recency_days=test.recency_days,
        baseline=baseline,
        random=np.full(len(test), np.nan),
    )


def gather_tables(
    scorer: EvaluationScorer,
    selected: SelectedFeatures,
    chosen: ChosenLearners,
    scored: Mapping[str, HoldoutRows],
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
        findings: Of the audit.
        source: The source, still open.
        progress: Called when a step begins.
        pool: Worker processes.

    Returns:
        The tables, and the scored rows completed by the probabilities of a random split.
    """
    table, subsets = scorer.table, selected.subsets
    done = progress("evidence", 4 + (1 if table.plan is None else 3) * len(DAMAGES))
    # Workers compute the slow tables while this process uses the source: they have no access to its DuckDB.
    optimism_tasks = {} if table.plan is None else _compare_splits(scorer, chosen.learners, scored, pool)
    importance_tasks = permutation_importance(scorer, pool)
    treatment, warnings = evaluate_randomised_offer(scorer, source)
    done()
    damages = list(robustness(scorer, source, done))
    policies, cells, costs = _evaluate_policies(scorer)
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
        policies=policies,
        grid=cells,
        costs=costs,
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
    model = fit_probability(learner, features, labels, Split(fit, calibration, known), seed)
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


def _evaluate_policies(scorer: EvaluationScorer) -> tuple[list[Policy], list[Cell], dict[str, float]]:
    """Profits of policies, of the dynamic threshold for other rates, and cost-sensitive metrics."""
    lines: list[Policy] = []
    cells: list[Cell] = []
    costs: dict[str, float] = {}
    evaluation, minimum = scorer.config.evaluation, scorer.config.economics.threshold_min
    settings: dict[str, Any] = {"threshold_min": minimum, "resamples": evaluation.bootstrap, "seed": evaluation.seed}
    for offer in scorer.offers:
        split, terms = scorer.table.splits[offer], scorer.config.economics.offer(offer)
        calibration, test = scorer.scored(offer, split.evaluation.calibration), scorer.scored(offer, split.test)
        lines += compare_policies(offer, terms, calibration, test, **settings)
        cells += compare_over_rates(offer, terms, calibration, test, **settings)
        metrics = cost_metrics(terms, calibration, test, threshold_min=minimum)
        costs |= {f"{offer}_{name}": value for name, value in metrics.items()}
    return lines, cells, costs


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
