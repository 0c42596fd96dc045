"""Weights of an ONNX graph: as arrays, as rows of products, and the int8 steps on which products cannot saturate."""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.float32]
# vpmaddubsw adds two products of a uint8 and an int8 in 16 bits: 255 * 128 is within them, 255 * 129 is not.
PAIR, LARGEST = 128, 127
UNPADDED = (b"", b"NOTSET", b"VALID")


class Weights:
    """The initializers of a graph as arrays that can be written back."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, int] = {}
        for node in graph.node:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1

    def __contains__(self, name: str) -> bool:
        """Whether this is a tensor that one node alone reads."""
        return name in self.tensors and self.readers[name] == 1

    def __getitem__(self, name: str) -> Array:
        return np.array(numpy_helper.to_array(self.tensors[name]), np.float32)

    def __setitem__(self, name: str, value: Array) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))

    def linear(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a Conv or Gemm whose weight (output channels first) and bias it alone reads."""
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in self:
            return False
        if len(node.input) > 2 and node.input[2] not in self:
            return False
        given = attributes(node)
        if node.op_type == "Conv":
            return given.get("auto_pad", b"") in UNPADDED
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
        return plain and given.get("transB", 0) == 1 and not given.get("transA", 0)

    def product(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a MatMul by a matrix (inputs first) that it alone reads, as transformers have them."""
        return node.op_type == "MatMul" and node.input[1] in self and len(self.tensors[node.input[1]].dims) == 2

    def add_to_bias(self, node: onnx.NodeProto, shift: Array, graph: onnx.GraphProto) -> None:
        """Add to the bias of a `linear` node of this graph, which gets one if it has none, or to what is added to a
        `product`, if anything is."""
        if node.op_type == "MatMul":
            readers = [one for one in graph.node if node.output[0] in one.input]
            bias = [name for one in readers for name in one.input if one.op_type == "Add" and name in self]
            if len(readers) == len(bias) == 1 and self.tensors[bias[0]].dims == [len(shift)]:
                self[bias[0]] = self[bias[0]] + shift
        elif len(node.input) > 2:
            self[node.input[2]] = self[node.input[2]] + shift
        else:
            node.input.append(f"{node.name}.bias")
            graph.initializer.append(numpy_helper.from_array(np.asarray(shift, np.float32), node.input[2]))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def as_rows(node: onnx.NodeProto, weight: Array) -> Array:
    """The weight of a Conv, Gemm or MatMul as (groups, outputs of a group, K).

    The K products of a sum are in the order in which kernels take them: positions first, then input channels.
    """
    groups = int(attributes(node).get("group", 1)) if node.op_type == "Conv" else 1
    weight = weight.T if _inputs_first(node) else weight
    parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return parts.swapaxes(2, 3).reshape(groups, len(weight) // groups, -1)


def from_rows(node: onnx.NodeProto, rows: Array, shape: tuple[int, ...]) -> Array:
    """The weight of this shape whose rows these are."""
    if _inputs_first(node):
        return rows.reshape(shape[::-1]).T
    outputs, inputs, *_ = shape
    parts = rows.reshape(outputs, math.prod(shape[2:]), inputs)
    return parts.swapaxes(1, 2).reshape(shape)


def output_axis(node: onnx.NodeProto) -> int:
    """The dimension of the weight of a Conv, Gemm or MatMul that its output channels are."""
    return int(_inputs_first(node))


def _inputs_first(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB", 0))


def step_sizes(rows: Array) -> Array:
    """The smallest step of each row, shape (groups, outputs of a group), on which no kernel saturates.

    Codes are at most 127, and two neighbours of one sign together at most 128. Processors with AVX2 or AVX-512 but
    without VNNI add such pairs of products in 16 bits. Which of its neighbours a weight is paired with depends on the
    kernel, so that this holds for both.
    """
    largest = np.abs(rows).max(2) / LARGEST
    for sign in (1, -1):
        one = np.maximum(sign * rows, 0)
        # Rounding moves each of the two by up to half a step.
        pairs = (one[..., 1:] + one[..., :-1]).max(2, initial=0)
        largest = np.maximum(largest, pairs / (PAIR - 1))
    return np.asarray(np.where(largest > 0, largest, 1), np.float32)


def widest_steps(rows: Array, least: float = 0.0) -> Array:
    """The step of each row on which its largest weight has the code 127, shape (groups, outputs of a group).

    least: the smallest step.
    """
    largest = np.maximum(np.abs(rows).max(2) / np.float32(LARGEST), np.float32(least))
    return np.asarray(np.where(largest > 0, largest, 1), np.float32)
