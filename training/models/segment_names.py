"""Names of segments in the words of a shop, from the position of their centres relative to all customers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from feature_store.state.layout import Floats
from training.models.segment_variables import MONTH_DAYS, Role, SegmentVariable

EVERYBODY: Final = "all customers"
FAR: Final = 0.5
"""Distance from the average, in standard deviations, that is mentioned in a name."""
BIG_BASKET: Final = 1.3
LONG_OVERDUE: Final = 3
"""Number of a customer's own usual intervals after which the customer counts as lapsed in any case."""
COMPARED: Final[Mapping[Role, tuple[str, str]]] = {
    "recency": ("seen lately", "away longer"),
    "tenure": ("known for less long", "known longer"),
    "frequency": ("less often", "more often"),
    "monetary": ("lower spend", "higher spend"),
}
"""Words for the lower and the higher of two segments that would have the same name otherwise."""


def name_segments(variables: Sequence[SegmentVariable], centres: Floats, means: Floats, overall: Floats) -> list[str]:
    """One name per segment, all different.

    Args:
        variables: The segmentation variables.
        centres: Standardised, ``[k, variables]``; 0 is the average customer.
        means: Means by segment ``[k, variables]``, in units that people use.
        overall: Means of all customers ``[variables]``, in the same units.
    """
    if len(centres) == 1:
        return [EVERYBODY]
    roles = {variable.role: at for at, variable in enumerate(variables)}
    behaves = any(role in roles for role in COMPARED)
    names = []
    for centre, mean in zip(centres, means, strict=True):
        if behaves:
            at = {role: float(centre[column]) for role, column in roles.items()}
            values = {role: float(mean[column]) for role, column in roles.items()}
            names.append(_habits(at, values) + _money(variables, at, mean / np.where(overall == 0, 1.0, overall)))
        else:
            names.append(_outstanding(variables, centre))
    return _numbered(_distinguished(names, variables, centres))


def _habits(at: Mapping[Role, float], values: Mapping[Role, float]) -> str:
    """Recency, tenure and frequency in words.

    Customers have lapsed if they are away longer than usual, both for all customers and for themselves.
    """
    recency, tenure, frequency = (at.get(role, 0.0) for role in ("recency", "tenure", "frequency"))
    lapsed = recency >= FAR
    if "frequency" in values and "recency" in values:
        intervals = values["recency"] * values["frequency"] / MONTH_DAYS
        lapsed = intervals >= (1 if lapsed else LONG_OVERDUE) and recency >= 0
    if tenure <= -2 * FAR:
        return "newcomers gone quiet" if lapsed else "new customers"
    if lapsed:
        return "lapsed regulars" if frequency >= 0 else "lapsed customers"
    if frequency >= FAR:
        return "frequent customers"
    return "occasional customers" if frequency < 0 else "regulars"


def _money(variables: Sequence[SegmentVariable], at: Mapping[Role, float], ratio: Floats) -> str:
    """Spend per purchase in words, or total spend if that is unknown; ``ratio``: mean over that of all customers."""
    place = {variable.role: i for i, variable in enumerate(variables)}
    if "monetary" not in place:
        return ""
    if "frequency" in place and variables[place["frequency"]].event == variables[place["monetary"]].event:
        basket = ratio[place["monetary"]] / max(ratio[place["frequency"]], 1e-9)
        return ", big baskets" if basket >= BIG_BASKET else ", small baskets" if basket <= 1 / BIG_BASKET else ""
    return ", big spenders" if at["monetary"] >= FAR else ", small spenders" if at["monetary"] <= -FAR else ""


def _outstanding(variables: Sequence[SegmentVariable], centre: Floats) -> str:
    """The two variables in which a segment is farthest from the average (a value being known does not count)."""
    notable = [
        i
        for i, variable in enumerate(variables)
        if abs(centre[i]) >= FAR and (variable.role != "missing" or centre[i] > 0)
    ]
    far = sorted(sorted(notable, key=lambda i: -abs(centre[i]))[:2])
    return ", ".join(_compared(variables[i])[int(centre[i] > 0)] for i in sorted(far)) or "average customers"


def _compared(variable: SegmentVariable) -> tuple[str, str]:
    if variable.role == "missing":
        return f"{variable.label} known", f"{variable.label} not known"
    return COMPARED.get(variable.role, (f"low {variable.label}", f"high {variable.label}"))


def _distinguished(names: Sequence[str], variables: Sequence[SegmentVariable], centres: Floats) -> list[str]:
    """Add to equal names words for the variable in which the segments differ most and that is not mentioned yet."""
    distinct = list(names)
    for name in [name for name, times in Counter(names).items() if times > 1]:
        alike = [i for i, other in enumerate(names) if other == name]
        unused = [i for i, variable in enumerate(variables) if not set(_compared(variable)) & set(name.split(", "))]
        variable = max(unused or range(len(variables)), key=lambda i: np.ptp(centres[alike, i]))
        alike.sort(key=lambda i: float(centres[i, variable]))
        low, high = _compared(variables[variable])
        distinct[alike[0]], distinct[alike[-1]] = f"{name}, {low}", f"{name}, {high}"
    return distinct


def _numbered(names: Sequence[str]) -> list[str]:
    """Append numbers to names that are still the same."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered
