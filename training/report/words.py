"""What the report says in words: a headline per offer, and what the model is for and not for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.metrics import roc_auc_score

from feature_store.bundles.bundle import Manifest
from training.evaluation.paired_bootstrap import row_losses
from training.evidence import Evidence, Floats, Policy, Rung, TestRows, terms
from training.graph.thresholds import gain
from training.report import curves
from training.report.drawing import compact, plain

HONEST: Final = 0.05
"""Largest calibration error of probabilities that thresholds may rest on."""
FIGURES: Final = {
    "auc": "AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "base_rate": "base rate",
}
QUESTION: Final = {"churn": "will this customer leave?", "propensity": "will this customer buy?"}

INTENDED: Final = (
    "To decide which customers of this shop to contact now, each against a threshold of their own, and to rank them.",
    "For customers like those at the cut-offs: with events of the kinds that the features read.",
    "With the costs and rates below, or those that a call brings along.",
)
LIMITS: Final = (
    "Profit counts the outcome that came, the model's value of the customer and assumed rates.",
    "What a contact changes cannot be seen in data where nobody was contacted at random.",
    "Shops change: the figures are of the test window. Fit again when the newest cut-off is older than the horizon.",
    "Intervals resample customers, not seasons: they say nothing of a Christmas that is not in the test window.",
)
NOT_TESTED: Final = (
    "Fairness between groups of people; no attribute is checked for standing in for one.",
    "Other shops, markets or channels than those of the source.",
    "Decisions with legal or similarly grave effects on a person: it is not made for them.",
    "Effects of being contacted again and again.",
)


@dataclass(frozen=True)
class Headline:
    """An offer in one sentence. ``good`` is True, False, or None where it depends; figures by name as shown."""

    offer: str
    question: str
    good: bool | None
    verdict: str
    sentence: str
    figures: dict[str, str]


def headline(offer: str, manifest: Manifest, evidence: Evidence, rows: TestRows) -> Headline:
    """Is it good, in one sentence with figures. The figures are the manifest's."""
    metrics: dict[str, Any] = manifest.metrics.get(offer, {})
    figures = {label: f"{metrics[name]:.4f}" for name, label in FIGURES.items() if name in metrics}
    error = metrics.get("calibration_error", 0.0)
    better, against = _against_baseline(rows)
    paid = _profit(offer, manifest, rows)
    good, verdict = _verdict(evidence, error, better=better, paid=paid)
    auc = metrics.get("auc", roc_auc_score(rows.label, rows.probability))
    honesty = f"AUC {auc:.3f}{against}; probabilities are off by {100 * error:.1f} points on average; "
    sentence = honesty + _alerts(rows, evidence.policies, offer, paid)
    return Headline(offer, QUESTION[offer], good, verdict, sentence, figures)


def _alerts(rows: TestRows, policies: Sequence[Policy], offer: str, paid: float) -> str:
    """Who is alerted, and what that is worth."""
    alerts = rows.probability >= rows.threshold
    if not alerts.any():
        return "nobody is alerted."
    share = float(alerts.mean())
    return (
        f"alerts go to {share:.1%} of the customers, {rows.label[alerts].mean():.0%} of them rightly, "
        f"and are worth {compact(paid)} ({_ahead(policies, offer, share)})."
    )


def _verdict(evidence: Evidence, error: float, *, better: bool, paid: float) -> tuple[bool | None, str]:
    if any(finding.severity == "fatal" for finding in evidence.audit):
        return False, "Do not act on it: the audit found a fatal fault"
    if not better:
        return False, "Do not act on it: no better than the baseline beyond chance"
    if error > HONEST:
        return None, "It ranks well, but its probabilities are off, and thresholds rest on them"
    if paid <= 0:
        return None, "It predicts well, but at these costs acting does not pay"
    return True, "Good: better than the baseline, honest probabilities, and acting pays"


def _against_baseline(rows: TestRows) -> tuple[bool, str]:
    """Whether log loss is lower than the baseline's beyond chance, and how the baseline's AUC reads in a sentence."""
    with_recency = curves.has_baseline(rows)
    baseline: Floats = rows.baseline if with_recency else np.full(len(rows.label), rows.label.mean())
    difference = row_losses(rows.label, rows.probability) - row_losses(rows.label, baseline)
    mean, error = curves.clustered_mean(difference, rows.customer)
    told = f", recency alone {roc_auc_score(rows.label, baseline):.3f}" if with_recency else ", by chance 0.500"
    return mean + 1.96 * error < 0, told


def _profit(offer: str, manifest: Manifest, rows: TestRows) -> float:
    """Gain of the alerts with the outcomes that came."""
    realised = gain(rows.label.astype(np.float64), rows.value, terms(manifest, offer, rows))
    return float(realised[rows.probability >= rows.threshold].sum())


def _ahead(policies: Sequence[Policy], offer: str, share: float) -> str:
    """How the dynamic threshold compares with the strongest other policy, at the budget nearest to the alerts'."""
    others = [policy for policy in policies if policy.offer == offer and policy.ahead is not None]
    if not others:
        return "no other policy was compared"
    nearest = min((policy.budget_share for policy in others), key=lambda budget: abs(budget - share))
    rival = min((policy for policy in others if policy.budget_share == nearest), key=lambda policy: policy.ahead or 0.0)
    ahead, low, high = rival.ahead or 0.0, rival.ahead_low or 0.0, rival.ahead_high or 0.0
    surely = "more than" if low > 0 else "less than" if high < 0 else "not shown to differ from"
    by = "" if low <= 0 <= high else f"{compact(abs(ahead))} "
    return (
        f"{by}{surely} {plain(rival.policy)}, the strongest other policy, "
        f"at {nearest:.0%} contacts: {compact(ahead)}, 95% {compact(low)} to {compact(high)}"
    )


def saved(rungs: Sequence[Rung]) -> str:
    """What the chosen rung saves against the longest one; empty where there is none."""
    chosen = next((rung for rung in rungs if rung.chosen), None)
    if chosen is None:
        return ""
    most = max(rungs, key=lambda rung: len(rung.slots))
    told = (
        f"Chosen are {len(chosen.slots)} of {len(most.slots)} features: {chosen.state_bytes:,} bytes a customer, "
        f"{most.state_bytes - chosen.state_bytes:,} saved"
    )
    if chosen.graph_us is not None and most.graph_us is not None:
        told += f"; {chosen.graph_us:,.1f} µs to make them of a state, {most.graph_us - chosen.graph_us:,.1f} saved"
    return told + "."
