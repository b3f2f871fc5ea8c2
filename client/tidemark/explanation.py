"""Explanations of a probability: plain data that the server computes and the client returns."""

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


@dataclass(frozen=True)
class Explanation:
    """Why a probability is what it is: the baseline plus all contributions.

    Attributes:
        baseline_probability: Probability of the typical customer, 0 to 1.
        contributions: The largest contributions, by absolute value, largest first.
        other_contribution: Sum of the contributions of all other features.
        exact: Whether every order of features was evaluated, rather than a sample of orders.
    """

    baseline_probability: float
    contributions: Sequence[Contribution]
    other_contribution: float
    exact: bool
