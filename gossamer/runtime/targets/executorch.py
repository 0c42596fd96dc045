"""ExecuTorch: `.pte` with the kernels of XNNPACK, for phones and boards."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import require


def write_executorch(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, _: Any) -> None:
    """Lower the exported network to XNNPACK."""
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = require("executorch.exir")
    program = torch.export.export(model, inputs)
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def open_executorch(path: Path) -> Any:
    """The method `forward`."""
    program = require("executorch.runtime").Runtime.get().load_program(str(path))
    method = program.load_method("forward")
    return lambda *inputs: tuple(x.clone() for x in (program, method)[1].execute(list(inputs)))
