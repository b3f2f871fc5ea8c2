"""Export: one ONNX graph from states to thresholds, and the parity check that it must pass."""

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
from training.graph.thresholds import add_thresholds, add_values, threshold
from training.models.model_set import Models
from training.models.scores import NO_MODEL, add_scores
from training.models.segments import add_segments
from training.models.spend import MIN_SPEND

GOLDEN_ROWS: Final = 64
MAX_AGE_DAYS: Final = 60.0
"""Maximum age of a state in the parity check and the golden rows, in days."""
BELOW_ONE: Final = np.array([np.nextafter(np.float32(1), np.float32(0))], dtype=np.float64)
LIBRARIES: Final = ("numpy", "scikit-learn", "skl2onnx", "onnx", "onnxruntime", "duckdb")


class ParityError(Exception):
    """The exported graph does not give the results of scikit-learn; no bundle is written."""


def build_graph(models: Models, config: TrainingConfig) -> bytes:
    """Build the graph of a bundle.

    Its inputs are float64: ``state`` ``[n, slots]``, ``age`` ``[n, 1]`` in days and ``economics`` ``[n, figures]``. Its
    outputs are ``[n]``.

    Args:
        models: The fitted models.
        config: Decides on costs per customer and the minimum threshold.

    Returns:
        The serialised ONNX model.
    """
    spec = models.matrix.spec
    graph = GraphBuilder()
    graph.input("state", len(spec.layout.features))
    graph.input("age", 1)
    graph.input("economics", len(ECONOMICS))
    features, columns = add_features(graph, spec), len(spec.names)
    probability, spend_if_won, expected_spend = _add_models(graph, models, features, columns)
    values = add_values(graph, spend_if_won, "economics", OFFERS)
    economics = add_own_costs(graph, config, spec.layout)
    thresholds = add_thresholds(graph, values, economics, OFFERS, config.economics.threshold_min)
    # Below 1 even when rounded to float32, because a threshold of 1 means never.
    probability = graph.add("Min", probability, graph.constant(BELOW_ONE))
    outputs = graph.add("Concat", probability, expected_spend, thresholds, values, axis=1)
    outputs = graph.add("Cast", outputs, to=graph.float32)
    for column, name in enumerate(OUTPUTS):
        graph.output(name, outputs, column)
    add_segments(graph, models.segments, features)
    return graph.build("tidemark")


def _add_models(graph: GraphBuilder, models: Models, features: str, columns: int) -> tuple[str, str, str]:
    """Add all models; returns the names of probability and spend if won, ``[n, offers]``, and of expected spend."""
    scores = [models.probability[offer].score() if offer in models.probability else NO_MODEL for offer in OFFERS]
    scores += [models.spend_if_won[offer].score() if offer in models.spend_if_won else NO_MODEL for offer in OFFERS]
    scores += [] if models.spend is None else [models.spend.score()]
    added, offers = add_scores(graph, scores, features, columns), len(OFFERS)
    probability = graph.add("Sigmoid", graph.columns(added, range(offers)))
    amounts = graph.add("Exp", graph.columns(added, range(offers, len(scores))))
    amounts = graph.add("Max", amounts, graph.constant(np.array([[MIN_SPEND]])))
    if models.spend is not None:
        return probability, graph.columns(amounts, range(offers)), graph.columns(amounts, [offers])
    at = OFFERS.index(models.first_offer)
    share = graph.columns(probability, [at])
    if models.first_offer == "churn":
        share = graph.add("Sub", graph.constant(np.array([1.0])), share)
    return probability, amounts, graph.add("Mul", share, graph.columns(amounts, [at]))


def expected_outputs(models: Models, state: Floats, config: TrainingConfig, figures: Mapping[str, float]) -> Arrays:
    """The outputs that the graph must have for these states, computed with scikit-learn and NumPy."""
    features = models.matrix(state)
    outputs: Arrays = {"expected_spend": models.expected_spend(features)}
    for name in OFFERS:
        value = config.economics.margin * models.predict_spend_if_won(name, features)
        outputs[f"{name}_probability"] = models.predict(name, features)
        outputs[f"{name}_value_if_won"] = value
        outputs[f"{name}_threshold"] = threshold(
            value,
            terms_of(config, models.matrix.spec.layout, name, state),
            figures[f"{name}.budget_price"],
            config.economics.threshold_min,
        )
    return outputs | models.segments.predict(features)


def graph_inputs(
    state: Floats, figures: Mapping[str, float], per_customer: Collection[str] = (), age_days: Floats | None = None
) -> Arrays:
    """Inputs with the same economics for all customers.

    Args:
        state: States ``[n, slots]``.
        figures: The economics by name, without values if won, which the models compute.
        per_customer: Figures that are NaN, so that the graph takes them from the state.
        age_days: Time since the states were current ``[n]``, in days; None for 0.
    """
    row = np.array([np.nan if name in per_customer else figures.get(name, np.nan) for name in ECONOMICS])
    age = np.zeros(len(state)) if age_days is None else age_days
    return {"state": state, "age": age[:, np.newaxis], "economics": np.tile(row, (len(state), 1))}


def parity_ages(rows: int, seed: int) -> Floats:
    """Ages in days ``[rows]`` for the parity check: 0 to MAX_AGE_DAYS, because served states are seldom current.

    Every fourth row has age 0, as in training.
    """
    ages = np.random.default_rng(seed).uniform(0, MAX_AGE_DAYS, rows)
    ages[::4] = 0
    return ages


def check_parity(graph: Graph, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """Compare the graph with scikit-learn on all rows.

    Returns:
        The largest difference by output.

    Raises:
        ParityError: If a difference is beyond the tolerance.
    """
    differences = largest_differences(graph.run(**inputs), expected)
    if problem := beyond_tolerance(differences):
        raise ParityError(f"the exported graph differs from scikit-learn: {problem}; no bundle was written")
    return differences


def golden_rows(graph: Graph, inputs: Arrays) -> bytes:
    """Golden rows: GOLDEN_ROWS of the inputs, evenly spread, with the graph's outputs, as an npz file.

    A server replays them before it serves the bundle.
    """
    rows = np.unique(np.linspace(0, len(inputs["state"]) - 1, GOLDEN_ROWS).astype(int))
    chosen = {name: value[rows] for name, value in inputs.items()}
    arrays = {f"input_{name}": value for name, value in chosen.items()}
    arrays |= {f"output_{name}": value for name, value in graph.run(**chosen).items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
