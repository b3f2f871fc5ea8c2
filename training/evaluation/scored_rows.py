"""Scored rows: what a policy may know of customers, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import Manifest
from feature_store.state.layout import Floats
from training.arrays import Bools
from training.config import Offer, TrainingConfig
from training.data.dataset import Rows
from training.evaluation.stayers import Stayers
from training.evidence import HoldoutRows
from training.graph.thresholds import CustomerOffer, Terms, gain


@dataclass(frozen=True)
class ScoredRows:
    """Scored rows of a block, each array ``[n]``.

    Attributes:
        customer: Hash of the id, uint64.
        probability: Calibrated.
        value: The model's value if the offer wins.
        realised_value: The value of a win that came, or an estimate that the model did not make: see
            :func:`realised_value`. Policies may not use it; they are paid with it.
        label: The observed outcome.
        recency: Days since the last purchase, NaN if unknown, None for a snapshot.
        frequency: Number of purchases, NaN if unknown, None for a snapshot.
        monetary: Spend, NaN if unknown, None for a snapshot.
        contact_cost: Per customer; None if the offer's applies to all.
        offer_cost: Per customer; None if the offer's applies to all.
        stayers: What the customers who stayed say about the values of those who left, None if nothing.
    """

    customer: npt.NDArray[np.uint64]
    probability: Floats
    value: Floats
    realised_value: Floats
    label: Bools
    recency: Floats | None = None
    frequency: Floats | None = None
    monetary: Floats | None = None
    contact_cost: Floats | None = None
    offer_cost: Floats | None = None
    stayers: Stayers | None = None

    def terms(self, offer: Offer) -> Terms:
        """The offer, with the costs per customer if there are any."""
        if self.contact_cost is None and self.offer_cost is None:
            return offer
        n = len(self.probability)
        contact = np.full(n, offer.contact_cost) if self.contact_cost is None else self.contact_cost
        cost = np.full(n, offer.offer_cost) if self.offer_cost is None else self.offer_cost
        return CustomerOffer(contact, cost, offer.success_rate, offer.redemption_rate, offer.budget_share)

    def profit(self, offer: Offer) -> Floats:
        """Realised profit of contacting each row ``[n]``: the observed outcome, paid with the realised value."""
        paid = gain(self.label.astype(np.float64), self.realised_value, self.terms(offer))
        return paid if self.stayers is None else paid + offer.success_rate * self.stayers.correction

    def contributions(self, weight: Floats, offer: Offer) -> Floats:
        """Contribution of each row to the realised profit of each policy, for the errors of the profits.

        The sum of a column is the policy's profit. Apart from the profit of contacting it, a row contributes what it
        adds to the errors of the correction by customers who stayed, so that intervals include these errors.

        Args:
            weight: Probability with which each policy contacts each row ``[n, policies]``.
            offer: Costs and rates.

        Returns:
            ``[n, policies]``.
        """
        contribution = weight * self.profit(offer)[:, np.newaxis]
        if self.stayers is None:
            return np.asarray(contribution)
        return np.asarray(contribution + offer.success_rate * self.stayers.sampling_error(weight))

    def profit_at_model_values(self, offer: Offer) -> Floats:
        """The same, paid with the model's value of each customer."""
        return gain(self.label.astype(np.float64), self.value, self.terms(offer))

    def expected_profit(self, offer: Offer) -> Floats:
        """Profit of contacting each row ``[n]`` as the model expects it."""
        return gain(self.probability, self.value, self.terms(offer))


def realised_value(config: TrainingConfig, rows: Rows, offer: str) -> Floats:
    """The value ``[n]`` of winning each customer, as observed or by an estimate that the model did not make.

    - propensity: margin times the amount of a purchase that the customer made; 0 without one, which is not paid for.
    - churn: margin times :func:`own_spend`. What a customer who left would have spent cannot be observed, so
      :mod:`training.evaluation.stayers` corrects it by what others brought who stayed.
    - churn in a snapshot, which has no history: margin times the mean spend of the customers who stayed.
    - ``economics.value``, where the config has it.
    """
    if config.economics.value is not None:
        spend = np.full(len(rows), config.economics.value)
    elif offer == "propensity":
        spend = np.nan_to_num(rows.purchase_amount, nan=0.0)
    elif config.snapshot is not None:
        known = rows.stay_spend[np.isfinite(rows.stay_spend)]
        spend = np.full(len(rows), known.mean() if len(known) else 0.0)
    else:
        spend = own_spend(rows, config.churn.horizon_days, config.economics.horizon_days)
    return np.asarray(config.economics.margin * spend)


def own_spend(rows: Rows, label_days: float, value_days: float) -> Floats:
    """Spend ``[n]`` over the value horizon if the customer stays, by the history before the cut-off alone.

    The history is cut into spans of one label horizon. For the first label horizon it counts the mean spend of the
    spans in which the customer had a churn event, which are those in which the customer "stayed"; for the rest of the
    value horizon the customer's mean spend per day.
    """
    spent = np.maximum(rows.monetary, 0.0)
    staying = spent / np.maximum(rows.kept_windows, 1.0) * min(value_days / label_days, 1.0)
    per_day = spent / np.maximum(rows.tenure_days, label_days)
    return np.asarray(staying + per_day * max(value_days - label_days, 0.0))


def terms_in(manifest: Manifest, offer: str, rows: HoldoutRows) -> CustomerOffer:
    """The offer to the customers of test rows, with the rates of a manifest."""
    success, redemption = (manifest.economics[f"{offer}.{rate}"] for rate in ("success_rate", "redemption_rate"))
    return CustomerOffer(rows.contact_cost, rows.offer_cost, success, redemption, budget_share=1.0)
