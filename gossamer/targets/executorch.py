"""ExecuTorch: `.pte` with the kernels of XNNPACK, for phones and boards; in float32 or int8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def _quantized(graph: nn.Module, samples: Sequence[tuple[Tensor, ...]]) -> nn.Module:
    """Weights of each output channel and activations in 8 bits, by XNNPACK's own quantizer."""
    quantizers = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    steps = require("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    observed = steps.prepare_pt2e(graph, quantizer)
    for one in samples:
        observed(*one)
    quantized: nn.Module = steps.convert_pt2e(observed)
    return quantized


def open_executorch(path: Path) -> Any:
    """The method `forward`."""
    program = require("executorch.runtime").Runtime.get().load_program(str(path))
    method = program.load_method("forward")
    return lambda *inputs: tuple(x.clone() for x in (program, method)[1].execute(list(inputs)))
