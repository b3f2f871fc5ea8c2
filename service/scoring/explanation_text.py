"""Words for what moved a score: a reason code for programs and a sentence for people, from feature definitions alone.

``PURCHASE_RECENCY_HIGH``: "The last purchase was 41 days ago, a typical customer's 6 days ago: this raises the
probability of leaving by 12.3 percentage points."
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
"""Name, days, and the least rate per day that is told by it; a month is 30 days."""
MINUTE_S: Final = 60.0
LITTLE: Final = 0.005
LEAST_POINTS: Final = 0.1
ONE: Final = 1.0
HUNDRED: Final = 100.0
MUCH: Final = 1e9


@dataclass(frozen=True)
class Player:
    """Slots that count as one feature: what is kept of one event by one measure, over different spans.

    name: ``purchase_count``, or the name of an attribute; slots: their indexes; subject: what a sentence is about;
    measure: recency, tenure, count, amount, duration or attribute.
    """

    name: str
    subject: str
    measure: str
    slots: tuple[int, ...]


def players_of(features: Sequence[Feature]) -> list[Player]:
    """The features that an explanation tells apart, in the order of their first slots."""
    found: dict[tuple[str, str], list[int]] = {}
    for at, feature in enumerate(features):
        found.setdefault((feature.event or feature.name, _measure(feature)), []).append(at)
    return [
        Player(
            subject if measure == ATTRIBUTE else _identifier(f"{subject}_{measure}"),
            subject.replace("_", " "),
            measure,
            tuple(slots),
        )
        for (subject, measure), slots in found.items()
    ]


def say(offer: str, player: Player, amount: float, slots: Sequence[tuple[Feature, float, float]]) -> Contribution:
    """A contribution in words, which are about the first of the slots (definition, value as of now, typical value)."""
    values = [_slot_value(*slot) for slot in slots]
    code = f"{_identifier(player.name).upper()}_{_level(player.measure, *slots[0])}"
    moved = f"{'raises' if amount > 0 else 'lowers'} the probability of {OFFERS[offer]} by {_points(abs(amount))}"
    said = _said(player, slots[0][0], values[0])
    return Contribution(player.name, amount, code, f"{said[:1].upper()}{said[1:]}: this {moved}.", values)


def _measure(feature: Feature) -> str:
    return FIELDS[feature.field] if feature.field else MEASURES.get(feature.aggregate, ATTRIBUTE)


def _identifier(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower()


# --- values -----------------------------------------------------------------------------------------------------------


def _slot_value(feature: Feature, value: float, typical: float) -> SlotValue:
    measure = _measure(feature)
    mine, theirs = _number(feature, value), _number(feature, typical)
    if measure in ("recency", "tenure"):
        return SlotValue(feature.name, mine, theirs, "days", _ago(mine), _ago(theirs))
    if measure == ATTRIBUTE:
        texts = _attribute(feature, value), _attribute(feature, typical)
        return SlotValue(feature.name, mine, theirs, "", *texts)
    unit = "seconds per day" if measure == "duration" else "per day"
    return SlotValue(feature.name, mine, theirs, unit, *_rates(measure, mine or 0.0, theirs or 0.0))


def _number(feature: Feature, value: float) -> float | None:
    """A slot's value in its unit; None where there is none, or it is a category."""
    if feature.half_life_days is not None:
        return value * math.log(2) / feature.half_life_days  # the rate of which such a decayed sum is the limit
    if feature.categories is not None or not math.isfinite(value):
        return None
    return value if feature.aggregate == "attribute" else max(-value / DAY_S, 0.0)


def _level(measure: str, feature: Feature, value: float, typical: float) -> str:
    """How a value stands to the typical one."""
    mine, theirs = _number(feature, value), _number(feature, typical)
    if measure == ATTRIBUTE and math.isnan(value):
        return "UNKNOWN"
    if measure == ATTRIBUTE and math.isnan(typical):
        return "KNOWN"
    if feature.categories is not None:
        return "DIFFERS"
    if mine is None:
        return "NONE"
    never = math.inf if measure == "recency" else 0.0  # as the graph has it: long ago, or just begun
    return "HIGH" if mine > (never if theirs is None else theirs) else "LOW"


# --- words ------------------------------------------------------------------------------------------------------------


def _said(player: Player, feature: Feature, value: SlotValue) -> str:
    what, mine, theirs = player.subject, value.text, value.typical_text
    if player.measure in ("recency", "tenure"):
        return _said_of_time("last" if player.measure == "recency" else "first", what, value)
    if player.measure == ATTRIBUTE:
        return f"the value of {what} is {mine}, a typical customer's is {theirs}"
    whose = f"(half-life {feature.half_life_days:g} days), for a typical customer {theirs}"
    if player.measure == "count":
        rate, _, span = mine.rpartition(" a ")
        return f"lately there were {rate} {what} events a {span} {whose}"
    measured = "the amount of" if player.measure == "amount" else "the time spent in"
    return f"lately {measured} {what} events was {mine} {whose}"


def _said_of_time(which: str, what: str, value: SlotValue) -> str:
    if value.value is None:
        return f"no {what} is known, a typical customer's {which} one was {value.typical_text}"
    if value.typical is None:
        return f"the {which} {what} was {value.text}, of a typical customer none is known"
    return f"the {which} {what} was {value.text}, a typical customer's {value.typical_text}"


def _ago(days: float | None) -> str:
    if days is None:
        return "never"
    if days < ONE:
        return "less than a day ago"
    whole = round(days)
    return f"{whole:,} day{'' if whole == 1 else 's'} ago" if days < MUCH else "ages ago"


def _rates(measure: str, mine: float, theirs: float) -> tuple[str, str]:
    """Two rates per day by the same span, so that they can be compared: what is counted by the one that fits."""
    name, days, unit = "week", 7.0, ""
    if measure == "duration":
        mine, theirs, unit = mine / MINUTE_S, theirs / MINUTE_S, " minutes"
    elif measure == "count":
        most = max(abs(mine), abs(theirs))
        name, days, _ = next((span for span in SPANS if most >= span[2]), SPANS[-1])
    return f"{_figure(mine * days)}{unit} a {name}", f"{_figure(theirs * days)}{unit} a {name}"


def _attribute(feature: Feature, value: float) -> str:
    if math.isnan(value):
        return "not known"
    if feature.categories is None:
        return _figure(value)
    return f"'{feature.categories[int(value)]}'" if 0 <= value < len(feature.categories) else "another one"


def _points(share: float) -> str:
    points = share * HUNDRED
    return f"{points:.1f} percentage points" if points >= LEAST_POINTS else "less than 0.1 percentage points"


def _figure(number: float) -> str:
    """With as many digits as help."""
    size = abs(number)
    if not math.isfinite(number) or size >= MUCH:
        return f"{number:.3g}"
    if size >= HUNDRED:
        return f"{number:,.0f}"
    if size >= ONE or number == 0:
        return f"{number:.1f}".removesuffix(".0")
    return f"{number:.2g}" if size >= LITTLE else "almost 0"
