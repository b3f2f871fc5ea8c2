"""From state to model features, as graph nodes: decay to now, ages in days, logarithms, categories, overdue ratios.

The same nodes produce the training matrix and the served features, so the two cannot differ. Missing values are filled
in here too, so a model never receives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from feature_store.bundles.onnx_session import Graph
from feature_store.state.layout import DAY_S, Floats, StateLayout
from training.arrays import Features
from training.config import Overdue
from training.graph.builder import GraphBuilder

MAX_DAYS: Final = 3650.0
"""Upper bound of ages: a latest event that never happened counts as this old (and an earliest one as new)."""

CHUNK_ROWS: Final = 65_536
"""Number of rows at a time, to limit the memory for intermediate results."""


@dataclass(frozen=True)
class Rates:
    """Two features of each decayed count, from the rate of events that it implies; they need no slot.

    They are ``overdue(count)``, the logarithm of 1 plus the number of events that would have been expected since the
    last one, and ``chance(count)``, the probability of an event within a horizon. Both assume events at this constant
    rate (a Poisson process), as models of customers who buy until they leave do (Schmittlein et al., 1987, "Counting
    your customers").

    Attributes:
        latest: Name of the slot with the time of the last event.
        days: The horizon.
    """

    latest: str
    days: float


@dataclass(frozen=True)
class FeatureSpec:
    """The features made of a state: a number per slot, flags for categories and missing values, overdue ratios, rates.

    Attributes:
        layout: Slots of the state.
        overdue: The overdue ratios.
        fill: Replacement of a missing value by feature, in order of ``names``; None before it is learnt.
        rates: What features of rates there are, None for none of them.
    """

    layout: StateLayout
    overdue: Sequence[Overdue] = ()
    fill: tuple[float, ...] | None = None
    rates: Rates | None = None

    @property
    def names(self) -> list[str]:
        """Names of the model's features, in order."""
        features = self.layout.features
        names = [f"log1p({features[i].name})" for i in self.numbers]
        names += [f"missing({features[i].name})" for i in self.attributes]
        names += [f"{features[i].name}={(*(features[i].categories or ()), 'other')[code]}" for i, code in self.codes]
        names += [line.name for line in self.overdue]
        counts = [features[i].name for i in self.counts]
        return names + [f"{kind}({name})" for kind in ("overdue", "chance") for name in counts]

    @property
    def without_rates(self) -> int:
        """Number of features before those of rates, which come last."""
        return len(self.names) - 2 * len(self.counts)

    @property
    def counts(self) -> list[int]:
        """Slots with decayed counts that give features of rates."""
        if self.rates is None:
            return []
        return [i for i, feature in enumerate(self.layout.features) if feature.aggregate == "count" and feature.decayed]

    @property
    def numbers(self) -> list[int]:
        """Slots with numbers, not categories."""
        return [i for i, feature in enumerate(self.layout.features) if feature.categories is None]

    @property
    def attributes(self) -> list[int]:
        """Slots of attributes."""
        return [i for i, feature in enumerate(self.layout.features) if feature.aggregate == "attribute"]

    @property
    def codes(self) -> list[tuple[int, int]]:
        """Slot and code of each category, with one more code per slot for other values."""
        features = self.layout.features
        return [(i, code) for i, feature in enumerate(features) for code in range(_codes(feature.categories))]

    def narrowed(self, slots: Sequence[int]) -> FeatureSpec:
        """The features of only these slots, with the overdue ratios that they still allow."""
        features = [self.layout.features[i] for i in slots]
        names = {feature.name for feature in features}
        overdue = [line for line in self.overdue if {line.latest, line.rate} <= names]
        rates = self.rates if self.rates and self.rates.latest in names else None
        return FeatureSpec(StateLayout(features), overdue, rates=rates)


def _codes(categories: Sequence[str] | None) -> int:
    return len(categories) + 1 if categories else 0


def add_features(graph: GraphBuilder, spec: FeatureSpec) -> str:
    """Add nodes from the graph's ``state`` and ``age`` (days since the reference) to the features.

    They are computed in float64 and rounded once at the end, because the models are fitted on float32.

    Returns:
        The name of the features, float32 ``[n, names]``.
    """
    features = spec.layout.features
    timed = np.array([f.aggregate in ("latest", "earliest") for f in features])
    decay = np.array([-np.log(2) / f.half_life_days if f.half_life_days else 0.0 for f in features])
    value = "state"
    if any(feature.decayed for feature in features):
        value = graph.add("Mul", value, graph.add("Exp", graph.add("Mul", "age", graph.constant(decay))))
    if timed.any():
        days = graph.add("Sub", "age", graph.add("Mul", "state", graph.constant(np.array([1 / DAY_S]))))
        within = graph.add("Clip", days, graph.constant(np.array(0.0)), graph.constant(np.array(MAX_DAYS)))
        value = graph.add("Where", graph.constant(timed), within, value)

    parts = []
    if spec.numbers:
        number = value if len(spec.numbers) == len(features) else graph.columns(value, spec.numbers)
        size = graph.add("Log", graph.add("Add", graph.add("Abs", number), graph.constant(np.array([1.0]))))
        parts.append(graph.add("Mul", graph.add("Sign", number), size))
    if spec.attributes:
        flags = graph.add("IsNaN", graph.columns(value, spec.attributes))
        parts.append(graph.add("Cast", flags, to=graph.float64))
    if spec.codes:
        codes = graph.constant(np.array([float(code) for _, code in spec.codes]))
        same = graph.add("Equal", graph.columns(value, [i for i, _ in spec.codes]), codes)
        parts.append(graph.add("Cast", same, to=graph.float64))
    if spec.overdue:
        parts.append(_add_overdue(graph, spec, value))
    if spec.rates and spec.counts:
        parts += _add_rates(graph, spec, spec.rates, value)
    whole = graph.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    if spec.fill is not None:
        whole = graph.add("Where", graph.add("IsNaN", whole), graph.constant(np.array(spec.fill)), whole)
    return graph.add("Cast", whole, to=graph.float32)


def _add_overdue(graph: GraphBuilder, spec: FeatureSpec, value: str) -> str:
    slots = {feature.name: i for i, feature in enumerate(spec.layout.features)}
    away = [slots[line.latest] for line in spec.overdue]
    rate = [slots[line.rate] for line in spec.overdue]
    # At a constant rate, a decayed count of n corresponds to n * ln 2 / half-life events a day.
    per_day = np.array([np.log(2) / (spec.layout.features[i].half_life_days or np.inf) for i in rate])
    usual = graph.add("Mul", graph.columns(value, rate), graph.constant(per_day))
    return graph.add("Mul", graph.columns(value, away), usual)


def _add_rates(graph: GraphBuilder, spec: FeatureSpec, rates: Rates, value: str) -> list[str]:
    features = spec.layout.features
    latest = next(i for i, feature in enumerate(features) if feature.name == rates.latest)
    per_day = np.array([np.log(2) / (features[i].half_life_days or np.inf) for i in spec.counts])
    rate = graph.add("Mul", graph.columns(value, spec.counts), graph.constant(per_day))
    one = graph.constant(np.array([1.0]))
    expected = graph.add("Mul", rate, graph.columns(value, [latest]))
    overdue = graph.add("Log", graph.add("Add", expected, one))
    none = graph.add("Exp", graph.add("Mul", rate, graph.constant(np.array([-float(rates.days)]))))
    return [overdue, graph.add("Sub", one, none)]


class FeatureMatrix:
    """The feature nodes on their own, for training."""

    def __init__(self, spec: FeatureSpec) -> None:
        graph = GraphBuilder()
        graph.input("state", len(spec.layout.features))
        graph.input("age", 1)
        graph.output("features", add_features(graph, spec), columns=len(spec.names))
        self.spec: Final = spec
        self._graph = Graph(graph.build("features"))

    def __reduce__(self) -> tuple[type[FeatureMatrix], tuple[FeatureSpec]]:
        """Pickled as its definition: a session of onnxruntime cannot be."""
        return FeatureMatrix, (self.spec,)

    def __call__(self, state: Floats) -> Features:
        """Features float32 ``[n, names]`` of states ``[n, slots]`` at age 0."""
        parts = [state[at : at + CHUNK_ROWS] for at in range(0, max(len(state), 1), CHUNK_ROWS)]
        return np.concatenate([self._graph.run(state=part, age=np.zeros((len(part), 1)))["features"] for part in parts])


def filled_matrix(spec: FeatureSpec, state: Floats) -> FeatureMatrix:
    """The feature nodes, with medians of the known values in states ``[n, slots]`` as replacement of missing ones."""
    fill = medians(FeatureMatrix(replace(spec, fill=None))(state))
    return FeatureMatrix(replace(spec, fill=tuple(fill.tolist())))


def medians(features: Features) -> Features:
    """Median of the known values of each feature ``[names]``, from features ``[n, names]``; 0 if none is known."""
    known = np.isfinite(features)
    if known.all() and len(features):
        return np.median(features, axis=0).astype(np.float32)
    columns = [column[finite] for column, finite in zip(features.T, known.T, strict=True)]
    return np.array([np.median(column) if len(column) else 0.0 for column in columns], dtype=np.float32)
