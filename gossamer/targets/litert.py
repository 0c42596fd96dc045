"""LiteRT (once TensorFlow Lite): `.tflite`, in float32 or with 8-bit weights, activations and inputs."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import require


def write_litert(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, samples: Sequence[tuple[Tensor, ...]] | None
) -> None:
    """Convert; with samples, quantize to int8 with their ranges."""
    converted = require("litert_torch").convert(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.tflite"
        converted.export(str(plain))
        if samples is None:
            shutil.copyfile(plain, path)
        else:
            _quantize(plain, path, samples)


def _quantize(plain: Path, path: Path, samples: Sequence[tuple[Tensor, ...]]) -> None:
    quantizers, recipes = require("ai_edge_quantizer.quantizer"), require("ai_edge_quantizer.recipe")
    interpreter = _interpreter(plain)
    signatures = interpreter.get_signature_list()
    [key] = signatures
    names = signatures[key]["inputs"]
    quantizer = quantizers.Quantizer(str(plain), recipes.static_wi8_ai8())
    feeds = [{name: x.numpy() for name, x in zip(names, one)} for one in samples]
    quantizer.quantize(quantizer.calibrate({key: feeds})).export_model(str(path), overwrite=True)


def _interpreter(path: Path) -> Any:
    interpreter = require("ai_edge_litert.interpreter").Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def open_litert(path: Path) -> Any:
    """Its inputs and outputs are floats, whatever the file has."""
    interpreter = _interpreter(path)
    given, made = (
        sorted(rows(), key=lambda row: str(row["name"]))
        for rows in (interpreter.get_input_details, interpreter.get_output_details)
    )

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        for row, x in zip(given, inputs):
            interpreter.set_tensor(row["index"], _encoded(x.numpy(), row))
        interpreter.invoke()
        return tuple(torch.from_numpy(_decoded(interpreter.get_tensor(row["index"]), row)) for row in made)

    return run


def _encoded(x: Any, row: Any) -> Any:
    """Numbers in the type of the file's tensor."""
    if row["dtype"] not in (np.int8, np.uint8) or x.dtype != np.float32:
        return x.astype(row["dtype"])
    scale, zero = row["quantization"]
    limits = np.iinfo(row["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(row["dtype"])


def _decoded(x: Any, row: Any) -> Any:
    scale, zero = row["quantization"]
    return (x.astype(np.float32) - zero) * scale if row["dtype"] in (np.int8, np.uint8) else np.array(x)
