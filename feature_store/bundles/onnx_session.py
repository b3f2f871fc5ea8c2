"""Runs a bundle's ONNX graph. Only this module imports onnxruntime, so training checks exactly what is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feature_store.bundles.bundle import (
    ECONOMICS,
    MONEY_OUTPUTS,
    MONEY_TOLERANCE,
    OUTPUTS,
    PROBABILITY_TOLERANCE,
    Arrays,
    Bundle,
    BundleError,
    default_economics,
)
from feature_store.bundles.onnx_files import check_self_contained


class Graph:
    """An ONNX graph that runs on the calling thread; BundleError if it cannot be loaded or names other files."""

    def __init__(self, model: bytes, outputs: Sequence[str] | None = None) -> None:
        # Here, because it starts a thread when it is imported: what only imports this module may still fork.
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        # One thread: a worker process has one core, and batches are too small to gain from more.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")
        check_self_contained(model)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises one class per status, none of them public
            raise BundleError(f"the graph cannot be loaded ({type(error).__name__})") from error
        self.inputs: Final = {node.name: node.shape for node in self._session.get_inputs()}
        self.outputs: Final = list(outputs or (node.name for node in self._session.get_outputs()))

    def run(self, **inputs: npt.NDArray[Any]) -> Arrays:
        """Outputs by name for inputs by name, one row per customer."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


def load_graph(bundle: Bundle) -> Graph:
    """Load and warm up a bundle's graph, and replay its golden rows; BundleError if the results differ."""
    manifest, golden = bundle.manifest, bundle.golden
    graph = Graph(bundle.model, manifest.outputs)
    if {name: list(shape) for name, shape in graph.inputs.items()} != manifest.inputs:
        raise BundleError(f"{manifest.version}: the graph's inputs are not those of the manifest")
    if [graph.inputs[name][1] for name in ("state", "economics")] != [len(manifest.features), len(ECONOMICS)]:
        raise BundleError(f"{manifest.version}: the graph has another number of features or economics")
    if not all(rows.shape and len(rows) for rows in golden.values()):
        raise BundleError(f"{manifest.version}: there are no golden rows to check it with")
    try:
        outputs = graph.run(**{name: golden[f"input_{name}"] for name in manifest.inputs})
        differences = largest_differences(outputs, {name: golden[f"output_{name}"] for name in manifest.outputs})
        default = _with_default_economics(graph, bundle)
    except Exception as error:  # any failure here means the same: do not serve this
        raise BundleError(f"{manifest.version}: the golden rows cannot be run ({type(error).__name__})") from error
    if problem := beyond_tolerance(differences):
        raise BundleError(f"{manifest.version}: golden rows give other results: {problem}")
    if not all(np.isfinite(default[name]).all() for name in OUTPUTS):
        raise BundleError(f"{manifest.version}: the economics of the manifest give no finite scores")
    return graph


def _with_default_economics(graph: Graph, bundle: Bundle) -> Arrays:
    """Outputs of the golden rows for a caller that sends no economics."""
    inputs = {name: bundle.golden[f"input_{name}"] for name in bundle.manifest.inputs}
    rows = len(inputs["economics"])
    return graph.run(**inputs | {"economics": np.tile(default_economics(bundle.manifest), (rows, 1))})


def largest_differences(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest difference per output, relative for money, absolute for the rest; infinite if one is not finite."""
    largest = {}
    for name, values in expected.items():
        difference = np.abs(actual[name].astype(np.float64) - values)
        if name in MONEY_OUTPUTS:
            difference = difference / np.maximum(np.abs(values), 1e-6)
        largest[name] = float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
    return largest


def beyond_tolerance(differences: dict[str, float]) -> str | None:
    """The outputs that differ by more than is allowed, in words; None if none does."""
    bad = [
        f"{name} is off by {difference:.2g}"
        for name, difference in differences.items()
        if difference > (MONEY_TOLERANCE if name in MONEY_OUTPUTS else PROBABILITY_TOLERANCE)
    ]
    return ", ".join(bad) or None
