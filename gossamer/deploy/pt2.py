"""A torch module as a `.pt2`: a graph with its weights, for torch itself, without the class and without pickle."""

import copy
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import record
from gossamer.deploy.onnx_export import free_batch, plain_outputs, reason, silent
from gossamer.deploy.pt2_guard import harmless
from gossamer.errors import BadInput, CorruptFile
from gossamer.network import bake


def export_pt2(
    model: nn.Module, example_inputs: tuple[Any, ...], path: Path | str, *, dynamic_batch: bool = True
) -> Path:
    """Write the module in eval mode as one `.pt2` file; gives the path. The module is not touched.

    dynamic_batch: the first dimension of every input that shares it with the first one is free.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    copied = bake(model).eval()
    inputs, shapes = free_batch(copied, example_inputs) if dynamic_batch else (example_inputs, None)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            program = torch.export.export(copied, inputs, dynamic_shapes=shapes)
        except Exception as error:
            raise BadInput(reason(type(model).__name__, ".pt2", error, dynamic_batch)) from error
        # Not needed to run: the example inputs would be pickled, the stack traces name the user's folders.
        program._example_inputs = None
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    record.write_bytes(path, buffer.getvalue())
    return path


def load_pt2(path: Path | str) -> nn.Module:
    """The network of a `.pt2` file, in eval mode, callable like the original. Raises CorruptFile.

    Nothing is unpickled: a file that holds pickled or compiled parts is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with silent():
            return Frozen(torch.export.load(io.BytesIO(harmless(path.read_bytes()))).module())
    except Exception as error:
        raise CorruptFile(f"{path} is not a .pt2 file that can be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]


class Frozen(nn.Module):
    """An exported graph. It has no train mode, so eval() and train(False) do nothing and train() is refused."""

    out_of_file = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network  # not `graph`: an exporter looks for the parameters below that name in torch's own graph
        self.training = False

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        with silent():  # torch warns of itself when its graphs are copied
            return Frozen(copy.deepcopy(self.network, memo))

    def train(self, mode: bool = True) -> "Frozen":
        if mode:
            raise BadInput("a network out of a .pt2 file cannot be trained: it was exported in eval mode")
        return self
