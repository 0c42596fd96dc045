"""An ONNX network in int8: QuantizeLinear and DequantizeLinear around what the integer kernels take."""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from gossamer.compact.torch_export import silent
from gossamer.ptq.weights import as_rows, output_axis, step_sizes
from gossamer.runtime import onnx_clean

# Everything that ONNX Runtime and OpenVINO both run on integers. Other operations stay in float32.
OPERATIONS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Split",
)  # fmt: skip
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DECODING = ("Add", "Mul", "Concat")


def quantize_graph(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    *,
    exclude: Collection[str] = (),
    steps: Mapping[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """The int8 network: weights symmetric per output channel, activations uint8 with a zero point, biases int32.

    ranges: of every float value, by name. exclude: names of nodes that stay in float32. steps: step sizes of weights,
    shape (O,), by name; where they are not given, the smallest with which no kernel saturates.
    """
    from onnxruntime.quantization import QuantType, quant_utils
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    left = sorted({*exclude, *decoding(copied.graph)})
    options = {"TensorQuantOverrides": _overrides(copied.graph, steps or {})}
    with silent():
        prepared = quant_utils.save_and_reload_model_with_shape_infer(copied)
        quantizer = QDQQuantizer(
            prepared, True, False, QuantType.QInt8, QuantType.QUInt8, data, [], left, list(OPERATIONS), options
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    float_outputs(result.graph)
    drop_zero_points(result.graph)
    onnx_clean.merge_initializers(result.graph)
    rename(result.graph)
    onnx_clean.strip(result)
    return result


def _overrides(graph: onnx.GraphProto, steps: Mapping[str, NDArray[np.float32]]) -> dict[str, list[dict[str, Any]]]:
    """Step sizes of all weights of convolutions and matrix products, as ONNX Runtime's quantizer takes them."""
    from onnxruntime.quantization import QuantType

    stored = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if name not in stored or name in found or (node.op_type == "MatMul" and len(stored[name].dims) != 2):
            continue
        weight = numpy_helper.to_array(stored[name])
        step = steps.get(name, step_sizes(as_rows(node, weight)).reshape(-1))
        code = {"quant_type": QuantType.QInt8, "zero_point": np.int8(0), "axis": output_axis(node)}
        found[name] = [{**code, "scale": np.float32(one)} for one in step]
    return found


def decoding(graph: onnx.GraphProto) -> set[str]:
    """Names of the sums, products and joins behind the last layers with weights, as detectors decode boxes by them.

    They take hardly any time, and what they give has the precision of the outputs: coordinates in 256 steps are off by
    pixels. A sum with a constant right behind a layer is its bias.
    """
    stored = {tensor.name for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    found, seen = set[str](), set[str]()
    waiting = [value.name for value in graph.output]
    while waiting:
        node = made.get(waiting.pop())
        if node is None or node.name in seen or _has_weights(node, stored):
            continue
        seen.add(node.name)
        others = [made[name] for name in node.input if name in made]
        bias = node.op_type == "Add" and len(others) == 1 and _has_weights(others[0], stored)
        if node.op_type in DECODING and not bias:
            found.add(node.name)
        waiting += node.input
    return found


def _has_weights(node: onnx.NodeProto, stored: Collection[str]) -> bool:
    return node.op_type in LAYERS and node.input[1] in stored


def float_outputs(graph: onnx.GraphProto) -> None:
    """Matrix products that make an output give it in float32 at once instead of rounding it once more."""
    made = {node.output[0]: node for node in graph.node}
    for value in graph.output:
        chain = [made.get(value.name)]
        for _ in range(2):
            chain.append(made.get(chain[-1].input[0]) if chain[-1] is not None else None)
        last, rounding, product = chain
        if last is None or rounding is None or product is None or product.op_type not in ("Gemm", "MatMul"):
            continue
        alone = sum(list(node.input).count(product.output[0]) for node in graph.node) == 1
        if last.op_type == "DequantizeLinear" and rounding.op_type == "QuantizeLinear" and alone:
            product.output[0] = value.name
            graph.node.remove(last)
            graph.node.remove(rounding)


def drop_zero_points(graph: onnx.GraphProto) -> None:
    """Leave out zero points of convolution weights and of biases, which are all zero: the code type is known without.

    Those of matrix products stay: without them ONNX Runtime does not take its integer kernel.
    """
    stored = {tensor.name for tensor in graph.initializer}
    products = {name for node in graph.node if node.op_type in ("Gemm", "MatMul") for name in node.input[:2]}
    for node in graph.node:
        constant = node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in stored
        if constant and node.output[0] not in products:
            del node.input[2]


def rename(graph: onnx.GraphProto) -> None:
    """Short names for everything but inputs, outputs and the nodes that compute."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    fresh = (name for number in itertools.count() if (name := f"{number:x}") not in kept)
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.ClearField("name")
        for values in (node.input, node.output):
            values[:] = [n if n in kept else names.get(n) or names.setdefault(n, next(fresh)) for n in values]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
