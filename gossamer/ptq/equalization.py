"""Even ranges across the channels of activations, so that one step of int8 fits all channels of a tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gossamer.ptq.weights import Array, Weights, as_rows, attributes, from_rows

# f(s * x) = s * f(x) for s > 0, channel by channel; Clip as far as nothing beyond its bound is made.
HOMOGENEOUS = {
    "Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Flatten", "Reshape", "Add",
}  # fmt: skip
BOUNDED = {"Relu", "LeakyRelu", "Clip"}
LEAST_RANGE = 1 / 256  # of the largest channel; one that calibration data hardly use may be used more by others
STRENGTH = 0.5  # of evening activations, and weights that read them where these are small
SMALL = 1 / 16  # of the largest weight


@dataclass
class ScaledTogether:
    """Values whose channels can be scaled together, and the layers that make and read them."""

    values: list[str] = field(default_factory=list)
    makers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    bounded: bool = False


def equalize(model: onnx.ModelProto, largest: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Scale channels up towards the range of the largest one: the same function, as far as the data show.

    A layer that makes a channel is multiplied by a factor, and all that read it are divided by it, as in cross-layer
    equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1). There the ranges of weights are evened. Where
    weights have a step per output channel, the ranges of activations are what is left to be even (as in SmoothQuant,
    Xiao et al. 2023, arXiv:2211.10438): entirely where depthwise layers read them, whose weights have a step per input
    channel, elsewhere with a strength of 0.5. There the weights count only where a channel is read with less than 1/16
    of the largest one: GPTQ, which follows, leaves far less error of weights than of activations.

    Where a Clip bounds channels from above, factors are at least 1, and those of channels below the largest are now
    bounded at what calibration data reached, or above.

    Args:
        model: the float32 network.
        largest: the largest magnitude of each channel, shape (C,), of the values of `channel_values`.

    Returns:
        A copy with other weights and biases.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    weights = Weights(copied.graph)
    for together in scaled_together(copied.graph, weights):
        seen = [largest[value] for value in together.values if value in largest]
        if seen:
            _scale(together, _factors(together, seen, weights), weights)
    return copied


def channel_values(model: onnx.ModelProto) -> list[str]:
    """Names of the values that are rounded and can be scaled; what a bound follows at once is not rounded itself."""
    graph = model.graph
    bounded = {node.input[0] for node in graph.node if node.op_type in BOUNDED}
    found = scaled_together(graph, Weights(graph))
    return [value for together in found for value in together.values if value not in bounded]


def _factors(together: ScaledTogether, seen: list[NDArray[np.float32]], weights: Weights) -> Array:
    """The factor of each channel, such that the largest range stays what it is."""
    relative = np.max([value / max(float(value.max()), 1e-30) for value in seen], 0)
    used, ranges = relative > 0, np.maximum(relative, LEAST_RANGE)
    depthwise = all(weights.tensors[node.input[1]].dims[1] == 1 for node in together.readers)
    if depthwise:
        factors = 1 / ranges
    else:
        read = np.max([_read_by(node, weights) for node in together.readers], 0)
        factors = (np.clip(read / SMALL, 1e-6, 1) / ranges) ** STRENGTH
        factors /= (factors * ranges).max()
    if together.bounded:
        factors = np.clip(factors, 1, 1 / ranges)
    # Nothing is known of channels that no sample used, and the smallest factor has the most room.
    return np.where(used, factors, factors[used].min() if used.any() else 1).astype(np.float32)


def _read_by(node: onnx.NodeProto, weights: Weights) -> Array:
    """The largest weight of each input channel, as a fraction of the largest of all."""
    weight = np.abs(weights[node.input[1]])
    groups = _groups(node)
    largest = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).max((1, 3)).reshape(-1)
    return np.asarray(largest / max(float(largest.max()), 1e-30))


def scaled_together(graph: onnx.GraphProto, weights: Weights) -> list[ScaledTogether]:
    """All sets of values between layers with nothing but homogeneous operations among them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    clipped = [node.output[0] for node in graph.node if node.op_type == "Clip"]
    fixed = [value.name for value in (*graph.input, *graph.output)]
    layers = []
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        flowing = [name for name in node.input if name and name not in weights.tensors]
        if weights.linear(node) and flowing == [node.input[0]]:
            layers.append(node)
        elif _homogeneous(node, flowing, made, weights):
            for name in flowing:
                parent[root(name)] = root(node.output[0])
        else:
            fixed += [*flowing, *node.output]
    sets: dict[str, ScaledTogether] = {}
    for node in layers:
        sets.setdefault(root(node.output[0]), ScaledTogether()).makers.append(node)
        sets.setdefault(root(node.input[0]), ScaledTogether()).readers.append(node)
    out = {root(name) for name in fixed}
    for name in list(parent):
        if root(name) in sets:
            sets[root(name)].values.append(name)
    for name in clipped:
        if root(name) in sets:
            sets[root(name)].bounded = True
    return [one for name, one in sets.items() if name not in out and one.makers and _fits(one, weights)]


def _homogeneous(
    node: onnx.NodeProto, flowing: list[str], made: Mapping[str, onnx.NodeProto], weights: Weights
) -> bool:
    """Whether scaling the channels of what flows in scales those of what flows out."""
    if node.op_type not in HOMOGENEOUS:
        return False
    if node.op_type == "Add":
        return len(flowing) == 2
    if node.op_type == "Clip":
        low = node.input[1] if len(node.input) > 1 else ""
        constant = all(name in weights.tensors for name in node.input[1:] if name)
        return constant and (not low or float(numpy_helper.to_array(weights.tensors[low])) == 0)
    before = made.get(node.input[0])
    # Maps of one position keep their channels when they become rows.
    pooled = before is not None and before.op_type in ("GlobalAveragePool", "Gemm")
    return node.op_type not in ("Flatten", "Reshape") or pooled


def _fits(together: ScaledTogether, weights: Weights) -> bool:
    """Whether all layers have as many channels on this side."""
    makes = {weights.tensors[node.input[1]].dims[0] for node in together.makers}
    reads = {weights.tensors[node.input[1]].dims[1] * _groups(node) for node in together.readers}
    return bool(reads) and len(makes | reads) == 1


def _groups(node: onnx.NodeProto) -> int:
    return int(attributes(node).get("group", 1))


def _scale(together: ScaledTogether, factors: Array, weights: Weights) -> None:
    for node in together.makers:
        weight = weights[node.input[1]]
        weights[node.input[1]] = weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
        if len(node.input) > 2:
            weights[node.input[2]] = weights[node.input[2]] * factors
    for node in together.readers:
        weight = weights[node.input[1]]
        rows = as_rows(node, weight)
        parts = rows.reshape(*rows.shape[:2], -1, weight.shape[1])
        scaled = parts / factors.reshape(len(rows), 1, 1, -1)
        weights[node.input[1]] = from_rows(node, scaled.reshape(rows.shape), weight.shape)
