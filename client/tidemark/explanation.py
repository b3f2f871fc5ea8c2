"""Explanations of a probability and a threshold: plain data that the server computes and the client returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SlotValue(NamedTuple):
    """The current value of one slot of the customer's state, beside that of the typical customer.

    Attributes:
        slot: Name of the slot, which is a feature of the bundle.
        value: The customer's value; None if the event never happened, or if the value is unknown or text.
        typical: The typical customer's value; None in the same cases.
        unit: ``days`` (ago), ``per day``, ``seconds per day``, or empty for a plain number.
        text: The customer's value in words.
        typical_text: The typical customer's value in words.
    """

    slot: str
    value: float | None
    typical: float | None
    unit: str
    text: str
    typical_text: str


@dataclass(frozen=True)
class Contribution:
    """The contribution of one feature to a probability.

    Attributes:
        feature: Name of the feature.
        contribution: Change of the probability, -1 to 1 (0.05 is 5 percentage points).
        reason_code: Code for programs, such as ``PURCHASE_RECENCY_HIGH``.
        sentence: The same as an English sentence.
        slots: Slots that make up the feature; the one that the sentence is about comes first.
    """

    feature: str
    contribution: float
    reason_code: str
    sentence: str
    slots: Sequence[SlotValue]


class ThresholdExplanation(NamedTuple):
    """What the threshold of a customer is made of, in the currency of the shop's data.

    Acting pays if ``probability * gain_if_intended - (1 - probability) * cost_if_other`` is at least ``budget_price``.

    Attributes:
        value_if_won: Value of winning the customer.
        margin: Share of spend that is profit; None if the call gave the value.
        spend_if_won: Spend that a win brings; None if the call gave the value.
        contact_cost: Cost of contacting the customer; None if the model takes it from the customer's data.
        offer_cost: Cost of the offer when it is redeemed; None in the same case.
        success_rate: Share of the intended customers that the offer wins, 0 to 1.
        redemption_rate: Share of the other customers that redeem the offer anyway, 0 to 1.
        budget_price: Minimum gain per contact that is worth acting for.
        gain_if_intended: Expected gain of contacting a customer for whom the offer is intended; None without a cost.
        cost_if_other: Expected cost of contacting another customer; None without a cost.
        sentence: The same as an English sentence.
    """

    value_if_won: float
    margin: float | None
    spend_if_won: float | None
    contact_cost: float | None
    offer_cost: float | None
    success_rate: float
    redemption_rate: float
    budget_price: float
    gain_if_intended: float | None
    cost_if_other: float | None
    sentence: str


@dataclass(frozen=True)
class Explanation:
    """Why a probability is what it is, the baseline plus all contributions, and why the threshold is what it is.

    Attributes:
        baseline_probability: Probability of the typical customer, 0 to 1.
        contributions: The largest contributions, by absolute value, largest first.
        other_contribution: Sum of the contributions of all other features.
        exact: Whether every order of features was evaluated, rather than a sample of orders.
        threshold: What the threshold is made of.
    """

    baseline_probability: float
    contributions: Sequence[Contribution]
    other_contribution: float
    exact: bool
    threshold: ThresholdExplanation | None = None
