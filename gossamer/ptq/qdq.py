"""An ONNX network in int8: QuantizeLinear and DequantizeLinear around what the integer kernels take."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from gossamer.compact.torch_export import silent
from gossamer.runtime import onnx_clean

# Everything that ONNX Runtime and OpenVINO both run on integers. Other operations stay in float32.
OPERATIONS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Split",
)  # fmt: skip


def quantize_graph(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    *,
    exclude: Collection[str] = (),
    narrow: bool = False,
) -> onnx.ModelProto:
    """The int8 network: weights symmetric per output channel, activations uint8 with a zero point, biases int32.

    ranges: of every float value, by name. exclude: names of nodes that stay in float32. narrow: weights of 7 bits:
    processors with AVX2 or AVX-512 but without VNNI add pairs of 8-bit products in 16 bits, which saturates.
    """
    from onnxruntime.quantization import QuantType, quant_utils
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with silent():
        prepared = quant_utils.save_and_reload_model_with_shape_infer(copied)
        quantizer = QDQQuantizer(
            prepared, True, narrow, QuantType.QInt8, QuantType.QUInt8, data, [], list(exclude), list(OPERATIONS), {}
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
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.ClearField("name")
        for values in (node.input, node.output):
            values[:] = [n if n in kept else names.setdefault(n, f"{len(names):x}") for n in values]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
