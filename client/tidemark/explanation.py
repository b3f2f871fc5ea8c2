"""What an explanation is made of: the same for the server, which finds it, and the client, which is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class SlotValue(NamedTuple):
    """A value of the customer's state as of now, and the typical customer's; None where there is none or it is text.

    unit: days (ago), per day, seconds per day, or empty for a number as it is; text: the same to be read.
    """

    slot: str
    value: float | None
    typical: float | None
    unit: str
    text: str
    typical_text: str


@dataclass(frozen=True)
class Contribution:
    """What a feature adds to a probability, in points of it (0.05 is 5 of 100), or takes from it where negative.

    reason_code: for programs, such as PURCHASE_RECENCY_HIGH; sentence: for people; slots: the feature's values, first
    the one that the sentence tells.
    """

    feature: str
    contribution: float
    reason_code: str
    sentence: str
    slots: Sequence[SlotValue]


@dataclass(frozen=True)
class Explanation:
    """Why a probability is what it is: baseline_probability, which is a typical customer's, plus all contributions.

    contributions: the largest ones; other_contribution: all others together; exact: no order of features was left out.
    """

    baseline_probability: float
    contributions: Sequence[Contribution]
    other_contribution: float
    exact: bool
