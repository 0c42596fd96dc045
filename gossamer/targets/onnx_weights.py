"""ONNX Runtime with weights of 4 or 8 bits and activations in float32: an `.onnx` with operators of its own."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gossamer.ptq.weight_only import quantize_weights
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.onnx_read import read_onnx
from gossamer.targets.onnx_binary import open_onnx_binary as open_onnx_weights

__all__ = ["open_onnx_weights", "write_onnx_weights"]


def write_onnx_weights(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, _: Any, *, bits: int) -> None:
    """The usual `.onnx` with its products and tables replaced.

    Raises:
        BadInput: there are none.
    """
    exported = read_onnx(export_onnx(model, inputs, path))
    path.unlink()  # nothing is left where there is nothing to replace
    write_onnx(quantize_weights(exported, bits), path)
