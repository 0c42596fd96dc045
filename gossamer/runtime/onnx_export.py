"""A torch module as one small `.onnx` file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from gossamer.compact.torch_export import export_failure, free_batch, plain_outputs, silent
from gossamer.constraints.apply import materialize
from gossamer.core import record
from gossamer.core.outputs import places, tensors
from gossamer.errors import BadInput
from gossamer.runtime.metadata import PREPROCESSING, STRUCTURE
from gossamer.runtime.onnx_clean import clean

LIMIT = 2**31 - 2**20  # protobuf refuses messages of 2 GiB


def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the module in eval mode and float32 as one ONNX file; gives the path.

    BatchNorm is folded, nothing but what is needed to run is stored, weighted nodes carry the name of their torch
    module. Where the network gives dicts or tuples, metadata says where the outputs stand in them (`STRUCTURE`, JSON),
    and `open_runner` gives them back. dynamic_batch: the first dimension of every input that shares it with the first
    one is free. about: how images become inputs and what the classes are, as `core.task.description` tells it; it goes
    into the metadata (`PREPROCESSING`, JSON). Tensors lie in `<name>.data` beside the file only above 2 GiB. The
    module is not touched. Raises BadInput that names the operation when the module cannot be exported.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    copied = materialize(model).cpu().float().eval()
    inputs = tuple(x.detach().cpu() if isinstance(x, Tensor) else x for x in example_inputs)
    shapes = None
    if dynamic_batch:
        inputs, shapes = free_batch(copied, inputs)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            program = torch.onnx.export(copied, inputs, dynamo=True, verbose=False, dynamic_shapes=shapes)
        except Exception as error:
            raise BadInput(export_failure(type(model).__name__, "ONNX", error, dynamic_batch)) from error
    assert program is not None
    note_structure(program, copied, inputs)
    if about:
        program.model.metadata_props[PREPROCESSING] = json.dumps(about)
    if sum(p.numel() * p.element_size() for p in copied.state_dict().values()) > LIMIT:
        program.save(str(path), external_data=True)
        return path
    write_onnx(clean(program.model_proto), path)
    return path


@torch.no_grad()
def note_structure(program: Any, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Into the metadata of an exported program: where its outputs stand, unless there is one tensor alone."""
    outputs = model(*inputs)
    structure = None if isinstance(outputs, Tensor) else places(outputs)
    if structure is not None and len(list(tensors(outputs))) == len(program.model.graph.outputs):
        program.model.metadata_props[STRUCTURE] = json.dumps(structure)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a checked model under a temporary name and rename it."""
    onnx.checker.check_model(model)
    record.write_bytes(path, model.SerializeToString())
