"""Refuses ONNX models that name other files.

A tensor of an ONNX model may be stored in another file, whose path the model names. onnxruntime reads it while it loads
the model, relative to the current folder if the model comes from memory. So a bundle could read any file of the server
into its weights. This module goes through the encoded model before onnxruntime sees it. It follows the messages of
onnx.proto that lead to tensors, and refuses whatever it cannot follow. The onnx package is not used, because servers do
not have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from feature_store.bundles.bundle import BundleError

TENSOR: Final = "TensorProto"
EXTERNAL_FIELDS: Final = (13, 14)
"""Fields of a tensor: where its data is stored outside of the model, and whether it is (0: it is not)."""
FIELDS: Final[Mapping[str, Mapping[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: TENSOR,
        6: "GraphProto",
        10: TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    TENSOR: {},
}
"""By message, the fields that lead to tensors, and the messages that they hold."""
MAX_DEPTH: Final = 100
"""Messages within messages that protobuf reads at most."""
MAX_FIELD: Final = 2**29 - 1
MORE: Final = 0x80
"""A bit of each byte of a number but the last."""
VARINT: Final = 0
FIXED_64: Final = 1
LENGTH: Final = 2
FIXED_32: Final = 5
"""Wire types."""


def check_self_contained(model: bytes) -> None:
    """Raise BundleError if a model (an encoded ModelProto) names other files, or is not a model."""
    messages = [("ModelProto", memoryview(model), 0)]
    graphs = 0
    while messages:
        kind, data, depth = messages.pop()
        if depth > MAX_DEPTH:
            raise _not_a_model()
        for field, wire_type, value in _fields(data):
            if kind == TENSOR and field in EXTERNAL_FIELDS and (wire_type, value) != (VARINT, 0):
                raise BundleError("the graph reads data from other files: save it with all data inside")
            if (inner := FIELDS[kind].get(field)) is not None:
                if not isinstance(value, memoryview) or wire_type != LENGTH:
                    raise _not_a_model()
                messages.append((inner, value, depth + 1))
                graphs += inner == "GraphProto"
    if not graphs:
        raise _not_a_model()


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field of an encoded message; BundleError if it is malformed."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire_type = tag >> 3, tag & 7
        if not 0 < field <= MAX_FIELD:  # other readers drop the upper bits of such a tag
            raise _not_a_model()
        if wire_type == VARINT:
            number, at = _varint(data, at)
            yield field, wire_type, number
            continue
        if wire_type == LENGTH:
            size, at = _varint(data, at)
        elif wire_type in (FIXED_64, FIXED_32):
            size = 8 if wire_type == FIXED_64 else 4
        else:
            raise _not_a_model()
        if at + size > len(data):
            raise _not_a_model()
        yield field, wire_type, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, and the offset after it; BundleError if it is malformed."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & ~MORE) << shift
        if not byte & MORE:
            return number, at
    raise _not_a_model()


def _not_a_model() -> BundleError:
    return BundleError("the graph cannot be loaded (it is not an ONNX model)")
