"""Running a bundle's ONNX graph. The only module that imports onnxruntime: training checks exactly what is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from feature_store.bundles.bundle import (
    ECONOMICS,
    OUTPUTS,
    PROBABILITY_TOLERANCE,
    SPEND_TOLERANCE,
    Arrays,
    Bundle,
    BundleError,
    defaults,
)


class Graph:
    """An ONNX graph ready to run on the calling thread."""

    def __init__(self, model: bytes, outputs: Sequence[str] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        # One thread: a worker is one core, and a batch is too small to be worth handing around.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises one class per status, none of them public
            raise BundleError(f"the graph cannot be loaded ({type(error).__name__})") from error
        self.inputs: Final = {node.name: node.shape for node in self._session.get_inputs()}
        self.outputs: Final = list(outputs or (node.name for node in self._session.get_outputs()))

    def run(self, **inputs: npt.NDArray[Any]) -> Arrays:
        """Outputs by name for inputs by name, one row per customer."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


def open_bundle(bundle: Bundle) -> Graph:
    """Load a bundle's graph, warm it and replay its golden rows; BundleError where it differs from what was trained."""
    manifest, golden = bundle.manifest, bundle.golden
    graph = Graph(bundle.model, manifest.outputs)
    if {name: list(shape) for name, shape in graph.inputs.items()} != manifest.inputs:
        raise BundleError(f"{manifest.version}: the graph's inputs are not the manifest's")
    if [graph.inputs[name][1] for name in ("state", "economics")] != [len(manifest.features), len(ECONOMICS)]:
        raise BundleError(f"{manifest.version}: the graph takes another number of features or economics")
    if not all(rows.shape and len(rows) for rows in golden.values()):
        raise BundleError(f"{manifest.version}: there are no golden rows to check it by")
    try:
        found = graph.run(**{name: golden[f"input_{name}"] for name in manifest.inputs})
        worst = largest_differences(found, {name: golden[f"output_{name}"] for name in manifest.outputs})
        own = _with_own_economics(graph, bundle)
    except Exception as error:  # any failure here means the same: do not serve this
        raise BundleError(f"{manifest.version}: the golden rows cannot be run ({type(error).__name__})") from error
    if problem := beyond_tolerance(worst):
        raise BundleError(f"{manifest.version}: golden rows came out wrong: {problem}")
    if not all(np.isfinite(own[name]).all() for name in OUTPUTS):
        raise BundleError(f"{manifest.version}: the economics of the manifest give no finite scores")
    return graph


def _with_own_economics(graph: Graph, bundle: Bundle) -> Arrays:
    """The golden rows where a caller names no economics."""
    inputs = {name: bundle.golden[f"input_{name}"] for name in bundle.manifest.inputs}
    rows = len(inputs["economics"])
    return graph.run(**inputs | {"economics": np.tile(defaults(bundle.manifest), (rows, 1))})


def largest_differences(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest difference per output, relative for spend, absolute for the rest; infinite where one is not finite."""
    worst = {}
    for name, wanted in expected.items():
        difference = np.abs(found[name].astype(np.float64) - wanted)
        if name == "expected_spend":
            difference = difference / np.maximum(np.abs(wanted), 1e-6)
        worst[name] = float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
    return worst


def beyond_tolerance(worst: dict[str, float]) -> str | None:
    """What is farther off than allowed, in words; None if nothing is."""
    bad = [
        f"{name} is off by {difference:.2g}"
        for name, difference in worst.items()
        if difference > (SPEND_TOLERANCE if name == "expected_spend" else PROBABILITY_TOLERANCE)
    ]
    return ", ".join(bad) or None
