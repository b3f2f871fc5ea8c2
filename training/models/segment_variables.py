"""Segmentation variables: a few of the model's features, with labels and units for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from feature_store.definitions import Aggregate, Feature
from feature_store.state.layout import Floats
from training.arrays import Features
from training.graph.features import FeatureSpec

Role = Literal["recency", "tenure", "frequency", "monetary", "attribute", "missing"]

MONTH_DAYS: Final = 30
MAX_ATTRIBUTES: Final = 6
MIN_SHARE: Final = 0.05
"""Minimum share of customers with a value other than the most frequent one; fewer would become a segment of their
own."""
SAME: Final = 0.9
"""Correlation above which two columns are redundant and only one is used."""


@dataclass(frozen=True)
class SegmentVariable:
    """A column of the features that segments are made of.

    Attributes:
        role: What it measures.
        label: Its name for people, with the unit.
        column: Index among the features.
        event: Event type of the slot, if any.
        logged: Whether the column holds signed logarithms.
        unit: Factor from the slot's number to the unit of the label.
        flag: Index of the column that says that the value is missing, if any.
    """

    role: Role
    label: str
    column: int
    event: str | None = None
    logged: bool = True
    unit: float = 1.0
    flag: int | None = None

    def values(self, features: Features) -> Floats:
        """The values ``[n]`` in the unit of the label, NaN where missing."""
        values = features[:, self.column].astype(np.float64)
        if self.logged:
            values = np.sign(values) * np.expm1(np.abs(values))
        if self.flag is not None:
            values = np.where(features[:, self.flag] > 0, np.nan, values)
        return values * self.unit


def behaviour(spec: FeatureSpec, event: str) -> list[SegmentVariable]:
    """Variables of recency, tenure, frequency and monetary value, as far as the features have them.

    Features of ``event`` are preferred. Frequency and monetary value come from the sums with the longest half-life,
    converted to a monthly rate.
    """
    roles: list[tuple[Role, Aggregate, str]] = [
        ("recency", "latest", "days since the latest {}"),
        ("tenure", "earliest", "days since the first {}"),
        ("frequency", "count", "{}s a month"),
        ("monetary", "sum", "spend a month"),
    ]
    variables = []
    for role, aggregate, label in roles:
        slots = [f for f in spec.layout.features if f.aggregate == aggregate and f.field in (None, "amount")]
        slots = [slot for slot in slots if _column(spec, slot.name) is not None]
        if slots:
            best = max(slots, key=lambda slot: (slot.event == event, slot.half_life_days or 0.0))
            variables.append(_variable(spec, best, role, label.format((best.event or "").replace("_", " "))))
    return variables


def attributes(spec: FeatureSpec, features: Features, guides: Sequence[Floats]) -> list[SegmentVariable]:
    """Variables of numeric attributes and of whether they are missing, at most MAX_ATTRIBUTES.

    Those with the highest correlation with one of the ``guides`` (each ``[n]``) are chosen. Categories are not used,
    because their codes have no order.
    """
    slots = [f for f in spec.layout.features if f.aggregate == "attribute" and f.categories is None]
    candidates = [
        _variable(spec, slot, "attribute", _words(slot.name)) for slot in slots if _column(spec, slot.name) is not None
    ]
    flags = [slot.flag for slot in candidates if slot.flag is not None]
    candidates += [SegmentVariable("missing", _words(spec.names[at][8:-1]), at, logged=False) for at in flags]
    candidates = [variable for variable in candidates if _varies(features[:, variable.column])]
    if not candidates:
        return []
    table = np.column_stack([_filled(features, variable) for variable in candidates])
    guided = np.column_stack([guide for guide in guides if np.ptp(guide) > 0] or [np.arange(float(len(table)))])
    related = np.abs(np.corrcoef(table, guided, rowvar=False))
    rank = related[: len(candidates), len(candidates) :].max(axis=1)
    chosen: list[int] = []
    for at in np.argsort(-rank, kind="stable"):
        if len(chosen) < MAX_ATTRIBUTES and not any(related[at, other] > SAME for other in chosen):
            chosen.append(int(at))
    return [candidates[at] for at in sorted(chosen)]


def _variable(spec: FeatureSpec, slot: Feature, role: Role, label: str) -> SegmentVariable:
    column, logged = _column(spec, slot.name) or (0, False)
    unit = MONTH_DAYS * np.log(2) / slot.half_life_days if slot.half_life_days else 1.0
    flag = spec.names.index(f"missing({slot.name})") if f"missing({slot.name})" in spec.names else None
    return SegmentVariable(role, label, column, slot.event, logged, float(unit), flag)


def _column(spec: FeatureSpec, slot: str) -> tuple[int, bool] | None:
    """Column of a slot's number among the features, and whether it is the logarithm."""
    for name, logged in ((f"log1p({slot})", True), (slot, False)):
        if name in spec.names:
            return spec.names.index(name), logged
    return None


def _filled(features: Features, variable: SegmentVariable) -> Floats:
    """Values ``[n]`` of a variable's column, with missing ones replaced by the mean of the others."""
    values = features[:, variable.column].astype(np.float64)
    if variable.flag is None or features[:, variable.flag].all():
        return values
    missing = features[:, variable.flag] > 0
    return np.where(missing, values[~missing].mean(), values)


def _varies(values: npt.NDArray[np.float32]) -> bool:
    """Whether enough customers have a value other than the most frequent one."""
    return bool(np.unique(values, return_counts=True)[1].max() <= (1 - MIN_SHARE) * len(values))


def _words(name: str) -> str:
    return name.replace("_", " ")
