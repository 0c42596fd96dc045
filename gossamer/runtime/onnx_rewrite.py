"""Operations replaced by equal ones that the runtimes have faster, or integer, kernels for."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def rewrite(model: onnx.ModelProto) -> None:
    """Apply all rewrites in place. Shapes must be known: infer them first."""
    graph = OnnxGraph(model.graph)
    for node in list(model.graph.node):
        match node.op_type:
            case "ReduceMean":
                pool_mean(graph, node)
            case "BatchNormalization":
                norm_as_convolution(graph, node)
            case "Pad":
                padded_slice_as_convolution(graph, node)


class OnnxGraph:
    """A graph with its constants, ranks and readers at hand."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.proto = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self.outputs = {value.name for value in graph.output}

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """The constant at an input, None where there is none."""
        if place >= len(node.input) or node.input[place] not in self.constants:
            return None
        return numpy_helper.to_array(self.constants[node.input[place]])

    def add_constant(self, name: str, value: Array) -> str:
        """Store a constant; gives its name."""
        tensor = numpy_helper.from_array(value, name)
        self.constants[name] = tensor
        self.proto.initializer.append(tensor)
        return name

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value, if one other node alone reads it."""
        if name in self.outputs or sum(list(node.input).count(name) for node in self.proto.node) != 1:
            return None
        return next((node for node in self.proto.node if name in node.output), None)

    def replace(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put new nodes in the place of one."""
        index = list(self.proto.node).index(node)
        self.proto.node.remove(node)
        for offset, made in enumerate(new):
            self.proto.node.insert(index + offset, made)


def pool_mean(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """ReduceMean over the image as GlobalAveragePool, then Flatten where the dimensions are dropped."""
    axes = graph.constant(node, 1)
    if axes is None or len(graph.shapes.get(node.input[0], ())) != 4 or sorted(a % 4 for a in axes) != [2, 3]:
        return
    keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    source, target = node.input[0], node.output[0]
    middle = target if keep else f"{target}_pooled"
    new = [helper.make_node("GlobalAveragePool", [source], [middle], name=node.name)]
    if not keep:
        new.append(helper.make_node("Flatten", [middle], [target], name=f"{node.name}_flat"))
    graph.replace(node, *new)


def norm_as_convolution(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """A BatchNormalization that could not be folded, of an image, as a depthwise 1x1 convolution.

    Integer kernels know convolutions only; a norm between them would go to float and back.
    """
    scale, bias, mean, variance = (graph.constant(node, place) for place in (1, 2, 3, 4))
    if scale is None or bias is None or mean is None or variance is None or len(node.output) != 1:
        return
    if len(graph.shapes.get(node.input[0], ())) != 4:
        return
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shift = bias - mean * factor
    weight = graph.add_constant(f"{node.output[0]}_factor", factor.astype(np.float32).reshape(-1, 1, 1, 1))
    offset = graph.add_constant(f"{node.output[0]}_shift", shift.astype(np.float32))
    new = helper.make_node(
        "Conv", [node.input[0], weight, offset], node.output, name=node.name, group=len(factor), kernel_shape=[1, 1]
    )
    graph.replace(node, new)


def padded_slice_as_convolution(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """Every n-th pixel, then new channels of zeros (the parameter-free shortcut of residual networks), as a strided
    1x1 convolution with a weight of zeros and ones."""
    pads, value = graph.constant(node, 1), graph.constant(node, 2)
    if pads is None or len(pads) != 8 or any(pads[[0, 2, 3, 4, 6, 7]]) or (value is not None and value.any()):
        return
    if (len(node.input) > 3 and node.input[3]) or any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
        return
    strides, slices, source = [1, 1], [], node.input[0]
    while (before := graph.producer(source)) is not None and before.op_type == "Slice":
        steps = slice_steps(graph, before)
        if steps is None:
            break
        strides = [a * b for a, b in zip(strides, steps, strict=True)]
        slices.append(before)
        source = before.input[0]
    channels = (graph.shapes.get(node.input[0]) or graph.shapes.get(source) or [0, 0])[1]
    if not slices or not channels:
        return
    weight = np.zeros((channels + int(pads[1] + pads[5]), channels, 1, 1), np.float32)
    weight[np.arange(channels) + int(pads[1]), np.arange(channels)] = 1
    name = graph.add_constant(f"{node.output[0]}_chosen", weight)
    new = helper.make_node("Conv", [source, name], node.output, name=node.name, kernel_shape=[1, 1], strides=strides)
    graph.replace(node, new)
    for old in slices:
        graph.proto.node.remove(old)


def slice_steps(graph: OnnxGraph, node: onnx.NodeProto) -> list[int] | None:
    """Steps in height and width of a Slice that takes every n-th pixel from the first on, None for any other."""
    starts, ends, axes, steps = (graph.constant(node, place) for place in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or any(starts):
        return None
    if len(graph.shapes.get(node.input[0], ())) != 4:
        return None
    result = {2: 1, 3: 1}
    for place, axis in enumerate(axes.tolist()):
        size = graph.shapes[node.input[0]][axis]
        step = 1 if steps is None else int(steps[place])
        whole = ends[place] >= (size or 2**31 - 1)
        if not whole or step < 1 or (axis not in result and step != 1):
            return None
        if axis in result:
            result[axis] *= step
    return [result[2], result[3]]
