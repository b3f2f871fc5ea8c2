"""One ONNX graph from states to thresholds, and the gate that it must pass before a bundle exists."""

from __future__ import annotations

import io
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Final

import numpy as np

from feature_store.bundles.bundle import ECONOMICS, OFFERS, OUTPUTS, Arrays
from feature_store.bundles.onnx_session import Graph, beyond_tolerance, largest_differences
from feature_store.state.layout import Floats
from training.config import TrainingConfig
from training.graph.builder import GraphBuilder
from training.graph.customer_costs import add_own_costs, terms_of
from training.graph.features import add_features
from training.graph.thresholds import add_thresholds, threshold
from training.models.model_set import Models
from training.models.probability import add_probabilities
from training.models.segments import add_segments

GOLDEN_ROWS: Final = 64
BELOW_ONE: Final = np.array([np.nextafter(np.float32(1), np.float32(0))], dtype=np.float64)
LIBRARIES: Final = ("numpy", "scikit-learn", "skl2onnx", "onnx", "onnxruntime", "duckdb")


class ParityError(Exception):
    """The exported graph does not compute what scikit-learn computes; no bundle is written."""


def build_graph(models: Models, config: TrainingConfig) -> bytes:
    """Inputs ``state`` [n, slots], ``age`` [n, 1] days, ``economics`` [n, figures], float64; outputs [n]."""
    spec = models.matrix.spec
    graph = GraphBuilder()
    graph.input("state", len(spec.layout.features))
    graph.input("age", 1)
    graph.input("economics", len(ECONOMICS))
    features, columns = add_features(graph, spec), len(spec.names)
    known = [offer for offer in OFFERS if offer in models.probability]
    probability = add_probabilities(graph, [models.probability[offer] for offer in known], features, columns)
    # Below 1, even rounded: a threshold of 1 means never.
    probability = graph.add("Min", probability, graph.constant(BELOW_ONE))
    spend = models.spend.add_to(graph, features, columns)
    economics = add_own_costs(graph, config, spec.layout)
    thresholds = add_thresholds(graph, spend, economics, OFFERS, config.economics.threshold_min)
    if len(known) < len(OFFERS):
        nobody = graph.add("Mul", spend, graph.constant(np.array([0.0])))
        of = [graph.columns(probability, [known.index(o)]) if o in known else nobody for o in OFFERS]
        probability = graph.add("Concat", *of, axis=1)
    found = graph.add("Cast", graph.add("Concat", probability, spend, thresholds, axis=1), to=graph.float32)
    for column, name in enumerate(OUTPUTS):
        graph.output(name, found, column)
    add_segments(graph, models.segments, features)
    return graph.build("tidemark")


def expected_outputs(models: Models, state: Floats, config: TrainingConfig, figures: Mapping[str, float]) -> Arrays:
    """What the graph must give for customers with these states, computed with scikit-learn and NumPy."""
    features = models.matrix(state)
    spend = models.spend.predict(features)
    outputs: Arrays = {"expected_spend": spend}
    for name in OFFERS:
        outputs[f"{name}_probability"] = models.predict(name, features)
        outputs[f"{name}_threshold"] = threshold(
            config.economics.margin * spend,
            terms_of(config, models.matrix.spec.layout, name, state),
            figures[f"{name}.budget_price"],
            config.economics.threshold_min,
        )
    return outputs | models.segments.predict(features)


def graph_inputs(state: Floats, figures: Mapping[str, float], own: Collection[str] = ()) -> Arrays:
    """Inputs for states as of their reference, under the same economics for all but the figures of each one's own."""
    row = np.array([np.nan if name in own else figures[name] for name in ECONOMICS])
    return {"state": state, "age": np.zeros((len(state), 1)), "economics": np.tile(row, (len(state), 1))}


def check_parity(graph: Graph, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest differences between the graph and scikit-learn over all rows; ParityError where one is too large."""
    worst = largest_differences(graph.run(**inputs), expected)
    if problem := beyond_tolerance(worst):
        raise ParityError(f"the exported graph differs from scikit-learn: {problem}; no bundle was written")
    return worst


def golden_rows(graph: Graph, inputs: Arrays) -> bytes:
    """Real rows, spread over those given, with what the graph makes of them: a server replays them before it serves."""
    rows = np.unique(np.linspace(0, len(inputs["state"]) - 1, GOLDEN_ROWS).astype(int))
    some = {name: value[rows] for name, value in inputs.items()}
    arrays = {f"input_{name}": value for name, value in some.items()}
    arrays |= {f"output_{name}": value for name, value in graph.run(**some).items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
