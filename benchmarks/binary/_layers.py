"""One layer in the forms that are timed: int8 as a QDQ graph, and on bits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gossamer.modules.binary import BinaryConv2d, BinaryLinear
from gossamer.runtime.binary.images import BitFormat, pack_images, zero_limits
from gossamer.runtime.binary.products import SignProduct, Switches
from gossamer.runtime.binary.workers import Workers
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.onnx_read import read_onnx
from gossamer.runtime.operators.rewrite import binary_layers
from gossamer.runtime.sessions import open_session

Call = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """A layer: samples, input channels, side of the image, output channels, side of the kernel."""

    samples: int
    inputs: int
    side: int
    outputs: int
    kernel: int

    @property
    def macs(self) -> int:
        return self.samples * self.inputs * self.outputs * (self.side * self.kernel) ** 2


def int8_layer(shape: Shape, path: Path, *, quantized: bool) -> Path:
    """A QDQ graph of one layer: float to float, or `quantized`, as inside of a network: uint8 to uint8."""
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (shape.outputs, shape.inputs, shape.kernel, shape.kernel)).astype(np.int8)
    if shape.side == 1:
        weight = weight[:, :, 0, 0]
    values = {
        "w": weight,
        "ws": np.full(shape.outputs, 0.01, np.float32),
        "wz": np.zeros(shape.outputs, np.int8),
        **{name: np.float32(scale) for name, scale in (("xs", 0.02), ("ys", 0.5))},
        **{name: np.uint8(128) for name in ("xz", "yz")},
    }
    op, settings = "Gemm", dict[str, Any](transB=1)
    if shape.side > 1:
        op, settings = "Conv", {"pads": [shape.kernel // 2] * 4, "kernel_shape": [shape.kernel] * 2}
    node = helper.make_node
    before = [] if quantized else [node("QuantizeLinear", ["x", "xs", "xz"], ["q"])]
    after = [] if quantized else [node("DequantizeLinear", ["r", "ys", "yz"], ["y"])]
    layer = [
        node("DequantizeLinear", ["x" if quantized else "q", "xs", "xz"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["v"], axis=0),
        node(op, ["d", "v"], ["s"], **settings),
        node("QuantizeLinear", ["s", "ys", "yz"], ["y" if quantized else "r"]),
    ]
    kind = TensorProto.UINT8 if quantized else TensorProto.FLOAT
    image = [shape.side, shape.side] if shape.side > 1 else []
    ends = {"x": shape.inputs, "y": shape.outputs}
    infos = [helper.make_tensor_value_info(name, kind, [shape.samples, size, *image]) for name, size in ends.items()]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph([*before, *layer, *after], "layer", infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def given(shape: Shape, *, quantized: bool) -> NDArray[Any]:
    """An input."""
    size = (shape.samples, shape.inputs, *([shape.side] * 2 if shape.side > 1 else []))
    x = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    return (x * 50 + 128).clip(0, 255).astype(np.uint8) if quantized else x


def on_onnxruntime(path: Path, x: NDArray[Any], threads: int) -> Call:
    session = open_session(path, threads=threads)
    return lambda: session.run(None, {"x": x})


def on_openvino(path: Path, x: NDArray[Any], threads: int) -> Call:
    from gossamer.runtime.sessions import import_openvino

    core = import_openvino().Core()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(str(path)), "CPU", config).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)


def on_bits(shape: Shape, x: NDArray[Any], threads: int) -> dict[str, Call]:
    """The layer from numbers to numbers, packing included, and from bits to bits, as inside of a network."""
    random, workers, pad = np.random.default_rng(0), Workers(threads), shape.kernel // 2
    signs = random.random((shape.outputs, shape.inputs, shape.kernel, shape.kernel)) < 0.5
    scales = np.full(shape.outputs, 0.5, np.float32)
    product = SignProduct(signs, scales, padding=(pad,) * 4, outside=1 if pad else 0)
    form = product.input_format(shape.samples, shape.side, shape.side)
    x, limits = x.reshape(shape.samples, shape.inputs, shape.side, shape.side), zero_limits(shape.inputs)
    images = pack_images(x, form, limits, workers)
    switches = Switches(np.zeros(shape.outputs, np.int32), np.zeros(shape.outputs, bool))
    after = BitFormat(shape.samples, shape.outputs, 1, shape.side, shape.side, (pad,) * 4, 1)
    return {
        "bits": lambda: product.numbers(pack_images(x, form, limits, workers), workers),
        "bits, inside": lambda: product.bits(images, switches, after, workers),
        "packing": lambda: pack_images(x, form, limits, workers),
    }


def on_operators(shape: Shape, x: NDArray[Any], path: Path) -> Call:
    """The layer from numbers to numbers in ONNX Runtime, by gossamer's operators, one thread."""
    if shape.side == 1:
        layer: nn.Module = BinaryLinear(shape.inputs, shape.outputs, bias=False)
    else:
        layer = BinaryConv2d(shape.inputs, shape.outputs, shape.kernel, padding=shape.kernel // 2, bias=False)
    signs = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5  # type: ignore[arg-type]
    layer.weight.data = torch.where(signs, 0.5, -0.5)
    with_operators(layer.eval(), torch.from_numpy(x), path)
    session = open_session(path, threads=1)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def with_operators(model: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """An `.onnx` whose binary layers are operators that count bits."""
    exported = read_onnx(export_onnx(model, (x,), path))
    if not binary_layers(exported):
        raise RuntimeError("no layer counts bits")
    write_onnx(exported, path)
    return path
