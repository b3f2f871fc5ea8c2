"""Names of segments in a shop's words, from where their centres lie among all customers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.models.segment_variables import MONTH_DAYS, Role, Trait

EVERYBODY: Final = "all customers"
FAR: Final = 0.5
"""Standard deviations from the average that are worth a word."""
BIG_BASKET: Final = 1.3
LONG_OVERDUE: Final = 3
"""Intervals of their own after which customers have lapsed, though others are away as long."""
COMPARED: Final[Mapping[Role, tuple[str, str]]] = {
    "recency": ("seen lately", "away longer"),
    "tenure": ("known for less long", "known longer"),
    "frequency": ("less often", "more often"),
    "monetary": ("lower spend", "higher spend"),
}
"""How two segments of the same name are told apart: by the words for the lower and the higher."""


def name_segments(traits: Sequence[Trait], centres: Floats, means: Floats, overall: Floats) -> list[str]:
    """One name per segment, all different.

    centres [k, traits]: standardised, 0 is the average customer; means [k, traits] and overall [traits]: as told.
    """
    if len(centres) == 1:
        return [EVERYBODY]
    roles = {trait.role: at for at, trait in enumerate(traits)}
    behaves = any(role in roles for role in COMPARED)
    names = []
    for centre, mean in zip(centres, means, strict=True):
        if behaves:
            at = {role: float(centre[column]) for role, column in roles.items()}
            told = {role: float(mean[column]) for role, column in roles.items()}
            names.append(_habits(at, told) + _money(traits, at, mean / np.where(overall == 0, 1.0, overall)))
        else:
            names.append(_outstanding(traits, centre))
    return _numbered(_told_apart(names, traits, centres))


def _habits(at: Mapping[Role, float], told: Mapping[Role, float]) -> str:
    """How they come and when: somebody has lapsed who is away for longer than usual, for all and for themselves."""
    recency, tenure, frequency = (at.get(role, 0.0) for role in ("recency", "tenure", "frequency"))
    lapsed = recency >= FAR
    if "frequency" in told and "recency" in told:
        intervals = told["recency"] * told["frequency"] / MONTH_DAYS
        lapsed = intervals >= (1 if lapsed else LONG_OVERDUE) and recency >= 0
    if tenure <= -2 * FAR:
        return "newcomers gone quiet" if lapsed else "new customers"
    if lapsed:
        return "lapsed regulars" if frequency >= 0 else "lapsed customers"
    if frequency >= FAR:
        return "frequent customers"
    return "occasional customers" if frequency < 0 else "regulars"


def _money(traits: Sequence[Trait], at: Mapping[Role, float], ratio: Floats) -> str:
    """What they spend at a time or, where that cannot be told, in all; ``ratio``: mean over that of all customers."""
    place = {trait.role: i for i, trait in enumerate(traits)}
    if "monetary" not in place:
        return ""
    if "frequency" in place and traits[place["frequency"]].event == traits[place["monetary"]].event:
        basket = ratio[place["monetary"]] / max(ratio[place["frequency"]], 1e-9)
        return ", big baskets" if basket >= BIG_BASKET else ", small baskets" if basket <= 1 / BIG_BASKET else ""
    return ", big spenders" if at["monetary"] >= FAR else ", small spenders" if at["monetary"] <= -FAR else ""


def _outstanding(traits: Sequence[Trait], centre: Floats) -> str:
    """The two traits in which a segment is farthest from the average; that a value is known is none."""
    worth = [
        i for i, trait in enumerate(traits) if abs(centre[i]) >= FAR and (trait.role != "missing" or centre[i] > 0)
    ]
    far = sorted(sorted(worth, key=lambda i: -abs(centre[i]))[:2])
    return ", ".join(_compared(traits[i])[int(centre[i] > 0)] for i in sorted(far)) or "average customers"


def _compared(trait: Trait) -> tuple[str, str]:
    if trait.role == "missing":
        return f"{trait.label} known", f"{trait.label} not known"
    return COMPARED.get(trait.role, (f"low {trait.label}", f"high {trait.label}"))


def _told_apart(names: Sequence[str], traits: Sequence[Trait], centres: Floats) -> list[str]:
    """Two segments of the same name get words for the trait in which they differ most and that is not said yet."""
    found = list(names)
    for name in [name for name, times in Counter(names).items() if times > 1]:
        alike = [i for i, other in enumerate(names) if other == name]
        silent = [i for i, trait in enumerate(traits) if not set(_compared(trait)) & set(name.split(", "))]
        trait = max(silent or range(len(traits)), key=lambda i: np.ptp(centres[alike, i]))
        alike.sort(key=lambda i: float(centres[i, trait]))
        low, high = _compared(traits[trait])
        found[alike[0]], found[alike[-1]] = f"{name}, {low}", f"{name}, {high}"
    return found


def _numbered(names: Sequence[str]) -> list[str]:
    """Numbers behind names that are still the same."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
