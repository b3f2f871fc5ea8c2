"""A small builder for ONNX graphs: hand-written nodes, and boosted trees converted from scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

OPSETS: Final = {"": 18, "ai.onnx.ml": 3}


class GraphBuilder:
    """Collects nodes in order, and names them."""

    float32: Final = TensorProto.FLOAT
    float64: Final = TensorProto.DOUBLE
    int64: Final = TensorProto.INT64

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, columns: int) -> str:
        """Add a float64 input of shape ``[n, columns]``."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", columns]))
        return name

    def constant(self, value: npt.NDArray[Any]) -> str:
        """Add a constant of the array's type; returns its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, whose name is returned."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def columns(self, value: str, indexes: Sequence[int]) -> str:
        """Select columns ``[n, indexes]`` of a value ``[n, columns]``."""
        return self.add("Gather", value, self.constant(np.array(indexes)), axis=1)

    def trees(self, estimator: Any, features: str, columns: int) -> str:
        """Add boosted trees of scikit-learn.

        A classifier is exported as a regressor: then it is a single node without labels.

        Args:
            estimator: A fitted HistGradientBoosting estimator.
            features: Name of the float32 features.
            columns: Their number.

        Returns:
            The name of the float32 score ``[n, 1]`` before the link function.
        """
        classifier = hasattr(estimator, "predict_proba")
        options = {id(estimator): {"zipmap": False, "raw_scores": True}} if classifier else None
        signature = [(features, FloatTensorType([None, columns]))]
        converted = convert_sklearn(estimator, initial_types=signature, options=options, target_opset=OPSETS)
        (node,) = (node for node in converted.graph.node if node.op_type.startswith("TreeEnsemble"))
        attributes = {
            part.name.replace("class_", "target_"): helper.get_attribute_value(part) for part in node.attribute
        }
        attributes.pop("classlabels_int64s", None)
        return self.add("TreeEnsembleRegressor", features, **attributes | {"domain": "ai.onnx.ml", "n_targets": 1})

    def output(
        self,
        name: str,
        value: str,
        column: int | None = None,
        columns: int | None = None,
        kind: int = TensorProto.FLOAT,
    ) -> None:
        """Add an output.

        Args:
            name: Its name.
            value: The value that it has.
            column: Only this column of the value, as ``[n]``.
            columns: Number of columns of the output; None for ``[n]``.
            kind: Its ONNX element type.
        """
        if column is None:
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        else:
            index = self.constant(np.array(column))
            self._nodes.append(helper.make_node("Gather", [value, index], [name], axis=1))
        dimensions: list[str | int | None] = ["n"] if columns is None else ["n", columns]
        self._outputs.append(helper.make_tensor_value_info(name, kind, dimensions))

    def build(self, name: str) -> bytes:
        """Check the graph and serialise it."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tidemark", ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)
