"""ONNX Runtime with operators that count bits: an `.onnx`, and beside it the library that has the operators."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.onnx_read import read_onnx
from gossamer.runtime.operators.library import find_library
from gossamer.runtime.operators.rewrite import binary_layers
from gossamer.runtime.sessions import open_session


def write_onnx_binary(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, _: Any) -> None:
    """The usual `.onnx` with its binary layers replaced.

    Raises:
        BadInput: no layer has binary weights and inputs.
        MissingExtra: the library is neither in the package nor can be built.
    """
    library = find_library()
    exported = read_onnx(export_onnx(model, inputs, path))
    if not binary_layers(exported):
        path.unlink()
        raise BadInput(
            "no layer has signs as weights and as inputs, so nothing counts bits; binarize the network first, or "
            "export it without this target"
        )
    write_onnx(exported, path)
    shutil.copyfile(library, path.with_name(library.name))


def open_onnx_binary(path: Path) -> Any:
    """With the package's own library, not with the one beside the file."""
    session = open_session(path, threads=1)
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in session.run(None, given))

    return run
