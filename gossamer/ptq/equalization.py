"""Changes of a float32 ONNX network that make it easier to quantize: equal ranges across layers, corrected biases."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.float32]
# f(s * x) = s * f(x) for s > 0, channel by channel.
HOMOGENEOUS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}


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


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def equalize(model: onnx.ModelProto, *, rounds: int = 20) -> onnx.ModelProto:
    """Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1): the same function, weights of
    consecutive layers rescaled per channel.

    Channel i between two layers with ranges r1, r2 of their weights is scaled by s = sqrt(r1 r2) / r2, so that both
    ranges become sqrt(r1 r2). Repeated because a layer may be second of one pair and first of the next.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    weights = Weights(copied.graph)
    pairs = find_pairs(copied.graph, weights)
    for _ in range(rounds):
        change = max((_equalize_pair(first, second, weights) for first, second in pairs), default=0.0)
        if change < 1e-3:
            break
    return copied


def find_pairs(graph: onnx.GraphProto, weights: Weights) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Weighted nodes with nothing but homogeneous operations between them and no other reader of what is between."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    pairs = []
    for first in graph.node:
        if not _scalable(first, weights):
            continue
        node, name, pooled = first, first.output[0], first.op_type == "Gemm"
        while len(readers.get(name, ())) == 1 and name not in outputs:
            node = readers[name][0]
            if node.op_type not in HOMOGENEOUS and not (node.op_type == "Flatten" and pooled):
                break
            pooled = pooled or node.op_type == "GlobalAveragePool"
            name = node.output[0]
        ends = len(readers.get(name, ())) == 1 and node.input and node.input[0] == name
        if ends and node is not first and _scalable(node, weights) and (node.op_type == "Conv" or pooled):
            pairs.append((first, node))
    return pairs


def _scalable(node: onnx.NodeProto, weights: Weights) -> bool:
    if node.op_type not in ("Conv", "Gemm") or node.input[1] not in weights:
        return False
    if len(node.input) > 2 and node.input[2] not in weights:
        return False
    return node.op_type == "Conv" or (attributes(node).get("transB", 0) == 1 and "transA" not in attributes(node))


def _by_input(node: onnx.NodeProto, weight: Array) -> Array:
    """View of a weight as (groups, out per group, in per group, positions)."""
    groups = int(attributes(node).get("group", 1))
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _equalize_pair(first: onnx.NodeProto, second: onnx.NodeProto, weights: Weights) -> float:
    """Rescale one pair in place; gives how far the factors are from 1."""
    weight_1, weight_2 = weights[first.input[1]], weights[second.input[1]]
    range_1 = np.abs(weight_1).reshape(len(weight_1), -1).max(1)
    range_2 = np.abs(_by_input(second, weight_2)).max((1, 3)).reshape(-1)
    if range_1.shape != range_2.shape:
        return 0.0
    alive = (range_1 > 0) & (range_2 > 0)
    scale = np.where(alive, np.sqrt(range_1 / np.where(alive, range_2, 1)), 1).astype(np.float32)
    weights[first.input[1]] = weight_1 / scale.reshape(-1, *[1] * (weight_1.ndim - 1))
    if len(first.input) > 2:
        weights[first.input[2]] = weights[first.input[2]] / scale
    groups = _by_input(second, weight_2)
    weights[second.input[1]] = (groups * scale.reshape(len(groups), 1, -1, 1)).reshape(weight_2.shape)
    return float(np.abs(np.log(scale)).max())


def correct_biases(
    model: onnx.ModelProto, quantized: Mapping[str, Array], means: Mapping[str, NDArray[np.float64]]
) -> onnx.ModelProto:
    """Take out of each bias the mean error that rounding the layer's weight makes (Nagel et al. 2019, section 4.2).

    quantized: rounded weights by node name. means: mean input of these nodes, by name of the value, without the batch
    dimension. A layer is linear, so its mean error is the layer with weight `rounded - weight` on the mean input.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    weights = Weights(copied.graph)
    for node in copied.graph.node:
        if node.name not in quantized or not _scalable(node, weights):
            continue
        error = torch.from_numpy(quantized[node.name] - weights[node.input[1]])
        shift = mean_response(node, torch.from_numpy(means[node.input[0]]).float(), error).numpy()
        if len(node.input) > 2:
            weights[node.input[2]] = weights[node.input[2]] - shift
        else:
            name = f"{node.name}.bias"
            node.input.append(name)
            copied.graph.initializer.append(numpy_helper.from_array(-shift, name))
    return copied


def mean_response(node: onnx.NodeProto, mean: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean output per channel, shape (O,), of a Conv or Gemm with this weight and no bias on one input."""
    if node.op_type == "Gemm":
        return weight @ mean
    given, dims = attributes(node), weight.dim() - 2
    pads = given.get("pads", [0] * 2 * dims)
    # ONNX has all begins, then all ends; torch has (begin, end) of the last dimension first.
    around = [p for d in reversed(range(dims)) for p in (pads[d], pads[d + dims])]
    convolve: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    strides, dilations = given.get("strides", [1] * dims), given.get("dilations", [1] * dims)
    output: torch.Tensor = convolve(
        F.pad(mean[None], around), weight, None, tuple(strides), 0, tuple(dilations), int(given.get("group", 1))
    )
    return output[0].flatten(1).mean(1)
