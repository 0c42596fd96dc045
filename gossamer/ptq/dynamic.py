"""An ONNX network whose matrix products run in int8 with ranges that are taken while it runs: for transformers, whose
activations have a few large channels that differ from sample to sample.

Source: Zafrir, Boudoukh, Izsak, Wasserblat 2019, arXiv:1910.06188 (symmetric 8-bit weights of BERT's products).
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gossamer.ptq.weights import Weights, as_rows, attributes, step_sizes
from gossamer.runtime import onnx_clean

LEAST_TABLE = 2**14  # numbers of a table of embeddings; smaller ones stay float32
LARGEST = 127
LEAST_OPSET = 11  # has DynamicQuantizeLinear


def is_mostly_products(model: onnx.ModelProto) -> bool:
    """Whether most of a network's numbers are in what can be made dynamic: products by matrices, and tables. Not in
    files of an opset before 11: a later one would give their operators another meaning."""
    if any(entry.version < LEAST_OPSET for entry in model.opset_import if entry.domain in ("", "ai.onnx")):
        return False
    weights = Weights(model.graph)
    taken = sum(weights[name].size for name in _taken(model.graph, weights))
    return 2 * taken > sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


def quantize(
    model: onnx.ModelProto, *, exclude: Collection[str] = (), steps: Mapping[str, NDArray[np.float32]] | None = None
) -> onnx.ModelProto:
    """The int8 network: products of int8 weights, one step per output channel, with uint8 inputs, one step per call.

    Large tables that rows are taken from become int8, too, with a step per row.

    Args:
        model: the float32 network.
        exclude: names of nodes that stay in float32.
        steps: step sizes of weights, shape (O,), by name; where they are not given, the smallest with which no kernel
            saturates.

    Returns:
        A copy. It needs no calibration data.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph, weights = copied.graph, Weights(copied.graph)
    taken = _taken(graph, weights)
    rewriter = _Rewriter(graph, weights, steps or {})
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        one = node.name not in exclude and _weight(node) in taken
        nodes += rewriter.rewritten(node) if one else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    onnx_clean.strip(copied)
    return copied


def _weight(node: onnx.NodeProto) -> str:
    """The name of the weight that a node may have; "" where it has none."""
    return node.input[0] if node.op_type == "Gather" else node.input[1] if len(node.input) > 1 else ""


def _taken(graph: onnx.GraphProto, weights: Weights) -> set[str]:
    """Names of the weights that can become int8."""
    found = set[str]()
    for node in graph.node:
        table = node.op_type == "Gather" and node.input[0] in weights and not attributes(node).get("axis", 0)
        if table:
            tensor = weights.tensors[node.input[0]]
            table = len(tensor.dims) == 2 and int(np.prod(tensor.dims)) >= LEAST_TABLE
            table = table and tensor.data_type == onnx.TensorProto.FLOAT
        if table or weights.product(node) or (node.op_type == "Gemm" and weights.linear(node)):
            found.add(_weight(node))
    return found


class _Rewriter:
    """Makes the nodes that take the place of one; inputs that several products read are quantized once."""

    def __init__(self, graph: onnx.GraphProto, weights: Weights, steps: Mapping[str, NDArray[np.float32]]) -> None:
        self.graph, self.weights, self.steps = graph, weights, steps
        self.quantized: dict[str, tuple[str, str, str]] = {}

    def rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """In the order in which they run."""
        return self._table(node) if node.op_type == "Gather" else self._product(node)

    def _product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        name, made = node.input[1], list[onnx.NodeProto]()
        rows = as_rows(node, self.weights[name])[0]
        step = self.steps[name] if name in self.steps else step_sizes(rows[None])[0]
        codes = np.rint(rows / step[:, None]).clip(-LARGEST, LARGEST).astype(np.int8)
        if node.input[0] not in self.quantized:
            parts = [f"{node.input[0]}/{part}" for part in ("codes", "step", "zero")]
            made.append(onnx.helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts))
            self.quantized[node.input[0]] = parts[0], parts[1], parts[2]
        given, given_step, zero = self.quantized[node.input[0]]
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else None
        out, inner = node.output[0], f"{node.output[0]}/product"
        weight, weight_step = self._store(f"{name}/codes", codes.T), self._store(f"{name}/step", step)
        # ONNX Runtime fuses these nodes into one only where both zero points are named.
        zeros = self._store(f"{name}/zero", np.zeros(len(step), np.int8))
        made += [
            onnx.helper.make_node("MatMulInteger", [given, weight, zero, zeros], [f"{inner}/sum"], name=node.name),
            onnx.helper.make_node("Cast", [f"{inner}/sum"], [f"{inner}/float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [given_step, weight_step], [f"{inner}/step"]),
            onnx.helper.make_node("Mul", [f"{inner}/float", f"{inner}/step"], [inner if bias else out]),
        ]
        if bias:
            made.append(onnx.helper.make_node("Add", [inner, bias], [out]))
        return made

    def _table(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        name, out = node.input[0], node.output[0]
        table = self.weights[name]
        step = np.abs(table).max(1, keepdims=True) / LARGEST
        step = np.where(step > 0, step, 1).astype(np.float32)
        codes = self._store(f"{name}/codes", np.rint(table / step).astype(np.int8))
        steps = self._store(f"{name}/step", step)
        return [
            onnx.helper.make_node("Gather", [codes, node.input[1]], [f"{out}/codes"], name=node.name, axis=0),
            onnx.helper.make_node("Gather", [steps, node.input[1]], [f"{out}/step"], axis=0),
            onnx.helper.make_node("Cast", [f"{out}/codes"], [f"{out}/float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{out}/float", f"{out}/step"], [out]),
        ]

    def _store(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.weights.tensors:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.weights.tensors[name] = tensor
            self.graph.initializer.append(tensor)
        return name
