"""The texts of the report: a headline per offer, intended use, limits, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.metrics import roc_auc_score

from feature_store.bundles.bundle import Manifest
from feature_store.state.layout import Floats
from training.evaluation.policies import DOES_NOT_PAY, NOT_SHOWN, PAYS, verdict
from training.evidence import Evidence, FeatureSubset, HoldoutRows, Policy
from training.report import curves
from training.report.drawing import compact, plain
from training.statistics import clustered_standard_error, log_losses

MAX_CALIBRATION_ERROR: Final = 0.05
"""Maximum calibration error at which thresholds can be trusted."""
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
    "To decide which customers of this shop to contact now, each with an individual threshold, and to rank them.",
    "For customers like those in the training data, with events of the types that the features use.",
    "With the costs and rates below, or those given in a call.",
)
LIMITS: Final = (
    "Profit is computed from observed outcomes, assumed rates and realised spend (churn: that of comparable stayers).",
    "A customer whom an offer wins is assumed to spend like a similar one who stays, or buys, without an offer.",
    "The effect of contacting a customer cannot be measured unless contacts were randomised.",
    "Shops change: the figures are for the test period. Train again once the newest cut-off is older than the horizon.",
    "Intervals cover the choice of customers, not of weeks or seasons: what all customers share is not in them.",
)
NOT_TESTED: Final = (
    "Fairness between groups of people; attributes are not checked for being proxies of protected ones.",
    "Other shops, markets or channels than those of the source.",
    "Decisions with legal or similarly serious effects on a person: the model is not intended for them.",
    "Effects of contacting the same customer repeatedly.",
)


@dataclass(frozen=True)
class Headline:
    """The headline of an offer: ``good`` is True, False, or None if it depends; ``figures`` are shown by name."""

    offer: str
    question: str
    good: bool | None
    verdict: str
    sentence: str
    figures: dict[str, str]


def headline(offer: str, manifest: Manifest, evidence: Evidence, rows: HoldoutRows) -> Headline:
    """The headline of an offer: a verdict, and one sentence with figures from the manifest."""
    metrics: dict[str, Any] = manifest.metrics.get(offer, {})
    figures = {label: f"{metrics[name]:.4f}" for name, label in FIGURES.items() if name in metrics}
    error = metrics.get("calibration_error", 0.0)
    better, against = _against_baseline(rows)
    policy = metrics.get("policy", {})
    low, high = policy.get("profit_low", 0.0), policy.get("profit_high", 0.0)
    good, in_words = _verdict(evidence, offer, error, better=better, paying=verdict(low, high))
    auc = metrics.get("auc", roc_auc_score(rows.label, rows.probability))
    quality = f"AUC {auc:.3f}{against}; probabilities are off by {100 * error:.1f} points on average; "
    sentence = quality + _alerts(policy, evidence.policies, offer)
    return Headline(offer, QUESTION[offer], good, in_words, sentence, figures)


def _alerts(policy: Mapping[str, float], policies: Sequence[Policy], offer: str) -> str:
    """The share of customers alerted, the precision of the alerts, and their profit."""
    if not policy.get("contacts"):
        return "nobody is alerted."
    share = policy["alert_share"]
    return (
        f"{share:.1%} of the customers are alerted, {policy['precision']:.0%} of them correctly; "
        f"the alerts earn {compact(policy['profit_dynamic_threshold'])}, 95% {compact(policy['profit_low'])} to "
        f"{compact(policy['profit_high'])} ({_ahead(policies, offer)})."
    )


def _verdict(evidence: Evidence, offer: str, error: float, *, better: bool, paying: str) -> tuple[bool | None, str]:
    if any(finding.severity == "fatal" for finding in evidence.audit):
        return False, "Do not act on it: the audit found a fatal fault"
    if not better:
        return False, "Do not act on it: it is no better than the baseline beyond chance"
    if any(control.offer == offer and not control.passed for control in evidence.controls):
        return None, "Its profits cannot be trusted: the negative control failed"
    if error > MAX_CALIBRATION_ERROR:
        return None, "It ranks well, but its probabilities are off, and the thresholds depend on them"
    return {
        PAYS: (True, "Good: better than the baseline, well calibrated, and acting pays"),
        NOT_SHOWN: (None, "It predicts well, but it is not shown that acting pays at these costs"),
        DOES_NOT_PAY: (None, "It predicts well, but at these costs acting does not pay"),
    }[paying]


def _against_baseline(rows: HoldoutRows) -> tuple[bool, str]:
    """Whether log loss is significantly lower than the baseline's, and the baseline's AUC as part of a sentence."""
    with_recency = curves.has_baseline(rows)
    baseline: Floats = rows.baseline if with_recency else np.full(len(rows.label), rows.label.mean())
    difference = log_losses(rows.label, rows.probability) - log_losses(rows.label, baseline)
    cluster = np.unique(rows.customer, return_inverse=True)[1]
    mean, error = float(difference.mean()), clustered_standard_error(difference, cluster)
    text = f", recency alone {roc_auc_score(rows.label, baseline):.3f}" if with_recency else ", chance is 0.500"
    return mean + 1.96 * error < 0, text


def _ahead(policies: Sequence[Policy], offer: str) -> str:
    """Comparison with the strongest other policy, at the config's budget."""
    others = [p for p in policies if p.offer == offer and p.is_own_budget and p.ahead is not None]
    if not others:
        return "no other policy was compared"
    rival = min(others, key=lambda policy: policy.ahead or 0.0)
    ahead, low, high = rival.ahead or 0.0, rival.ahead_low or 0.0, rival.ahead_high or 0.0
    relation = "more than" if low > 0 else "less than" if high < 0 else "not shown to differ from"
    by = "" if low <= 0 <= high else f"{compact(abs(ahead))} "
    return (
        f"{by}{relation} {plain(rival.policy)}, the strongest other policy, "
        f"within the budget of {rival.budget_share:.0%}: {compact(ahead)}, 95% {compact(low)} to {compact(high)}"
    )


def saved(subsets: Sequence[FeatureSubset]) -> str:
    """What the chosen feature subset saves compared with all features; empty if none was chosen."""
    chosen = next((subset for subset in subsets if subset.chosen), None)
    if chosen is None:
        return ""
    full = max(subsets, key=lambda subset: len(subset.slots))
    text = (
        f"{len(chosen.slots)} of {len(full.slots)} features were chosen: {chosen.state_bytes:,} bytes per customer, "
        f"{full.state_bytes - chosen.state_bytes:,} less than with all"
    )
    if chosen.graph_us is not None and full.graph_us is not None:
        text += f"; {chosen.graph_us:,.1f} µs to compute them, {full.graph_us - chosen.graph_us:,.1f} µs less"
    return text + "."
