"""From state to model features, as graph nodes: decay to now, ages in days, signed logarithms, time overdue.

The same nodes produce the training matrix and the served features, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feature_store.graph import Graph
from feature_store.state import DAY_S, Floats, StateLayout
from training.config import Overdue
from training.onnx_graph import GraphBuilder

MAX_DAYS: Final = 3650.0
"""Ages are cut here: a latest event that never happened counts as this old (and an earliest one as new)."""


@dataclass(frozen=True)
class FeatureSpec:
    """What is made of a state: a number per slot, a flag per attribute that may be missing, and ratios."""

    layout: StateLayout
    overdue: Sequence[Overdue] = ()

    @property
    def names(self) -> list[str]:
        """Names of the model's features, in order."""
        features = self.layout.features
        logged = [f"log1p({feature.name})" for feature in features]
        return logged + [f"missing({features[i].name})" for i in self.attributes] + [line.name for line in self.overdue]

    @property
    def attributes(self) -> list[int]:
        """Slots of attributes."""
        return [i for i, feature in enumerate(self.layout.features) if feature.aggregate == "attribute"]


def add_features(graph: GraphBuilder, spec: FeatureSpec) -> str:
    """Nodes from the graph's ``state`` and ``age`` (days since the reference) to float32 features ``[n, names]``.

    Computed in float64 and rounded once at the end, because the models are trained on float32.
    """
    features = spec.layout.features
    timed = np.array([f.aggregate in ("latest", "earliest") for f in features])
    decay = np.array([-np.log(2) / f.half_life_days if f.half_life_days else 0.0 for f in features])
    decayed = graph.add("Mul", "state", graph.add("Exp", graph.add("Mul", "age", graph.constant(decay))))
    days = graph.add("Sub", "age", graph.add("Mul", "state", graph.constant(np.array([1 / DAY_S]))))
    within = graph.add("Clip", days, graph.constant(np.array(0.0)), graph.constant(np.array(MAX_DAYS)))
    value = graph.add("Where", graph.constant(timed), within, decayed)

    known = value
    if spec.attributes:
        missing = graph.add("IsNaN", value)
        known = graph.add("Where", missing, graph.constant(np.array([0.0])), value)
    size = graph.add("Log", graph.add("Add", graph.add("Abs", known), graph.constant(np.array([1.0]))))
    parts = [graph.add("Mul", graph.add("Sign", known), size)]
    if spec.attributes:
        flags = graph.columns(missing, spec.attributes)
        parts.append(graph.add("Cast", flags, to=graph.float64))
    if spec.overdue:
        parts.append(_add_overdue(graph, spec, known))
    whole = graph.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    return graph.add("Cast", whole, to=graph.float32)


def _add_overdue(graph: GraphBuilder, spec: FeatureSpec, value: str) -> str:
    slots = {feature.name: i for i, feature in enumerate(spec.layout.features)}
    away = [slots[line.latest] for line in spec.overdue]
    rate = [slots[line.rate] for line in spec.overdue]
    # A decayed count of n at a constant rate stands for n * ln 2 / half-life events a day.
    per_day = np.array([np.log(2) / (spec.layout.features[i].half_life_days or np.inf) for i in rate])
    usual = graph.add("Mul", graph.columns(value, rate), graph.constant(per_day))
    return graph.add("Mul", graph.columns(value, away), usual)


class FeatureMatrix:
    """The feature nodes on their own, for training."""

    def __init__(self, spec: FeatureSpec) -> None:
        graph = GraphBuilder()
        graph.input("state", len(spec.layout.features))
        graph.input("age", 1)
        graph.output("features", add_features(graph, spec), columns=len(spec.names))
        self._graph = Graph(graph.build("features"))

    def __call__(self, state: Floats) -> npt.NDArray[np.float32]:
        """Features float32 ``[n, names]`` of states ``[n, slots]`` as of their own reference."""
        return self._graph.run(state=state, age=np.zeros((len(state), 1)))["features"]
