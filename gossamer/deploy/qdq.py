"""An ONNX network in int8: QuantizeLinear and DequantizeLinear around what the integer kernels take."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from gossamer.deploy import onnx_clean
from gossamer.deploy.onnx_export import silent

# Everything that ONNX Runtime and OpenVINO both run on integers. Other operations stay in float32.
OPERATIONS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Split",
)  # fmt: skip


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], *, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """The int8 network: weights symmetric per output channel, activations uint8 with a zero point, biases int32.

    ranges: of every float value, by name. exclude: names of nodes that stay in float32.
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
            prepared, True, False, QuantType.QInt8, QuantType.QUInt8, data, [], list(exclude), list(OPERATIONS), {}
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    drop_zero_points(result.graph)
    onnx_clean.merge_initializers(result.graph)
    rename(result.graph)
    onnx_clean.strip(result)
    return result


def drop_zero_points(graph: onnx.GraphProto) -> None:
    """A zero point that is zero may be left out where the code type is known from the input."""
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in arrays:
            continue
        if not numpy_helper.to_array(arrays[node.input[2]]).any():
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
