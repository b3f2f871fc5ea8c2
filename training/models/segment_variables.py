"""What customers are told apart by when they are grouped: a few of the model's features, with words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from feature_store.definitions import Aggregate, Feature
from feature_store.state.layout import Floats
from training.graph.features import FeatureSpec

Role = Literal["recency", "tenure", "frequency", "monetary", "attribute", "missing"]
Features = npt.NDArray[np.float32]

MONTH_DAYS: Final = 30
MOST_ATTRIBUTES: Final = 6
LEAST_SHARE: Final = 0.05
"""Where fewer customers have another than the commonest value, they would become a segment for that alone."""
SAME: Final = 0.9
"""Columns correlated this much say the same, and would count twice."""


@dataclass(frozen=True)
class Trait:
    """One column of the features, and what it says.

    label: in words and units; event: of the slot, if any; logged: whether the column holds signed logarithms; unit:
    what the slot's number is multiplied by to be told; flag: the column that says that the value is missing, if any.
    """

    role: Role
    label: str
    column: int
    event: str | None = None
    logged: bool = True
    unit: float = 1.0
    flag: int | None = None

    def told(self, features: Features) -> Floats:
        """The values [n] as they are told, NaN where missing."""
        found = features[:, self.column].astype(np.float64)
        if self.logged:
            found = np.sign(found) * np.expm1(np.abs(found))
        if self.flag is not None:
            found = np.where(features[:, self.flag] > 0, np.nan, found)
        return found * self.unit


def behaviour(spec: FeatureSpec, event: str) -> list[Trait]:
    """Recency, tenure, frequency and monetary value: those that the features have, of ``event`` rather than another.

    Frequency and monetary value are the sums that forget slowest, told as if they had always gone on like that.
    """
    wanted: list[tuple[Role, Aggregate, str]] = [
        ("recency", "latest", "days since the latest {}"),
        ("tenure", "earliest", "days since the first {}"),
        ("frequency", "count", "{}s a month"),
        ("monetary", "sum", "spend a month"),
    ]
    found = []
    for role, aggregate, label in wanted:
        slots = [f for f in spec.layout.features if f.aggregate == aggregate and f.field in (None, "amount")]
        slots = [slot for slot in slots if _column(spec, slot.name) is not None]
        if slots:
            best = max(slots, key=lambda slot: (slot.event == event, slot.half_life_days or 0.0))
            found.append(_trait(spec, best, role, label.format((best.event or "").replace("_", " "))))
    return found


def attributes(spec: FeatureSpec, features: Features, guides: Sequence[Floats]) -> list[Trait]:
    """Attributes and whether they are missing: at most MOST_ATTRIBUTES, those that go along with a guide [n] most.

    Not those of text, whose numbers have no order.
    """
    slots = [f for f in spec.layout.features if f.aggregate == "attribute" and f.categories is None]
    offered = [
        _trait(spec, slot, "attribute", _words(slot.name)) for slot in slots if _column(spec, slot.name) is not None
    ]
    flags = [slot.flag for slot in offered if slot.flag is not None]
    offered += [Trait("missing", _words(spec.names[at][8:-1]), at, logged=False) for at in flags]
    offered = [trait for trait in offered if _tells_apart(features[:, trait.column])]
    if not offered:
        return []
    table = np.column_stack([_filled(features, trait) for trait in offered])
    guided = np.column_stack([guide for guide in guides if np.ptp(guide) > 0] or [np.arange(float(len(table)))])
    related = np.abs(np.corrcoef(table, guided, rowvar=False))
    rank = related[: len(offered), len(offered) :].max(axis=1)
    chosen: list[int] = []
    for at in np.argsort(-rank, kind="stable"):
        if len(chosen) < MOST_ATTRIBUTES and not any(related[at, other] > SAME for other in chosen):
            chosen.append(int(at))
    return [offered[at] for at in sorted(chosen)]


def _trait(spec: FeatureSpec, slot: Feature, role: Role, label: str) -> Trait:
    column, logged = _column(spec, slot.name) or (0, False)
    unit = MONTH_DAYS * np.log(2) / slot.half_life_days if slot.half_life_days else 1.0
    flag = spec.names.index(f"missing({slot.name})") if f"missing({slot.name})" in spec.names else None
    return Trait(role, label, column, slot.event, logged, float(unit), flag)


def _column(spec: FeatureSpec, slot: str) -> tuple[int, bool] | None:
    """Where a slot's number is among the features, and whether as its logarithm."""
    for name, logged in ((f"log1p({slot})", True), (slot, False)):
        if name in spec.names:
            return spec.names.index(name), logged
    return None


def _filled(features: Features, trait: Trait) -> Floats:
    """A trait's column [n] with the mean of the known values in place of missing ones."""
    values = features[:, trait.column].astype(np.float64)
    if trait.flag is None or features[:, trait.flag].all():
        return values
    missing = features[:, trait.flag] > 0
    return np.where(missing, values[~missing].mean(), values)


def _tells_apart(values: npt.NDArray[np.float32]) -> bool:
    """Whether enough customers have another than the commonest value."""
    return bool(np.unique(values, return_counts=True)[1].max() <= (1 - LEAST_SHARE) * len(values))


def _words(name: str) -> str:
    return name.replace("_", " ")
