"""Binary layers of an ONNX file as operators that count bits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from gossamer.errors import require
from gossamer.modules.binary import binary_weight
from gossamer.runtime.binary.kernels import Limits
from gossamer.runtime.binary.switches import limits_of
from gossamer.runtime.operators.library import DOMAIN

Array = NDArray[Any]
VERSION = 1  # of the operators
MOST_TERMS = 1 << 22  # of a product that float32 counts exactly, with a margin
# Functions of one value that keep or reverse the order of its numbers, where all other inputs are constants.
COMPARISONS = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Sign"))
ARITHMETIC = frozenset(("Add", "BatchNormalization", "Cast", "Identity", "Mul", "Neg", "Sub"))
ACTIVATIONS = frozenset(("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"))
MONOTONE = COMPARISONS | ARITHMETIC | ACTIVATIONS
MONOTONE_FIRST = frozenset(("Div", "Where"))  # of their first input only


@dataclass(frozen=True)
class BinaryProduct:
    """A layer with binary weights.

    Attributes:
        node: the Conv, Gemm or MatMul.
        value: that goes in, before padding.
        weight: (outputs, channels of a group, rows, columns).
        bias: (outputs,).
        attributes: of the operator.
    """

    node: onnx.NodeProto
    value: str
    weight: Tensor
    bias: Array
    attributes: dict[str, Any]

    @property
    def channels(self) -> int:
        """That go in."""
        return int(self.weight.shape[1] * self.attributes["group"])

    @property
    def dims(self) -> int:
        """Of the example that limits are found with."""
        return 2 if self.attributes["matrix"] else 4


class _Network:
    """A graph with its constants, makers and readers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.outputs = {value.name for value in model.graph.output}

    def constant(self, node: onnx.NodeProto, place: int) -> Array | None:
        """The constant at an input; None where it is none."""
        if place >= len(node.input) or node.input[place] not in self.constants:
            return None
        return numpy_helper.to_array(self.constants[node.input[place]])

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def variables(self, node: onnx.NodeProto) -> list[int]:
        """The inputs that are no constants."""
        return [place for place, name in enumerate(node.input) if name and name not in self.constants]


def binary_layers(model: onnx.ModelProto) -> list[str]:
    """Replace layers whose weights and inputs are signs by operators that count bits, in place.

    The chain of operations in front of a layer that makes the signs (batch norm, shift, comparison) becomes one limit
    for each channel, found by bisection with ONNX Runtime itself, so that the signs are those of the file as it was.

    Args:
        model: with its weights inside.

    Returns:
        The names of the nodes that were replaced.
    """
    network, replaced = _Network(model), []
    for node in list(model.graph.node):
        product = _product(network, node)
        if product is None or (found := _signs(network, product)) is None:
            continue
        _replace(network, product, *found)
        replaced.append(node.name or node.output[0])
    if replaced:
        _remove_unread(model)
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return replaced


def _product(network: _Network, node: onnx.NodeProto) -> BinaryProduct | None:
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    plain = {"group": 1, "outside": 0, "matrix": 1, "pads": [0] * 4, **_square(1)}
    match node.op_type:
        case "Conv":
            return _convolution(network, node, given)
        case "Gemm" if given.get("transA", 0) == 0 and given.get("alpha", 1) == 1 == given.get("beta", 1):
            weight, bias = network.constant(node, 1), network.constant(node, 2)
            if weight is not None and not given.get("transB", 0):
                weight = weight.T
            if len(node.input) > 2 and bias is None:
                return None
        case "MatMul":
            weight, bias = network.constant(node, 1), None
            weight = weight.T if weight is not None and weight.ndim == 2 else None
        case _:
            return None
    return None if weight is None else _checked(node, node.input[0], weight[:, :, None, None], bias, plain)


def _square(size: int) -> dict[str, list[int]]:
    return {name: [size, size] for name in ("kernel_shape", "strides", "dilations")}


def _convolution(network: _Network, node: onnx.NodeProto, given: dict[str, Any]) -> BinaryProduct | None:
    weight, bias = network.constant(node, 1), network.constant(node, 2)
    automatic = given.get("auto_pad", b"NOTSET") != b"NOTSET"
    if weight is None or weight.ndim != 4 or automatic or (len(node.input) > 2 and bias is None):
        return None
    pads, outside, value = list(given.get("pads", [0] * 4)), 0, node.input[0]
    pad = network.makers.get(value)
    if pad is not None and pad.op_type == "Pad" and not any(pads):
        amounts, filled = network.constant(pad, 1), network.constant(pad, 2)
        mode = next((one.s for one in pad.attribute if one.name == "mode"), b"constant")
        number = 0.0 if filled is None else float(filled)
        if amounts is None or amounts.shape != (8,) or mode != b"constant" or number not in (-1, 0, 1):
            return None
        if any(amounts[[0, 1, 4, 5]]) or min(amounts) < 0:
            return None
        pads, outside, value = [int(amounts[place]) for place in (2, 3, 6, 7)], int(number), pad.input[0]
    attributes = {"kernel_shape": list(weight.shape[2:]), "group": given.get("group", 1), "matrix": 0}
    for name in ("strides", "dilations"):
        attributes[name] = list(given.get(name, [1, 1]))
    return _checked(node, value, weight, bias, attributes | {"pads": pads, "outside": outside})


def _checked(
    node: onnx.NodeProto, value: str, weight: Array, bias: Array | None, attributes: dict[str, Any]
) -> BinaryProduct | None:
    """The layer, if its weights are signs and their products integers that float32 holds."""
    outputs = len(weight)
    added = np.zeros(outputs, np.float32) if bias is None else bias.reshape(-1)
    if weight.dtype != np.float32 or weight[0].size > MOST_TERMS or added.shape not in ((1,), (outputs,)):
        return None
    tensor = torch.from_numpy(weight.copy())
    if binary_weight(tensor) is None:
        return None
    return BinaryProduct(node, value, tensor, np.broadcast_to(added, outputs).astype(np.float32), attributes)


def _signs(network: _Network, product: BinaryProduct) -> tuple[str, Limits] | None:
    """The value that a layer's signs are made of, as far back as it goes, and when its numbers become 1."""
    found = None
    for root, nodes in _chains(network, product.value):
        limits = _limits(network, product, root, nodes)
        found = (root, limits) if limits is not None else found
    return found


def _chains(network: _Network, value: str) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
    """The monotone functions of one value that end in `value`, the shortest first."""
    nodes: list[onnx.NodeProto] = []
    while (node := network.makers.get(value)) is not None and len(node.output) == 1:
        variables = network.variables(node)
        first = node.op_type in MONOTONE_FIRST or (node.op_type == "Conv" and _is_scale(network, node))
        if len(variables) != 1 or not (node.op_type in MONOTONE or (first and variables == [0])):
            return
        nodes = [node, *nodes]
        value = node.input[variables[0]]
        yield value, nodes


def _is_scale(network: _Network, node: onnx.NodeProto) -> bool:
    """Whether a convolution multiplies each channel by a number, as the export writes a batch norm of an image."""
    weight = network.constant(node, 1)
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if weight is None or weight.shape != (given.get("group", 1), 1, 1, 1):
        return False
    return not any(given.get("pads", [0])) and set(given.get("strides", [1])) == {1} and "auto_pad" not in given


def _limits(network: _Network, product: BinaryProduct, root: str, nodes: list[onnx.NodeProto]) -> Limits | None:
    """By running the chain in ONNX Runtime; None where it gives other numbers than signs, or is no chain of floats."""
    ort, channels, ones = require("onnxruntime"), product.channels, [1] * (product.dims - 2)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "signs",
        [helper.make_tensor_value_info(root, onnx.TensorProto.FLOAT, ["n", channels, *ones])],
        [helper.make_tensor_value_info(product.value, onnx.TensorProto.FLOAT, None)],
        [tensor for name, tensor in network.constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=network.model.opset_import, ir_version=network.model.ir_version)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    # As the file itself is run: else a batch norm may be computed in another order.
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # of the library, of many kinds: a chain of numbers that are no floats
        return None

    def signs(x: Tensor) -> Tensor:
        made = session.run(None, {root: x.reshape(len(x), channels, *ones).numpy()})[0]
        if made.shape != (len(x), channels, *ones):
            raise ValueError("not one number for each channel")
        return torch.from_numpy(made).reshape(x.shape)

    try:
        return limits_of(signs, channels)
    except ValueError:
        return None


def _replace(network: _Network, product: BinaryProduct, root: str, limits: Limits) -> None:
    """Put the operator in the place of the layer, and into it the bias that is added behind."""
    node, name = product.node, product.node.name or product.node.output[0]
    split = binary_weight(product.weight)
    assert split is not None
    signs, scales = split[0].flatten(1).numpy(), split[1].numpy()
    output, bias = node.output[0], product.bias
    added = _added(network, product)
    if added is not None and not bias.any():
        bias, output = added[0], added[1].output[0]
        network.graph.node.remove(added[1])
    arrays = {
        "signs": limits.signs,
        "limits": limits.limits,
        "weight": np.packbits(signs, axis=1, bitorder="little"),
        "scales": scales,
        "bias": bias,
    }
    for kind, array in arrays.items():
        network.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}:{kind}"))
    made = helper.make_node(
        "SignProduct",
        [root, *(f"{name}:{kind}" for kind in arrays)],
        [output],
        name=name,
        domain=DOMAIN,
        **product.attributes,
    )
    place = list(network.graph.node).index(node)
    network.graph.node.remove(node)
    network.graph.node.insert(place, made)
    network.makers[output] = made


def _added(network: _Network, product: BinaryProduct) -> tuple[Array, onnx.NodeProto] | None:
    """The constant that is added to every output of a layer, and the node that adds it, if nothing else reads it."""
    made, outputs = product.node.output[0], len(product.weight)
    readers = network.readers(made)
    if made in network.outputs or len(readers) != 1 or readers[0].op_type != "Add":
        return None
    constants = [found for place in (0, 1) if (found := network.constant(readers[0], place)) is not None]
    shape = (outputs,) if product.attributes["matrix"] else (outputs, 1, 1)
    if len(constants) != 1 or constants[0].shape not in (shape, (1, *shape)):
        return None
    return constants[0].reshape(-1).astype(np.float32), readers[0]


def _remove_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for tensor in [one for one in graph.initializer if one.name not in wanted]:
        graph.initializer.remove(tensor)
    for value in [one for one in graph.value_info if one.name not in wanted]:
        graph.value_info.remove(value)
