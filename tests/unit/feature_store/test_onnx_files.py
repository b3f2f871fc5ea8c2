"""A model that names other files is refused before onnxruntime reads them, wherever in the model it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from feature_store.bundles.bundle import BundleError
from feature_store.bundles.onnx_files import check_self_contained
from feature_store.bundles.onnx_session import Graph

OUTSIDE = "reads data from other files"


def tensor(name: str = "w", file: str | None = "secret.bin") -> TensorProto:
    """Two numbers, in a file or in the model."""
    if file is None:
        return helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    outside = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=file)
    return outside


def model(weights: TensorProto) -> onnx.ModelProto:
    """Adds the weights to its input."""
    node = helper.make_node("Add", ["x", "w"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_attribute(outside: TensorProto, made: onnx.ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("value", outside))


def in_attribute_list(outside: TensorProto, made: onnx.ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("values", [outside]))


def in_inner_graph(outside: TensorProto, made: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [outside])
    made.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))
    made.graph.node[0].attribute.append(helper.make_attribute("branches", [inner]))


def in_sparse(outside: TensorProto, made: onnx.ModelProto) -> None:
    made.graph.sparse_initializer.add(values=outside)


def in_function(outside: TensorProto, made: onnx.ModelProto) -> None:
    made.functions.add(name="f", domain="d").node.add(op_type="Constant").attribute.append(
        helper.make_attribute("value", outside)
    )


def in_training(outside: TensorProto, made: onnx.ModelProto) -> None:
    made.training_info.add().initialization.initializer.append(outside)


@pytest.mark.parametrize("put", [in_attribute, in_attribute_list, in_inner_graph, in_sparse, in_function, in_training])
def test_a_file_is_noticed_anywhere_in_the_model(put: Callable[[TensorProto, onnx.ModelProto], None]) -> None:
    inside, outside = model(tensor(file=None)), model(tensor(file=None))
    put(tensor(file=None), inside)
    put(tensor(), outside)
    check_self_contained(inside.SerializeToString())
    with pytest.raises(BundleError, match=OUTSIDE):
        check_self_contained(outside.SerializeToString())


def test_a_file_in_the_current_folder_does_not_become_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.bin").write_bytes(np.array([3.0, 4.0], np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=OUTSIDE):
        Graph(model(tensor()).SerializeToString())
    graph = Graph(model(tensor(file=None)).SerializeToString())
    np.testing.assert_array_equal(graph.run(x=np.zeros((1, 2), np.float32))["y"], [[1.0, 2.0]])


def test_names_of_files_without_the_mark_and_the_mark_without_names_are_refused() -> None:
    named, marked = tensor(), tensor()
    named.data_location = TensorProto.DEFAULT
    del marked.external_data[:]
    for weights in (named, marked):
        with pytest.raises(BundleError, match=OUTSIDE):
            check_self_contained(model(weights).SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x0b", id="a group"),
        pytest.param(b"\x3a\x7f", id="shorter than it says"),
        pytest.param(b"\x38\x01", id="a number in place of the graph"),
        pytest.param(b"\xba\x80\x80\x80\x10\x00", id="a tag whose upper bits others drop"),
        pytest.param(b"\xff" * 11, id="an endless number"),
        pytest.param(b"\x18\x00\x00\x00ORTM" + bytes(40), id="a model in onnxruntime's format"),
    ],
)
def test_what_is_no_onnx_model_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="not an ONNX model"):
        check_self_contained(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_refused(data: bytes) -> None:
    try:
        check_self_contained(data)
    except BundleError:
        return
    onnx.ModelProto.FromString(data)
