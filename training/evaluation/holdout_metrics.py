"""Metrics of the evaluation models on the test rows, for the manifest and the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.arrays import Bools
from training.evaluation.metrics import (
    Metrics,
    calibration_uncertainty,
    probability_metrics,
    recency_probability,
    spend_metrics,
)
from training.evaluation.policies import DYNAMIC, SINGLE, TIMES_VALUE, compare_policies
from training.evaluation.scored_rows import ScoredRows
from training.evaluation.scorer import EvaluationScorer
from training.evaluation.value_reliability import value_reliability
from training.evidence import HoldoutRows, Policy, ValueReliability
from training.graph.thresholds import threshold


@dataclass(frozen=True)
class OfferMetrics:
    """Metrics of an offer on the test rows.

    Attributes:
        probability: Of the calibrated probability.
        alert_share_newest_block: Share of alerts on the calibration rows.
        policies: Profits of policies at all budgets.
        recency_alone: Of the baseline; None for a snapshot.
    """

    probability: Metrics
    alert_share_newest_block: float
    policies: Sequence[Policy]
    recency_alone: Metrics | None

    def as_json(self) -> dict[str, Any]:
        """The metrics as the manifest has them."""
        lines: dict[str, Any] = {
            **self.probability,
            "alert_share_newest_block": self.alert_share_newest_block,
            "policy": policy_summary(self.policies),
        }
        return lines if self.recency_alone is None else lines | {"recency_alone": self.recency_alone}


@dataclass(frozen=True)
class TestMetrics:
    """Metrics of the evaluation models on the test rows.

    Attributes:
        offers: By offer.
        spend: Of expected spend; empty for a snapshot without a column of values.
        values: Reliability of the values if won.
    """

    __test__ = False

    offers: Mapping[str, OfferMetrics]
    spend: Metrics
    values: Sequence[ValueReliability]

    @property
    def policies(self) -> list[Policy]:
        """Profits of policies for all offers."""
        return [policy for metrics in self.offers.values() for policy in metrics.policies]

    def as_json(
        self, models: Mapping[str, str], parity: Mapping[str, float], rows: Mapping[str, int]
    ) -> dict[str, Any]:
        """The section ``metrics`` of a manifest.

        Args:
            models: Names of the served models, as ``Models.names`` has them.
            parity: Largest differences between graph and scikit-learn by output.
            rows: Numbers of rows.
        """
        return {
            **{f"{offer}_auc": metrics.probability["auc"] for offer, metrics in self.offers.items()},
            **{offer: metrics.as_json() | {"model": models[offer]} for offer, metrics in self.offers.items()},
            "spend": {**self.spend, "model": models["spend"]},
            "values": {
                offer: {"model": models[f"{offer} value"], **_ratios(self.values, offer)} for offer in self.offers
            },
            "parity": dict(parity),
            "rows": dict(rows),
        }


def policy_summary(policies: Sequence[Policy]) -> Metrics:
    """The line of an offer's policies in manifest and console: those with the config's budget."""
    at_budget = {policy.policy: policy for policy in policies if policy.is_own_budget}
    dynamic, single = at_budget[DYNAMIC], at_budget[SINGLE]
    return {
        "alert_share": dynamic.contacts / max(dynamic.rows, 1),
        "contacts": dynamic.contacts,
        "precision": dynamic.precision,
        "profit_dynamic_threshold": dynamic.realised,
        "profit_low": dynamic.low,
        "profit_high": dynamic.high,
        "profit_at_model_values": dynamic.at_model_values,
        "profit_single_threshold": single.realised,
        "profit_probability_times_value": at_budget[TIMES_VALUE].realised,
        "ahead_of_single_threshold": single.ahead or 0.0,
        "ahead_low": single.ahead_low or 0.0,
        "ahead_high": single.ahead_high or 0.0,
    }


def _ratios(values: Sequence[ValueReliability], offer: str) -> dict[str, Any]:
    of_offer = next((value for value in values if value.offer == offer), None)
    ratios = {} if of_offer is None else {"total": of_offer.total, "alerted": of_offer.alerted}
    return {name: ratio.model_dump() for name, ratio in ratios.items() if ratio is not None}


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
    return TestMetrics(offers, spend, value_reliability(scorer)), scored


def _evaluate_offer(scorer: EvaluationScorer, offer: str) -> tuple[OfferMetrics, HoldoutRows]:
    split, rows, config = scorer.table.splits[offer], scorer.table.rows, scorer.config
    known, test = rows.take(split.evaluation.everything), rows.take(split.test)
    scored = scorer.test_rows(offer)
    terms, own_terms = config.economics.offer(offer), scored.terms(config.economics.offer(offer))
    has_time = scorer.table.plan is not None
    baseline = np.full(len(test), known.label(offer).mean())
    if has_time:
        baseline = recency_probability(known.recency_days, known.label(offer) > 0, test.recency_days)
    calibration = scorer.calibration_rows(offer)
    metrics = OfferMetrics(
        probability=probability_metrics(scored.label, scored.probability)
        | calibration_uncertainty(
            scored.label, scored.probability, test.group, resamples=config.evaluation.bootstrap, seed=scorer.seed
        ),
        alert_share_newest_block=float(_alerts(scorer, offer, calibration).mean()),
        policies=compare_policies(offer, terms, calibration, scored, threshold_min=config.economics.threshold_min),
        recency_alone=probability_metrics(scored.label, baseline) if has_time else None,
    )
    return metrics, HoldoutRows(
        customer=scored.customer,
        cutoff=test.cutoff,
        label=scored.label,
        probability=scored.probability,
        threshold=scorer.run(test.state)[f"{offer}_threshold"],
        value=scored.value,
        realised_value=scored.realised_value,
        value_correction=np.zeros(len(test)) if scored.stayers is None else scored.stayers.correction,
        contact_cost=np.broadcast_to(own_terms.contact_cost, len(test)).astype(np.float64),
        offer_cost=np.broadcast_to(own_terms.offer_cost, len(test)).astype(np.float64),
        recency_days=test.recency_days,
        baseline=baseline,
        random=np.full(len(test), np.nan),
    )


def _alerts(scorer: EvaluationScorer, offer: str, rows: ScoredRows) -> Bools:
    """Which rows are alerted at the price of the budget."""
    economics = scorer.config.economics
    price = scorer.figures[f"{offer}.budget_price"]
    at = threshold(rows.value, rows.terms(economics.offer(offer)), price, economics.threshold_min)
    return np.asarray(rows.probability >= at)
