"""ExecuTorch: `.pte` with the kernels of XNNPACK, for phones and boards; in float32 or int8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from gossamer.errors import require


def write_executorch(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, samples: Sequence[tuple[Tensor, ...]] | None
) -> None:
    """Lower the exported network to XNNPACK; with samples, quantized to int8 with their ranges."""
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = require("executorch.exir")
    program = torch.export.export(model, inputs)
    if samples is not None:
        program = torch.export.export(_quantized(program.module(), samples), inputs)
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _quantized(graph: Any, samples: Sequence[tuple[Tensor, ...]]) -> nn.Module:
    """Weights of each output channel and activations in 8 bits, by XNNPACK's own quantizer."""
    quantizers = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    steps = require("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    bounds = bounds_as_ranges(graph)
    observed = steps.prepare_pt2e(graph, quantizer)
    for node in observed.graph.nodes:
        for observer in node.users if node.name in bounds else ():
            if observer.op == "call_module":
                observed.get_submodule(observer.target).register_forward_pre_hook(
                    lambda _, x, bound=bounds[node.name]: (x[0].clamp(max=bound),)
                )
    for one in samples:
        observed(*one)
    quantized: nn.Module = steps.convert_pt2e(observed)
    return quantized


def bounds_as_ranges(graph: GraphModule) -> dict[str, float]:
    """Make a ReLU of every ReLU6 right behind a layer; the bounds by the names of their nodes.

    XNNPACK's quantizer joins a layer with a ReLU alone. Before a ReLU6 it rounds what the layer gives, in a range that
    no one reads later. A code of 8 bits ends where its range does, so that the range can be the bound.
    """
    aten, found = torch.ops.aten, {}
    layers = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
    for node in graph.graph.nodes:
        if node.target in (aten.relu6.default, aten.relu6_.default):
            bound = 6.0
        elif node.target in (aten.hardtanh.default, aten.hardtanh_.default) and node.args[1:2] == (0.0,):
            bound = float(node.args[2]) if len(node.args) > 2 else 1.0
        else:
            continue
        layer = node.args[0]
        if layer.target in layers and len(layer.users) == 1:
            node.target, node.args = aten.relu.default, (layer,)
            found[node.name] = bound
    graph.recompile()
    return found


def open_executorch(path: Path) -> Any:
    """The method `forward`."""
    program = require("executorch.runtime").Runtime.get().load_program(str(path))
    method = program.load_method("forward")
    return lambda *inputs: tuple(x.clone() for x in (program, method)[1].execute(list(inputs)))
