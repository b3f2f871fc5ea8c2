"""Describes contributions in words: a reason code for programs and a sentence for people.

Both follow from the definitions of the features. For example ``PURCHASE_RECENCY_HIGH``: "The last purchase was 41 days
ago, a typical customer's 6 days ago: this raises the probability of leaving by 12.3 percentage points."
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from feature_store.definitions import Feature
from feature_store.state.layout import DAY_S
from tidemark.explanation import Contribution, SlotValue

MEASURES: Final = {"latest": "recency", "earliest": "tenure", "count": "count"}
FIELDS: Final = {"amount": "amount", "duration_s": "duration"}
ATTRIBUTE: Final = "attribute"
OFFERS: Final = {"churn": "leaving", "propensity": "buying"}
SPANS: Final = (("day", 1.0, 1.0), ("week", 7.0, 1 / 7), ("month", 30.0, 0.0))
"""Name and days of a span, and the minimum rate per day that is stated in it. A month has 30 days."""
MINUTE_S: Final = 60.0
MIN_FIGURE: Final = 0.005
"""A smaller figure is written as "almost 0"."""
MIN_POINTS: Final = 0.1
"""A smaller number of percentage points is written as "less than"."""
MIN_WHOLE: Final = 100.0
"""Figures from here on are written without decimals."""
MAX_FIGURE: Final = 1e9
"""Figures from here on are written with an exponent, and as many days as "ages ago"."""


@dataclass(frozen=True)
class Player:
    """Slots that count as one feature: one measure of one event, over different spans.

    Attributes:
        name: ``purchase_count``, or the name of an attribute.
        subject: The subject of a sentence about it.
        measure: recency, tenure, count, amount, duration or attribute.
        slots: The indexes of the slots.
    """

    name: str
    subject: str
    measure: str
    slots: tuple[int, ...]


def players_of(features: Sequence[Feature]) -> list[Player]:
    """The players of a list of features, in the order of their first slots."""
    slots_of: dict[tuple[str, str], list[int]] = {}
    for at, feature in enumerate(features):
        slots_of.setdefault((feature.event or feature.name, _measure(feature)), []).append(at)
    return [
        Player(
            subject if measure == ATTRIBUTE else _identifier(f"{subject}_{measure}"),
            subject.replace("_", " "),
            measure,
            tuple(slots),
        )
        for (subject, measure), slots in slots_of.items()
    ]


def contribution_of(
    offer: str, player: Player, amount: float, slots: Sequence[tuple[Feature, float, float]]
) -> Contribution:
    """A contribution with its reason code and its sentence, which describe the first slot.

    Args:
        offer: The offer whose probability is explained.
        player: The player that contributes.
        amount: The contribution in points of probability; negative if it lowers the probability.
        slots: Definition, value as of now and typical value of each of the player's slots.
    """
    values = [_slot_value(*slot) for slot in slots]
    code = f"{_identifier(player.name).upper()}_{_level(player.measure, *slots[0])}"
    moved = f"{'raises' if amount > 0 else 'lowers'} the probability of {OFFERS[offer]} by {_points(abs(amount))}"
    fact = _fact(player, slots[0][0], values[0])
    return Contribution(player.name, amount, code, f"{fact[:1].upper()}{fact[1:]}: this {moved}.", values)


def _measure(feature: Feature) -> str:
    return FIELDS[feature.field] if feature.field else MEASURES.get(feature.aggregate, ATTRIBUTE)


def _identifier(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower()


# --- values -----------------------------------------------------------------------------------------------------------


def _slot_value(feature: Feature, value: float, typical: float) -> SlotValue:
    measure = _measure(feature)
    number, typical_number = _number(feature, value), _number(feature, typical)
    if measure in ("recency", "tenure"):
        return SlotValue(feature.name, number, typical_number, "days", _ago(number), _ago(typical_number))
    if measure == ATTRIBUTE:
        texts = _attribute(feature, value), _attribute(feature, typical)
        return SlotValue(feature.name, number, typical_number, "", *texts)
    unit = "seconds per day" if measure == "duration" else "per day"
    rates = _rates(measure, number or 0.0, typical_number or 0.0)
    return SlotValue(feature.name, number, typical_number, unit, *rates)


def _number(feature: Feature, value: float) -> float | None:
    """A slot's value in its unit; None if it has none or is a category."""
    if feature.half_life_days is not None:
        return value * math.log(2) / feature.half_life_days  # a constant rate has this decayed sum as its limit
    if feature.categories is not None or not math.isfinite(value):
        return None
    return value if feature.aggregate == "attribute" else max(-value / DAY_S, 0.0)


def _level(measure: str, feature: Feature, value: float, typical: float) -> str:
    """How a value compares with the typical one."""
    number, typical_number = _number(feature, value), _number(feature, typical)
    if measure == ATTRIBUTE and math.isnan(value):
        return "UNKNOWN"
    if measure == ATTRIBUTE and math.isnan(typical):
        return "KNOWN"
    if feature.categories is not None:
        return "DIFFERS"
    if number is None:
        return "NONE"
    never = math.inf if measure == "recency" else 0.0  # as the model sees it: infinitely long ago, or just started
    return "HIGH" if number > (never if typical_number is None else typical_number) else "LOW"


# --- words ------------------------------------------------------------------------------------------------------------


def _fact(player: Player, feature: Feature, value: SlotValue) -> str:
    subject, text, typical = player.subject, value.text, value.typical_text
    if player.measure in ("recency", "tenure"):
        return _time_fact("last" if player.measure == "recency" else "first", subject, value)
    if player.measure == ATTRIBUTE:
        return f"the value of {subject} is {text}, a typical customer's is {typical}"
    comparison = f"(half-life {feature.half_life_days:g} days), for a typical customer {typical}"
    if player.measure == "count":
        rate, _, span = text.rpartition(" a ")
        return f"lately there were {rate} {subject} events a {span} {comparison}"
    measured = "the amount of" if player.measure == "amount" else "the time spent in"
    return f"lately {measured} {subject} events was {text} {comparison}"


def _time_fact(which: str, subject: str, value: SlotValue) -> str:
    if value.value is None:
        return f"no {subject} is known, a typical customer's {which} one was {value.typical_text}"
    if value.typical is None:
        return f"the {which} {subject} was {value.text}, of a typical customer none is known"
    return f"the {which} {subject} was {value.text}, a typical customer's {value.typical_text}"


def _ago(days: float | None) -> str:
    if days is None:
        return "never"
    if days < 1:
        return "less than a day ago"
    whole = round(days)
    return f"{whole:,} day{'' if whole == 1 else 's'} ago" if days < MAX_FIGURE else "ages ago"


def _rates(measure: str, value: float, typical: float) -> tuple[str, str]:
    """Two rates per day, both in the span that suits the larger one, so that they can be compared."""
    name, days, unit = "week", 7.0, ""
    if measure == "duration":
        value, typical, unit = value / MINUTE_S, typical / MINUTE_S, " minutes"
    elif measure == "count":
        largest = max(abs(value), abs(typical))
        name, days, _ = next((span for span in SPANS if largest >= span[2]), SPANS[-1])
    return f"{_figure(value * days)}{unit} a {name}", f"{_figure(typical * days)}{unit} a {name}"


def _attribute(feature: Feature, value: float) -> str:
    if math.isnan(value):
        return "not known"
    if feature.categories is None:
        return _figure(value)
    return f"'{feature.categories[int(value)]}'" if 0 <= value < len(feature.categories) else "another one"


def _points(share: float) -> str:
    points = share * 100
    return f"{points:.1f} percentage points" if points >= MIN_POINTS else "less than 0.1 percentage points"


def _figure(number: float) -> str:
    """A number with the digits that matter."""
    size = abs(number)
    if not math.isfinite(number) or size >= MAX_FIGURE:
        return f"{number:.3g}"
    if size >= MIN_WHOLE:
        return f"{number:,.0f}"
    if size >= 1 or number == 0:
        return f"{number:.1f}".removesuffix(".0")
    return f"{number:.2g}" if size >= MIN_FIGURE else "almost 0"
