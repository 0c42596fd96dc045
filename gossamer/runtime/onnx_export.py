"""A torch module as one small `.onnx` file."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.compact.free_dimensions import Call, Free, free_dimensions
from gossamer.compact.torch_export import export_failure, masks_as_given, plain_outputs, refuse_compiled, silent
from gossamer.constraints.apply import materialize
from gossamer.core import record
from gossamer.core.arguments import arguments
from gossamer.core.conditions import own_conditions
from gossamer.core.copies import state_of
from gossamer.core.kinds import checked_arguments
from gossamer.core.outputs import places, tensors
from gossamer.errors import BadInput
from gossamer.graph.tracer import warm_up
from gossamer.runtime.metadata import PREPROCESSING, STRUCTURE, Interface
from gossamer.runtime.onnx_clean import clean
from gossamer.runtime.onnx_registry import one_registry

LIMIT = 2**31 - 2**20  # protobuf refuses messages of 2 GiB


@checked_arguments
@own_conditions()
def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    free: Free | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network in eval mode and float32 as one ONNX file.

    BatchNorm is folded, nothing but what is needed to run is stored, weighted nodes carry the name of their torch
    module. Where the network gives dicts or tuples, metadata says where the outputs stand in them (`STRUCTURE`, JSON),
    and `open_runner` gives them back. Tensors lie in `<name>.data` next to the file only above 2 GiB.

    Args:
        model: is not touched.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments, whose names the
            inputs of the file then have.
        path: of the file.
        dynamic_batch: the first dimension of every input that shares it with the first one is free.
        free: further free dimensions with their names, by number or name of the argument, instead of the batch there:
            `{0: {0: "time", 1: "batch"}}`. One name is one size everywhere. A network that was read from an ONNX file
            has the free dimensions of that file, besides the names of its inputs and outputs and its metadata.
        about: how images become inputs and what the classes are, as `core.task.description` tells it; it goes into the
            metadata (`PREPROCESSING`, JSON).

    Returns:
        The path.

    Raises:
        BadInput: the network cannot be exported; it names the operation.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     net, length = torch.nn.Conv1d(3, 4, 3), {0: {0: "batch", 2: "length"}}
        ...     export_onnx(net, torch.zeros(1, 3, 16), Path(folder) / "net.onnx", free=length).name
        'net.onnx'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    refuse_compiled(model, "ONNX")
    copied = materialize(model).cpu().float().eval()
    args, kwargs = _in_float32(arguments(example_inputs))
    found: Any = getattr(copied, "interface", None)
    own = found if isinstance(found, Interface) else Interface()
    # What a file says to be free may be more than torch can follow. Then less is free: its other sizes, or its batch,
    # since a file may fix that, and hold states whose samples stand elsewhere.
    maybe = own.free if free is None and dynamic_batch else None
    tries = [(maybe, dynamic_batch)]
    if own.inputs and free is None and dynamic_batch:
        tries += [(None, True), (maybe, False), (None, False)]
    for number, (others, batch) in enumerate(tries):
        call = free_dimensions(copied, args, kwargs, free or {}, dynamic_batch=batch, maybe=others)
        try:
            program, lengths = _program(copied, call)
            break
        except BadInput:
            if number == len(tries) - 1:
                raise
    note_structure(program, copied, call)
    program.model.metadata_props.update(own.metadata)
    if about:
        program.model.metadata_props[PREPROCESSING] = json.dumps(about)
    if sum(p.numel() * p.element_size() for p in state_of(copied).values()) > LIMIT:
        program.save(str(path), external_data=True)
        return path
    proto = program.model_proto
    if lengths:
        _forget_shapes(proto.graph)
    write_onnx(clean(proto, dims=call.names, inputs=call.inputs or own.inputs, outputs=own.outputs), path)
    return path


def _program(model: nn.Module, call: Call) -> tuple[Any, bool]:
    """The exported network, and whether a recurrent layer in it takes sequences of any length; raises BadInput."""
    with silent(), torch.no_grad(), plain_outputs(model):
        try:
            warm_up(model, call.kwargs or call.args)
            program = _export(model, call)
            lengths = _free_lengths(program.exported_program)
            if lengths:
                _forget_noted_shapes(program.model)
            program.optimize()
        except Exception as error:
            raise BadInput(export_failure(model, "ONNX", error, call, partial(_export, model))) from error
    return program, lengths


@masks_as_given()
@one_registry()
def _export(model: nn.Module, call: Call) -> Any:
    call = call.again()
    return torch.onnx.export(
        model,
        call.args if call.kwargs else (*call.args, {}),  # or a last argument that is a dict would be taken for keywords
        kwargs=call.kwargs or None,
        dynamo=True,
        verbose=False,
        optimize=False,
        dynamic_shapes=call.shapes,
    )


def _free_lengths(program: torch.export.ExportedProgram) -> bool:
    """Whether a recurrent layer takes sequences of any length.

    torch notes the example's length for what such a layer gives, and its optimizer would build that in.
    """
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.")
        if name in ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"):
            time = 1 if node.args[8 if len(node.args) > 8 else -1] else 0
            if not isinstance(node.args[0].meta["val"].shape[time], int):
                return True
    return False


def _forget_noted_shapes(model: Any) -> None:
    """Remove what torch notes of the shapes of values, so that the optimizer finds them from the operations."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Remove all shapes but those of inputs and weights: they are found again from the operations."""
    graph.ClearField("value_info")
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _in_float32(inputs: Any) -> Any:
    """Inputs on the CPU, floating point ones in single precision: so the exported network has its weights."""

    def single(x: Tensor) -> Tensor:
        if x.is_complex():
            raise BadInput("no runtime takes complex numbers; give the network torch.view_as_real(x)")
        return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()

    return tree_map_only(Tensor, single, inputs)


@torch.no_grad()
def note_structure(program: Any, model: nn.Module, call: Call) -> None:
    """Into the metadata of an exported program: where its outputs stand, unless there is one tensor alone."""
    outputs = model(*call.args, **call.kwargs)
    structure = None if isinstance(outputs, Tensor) else places(outputs)
    if structure is not None and len(list(tensors(outputs))) == len(program.model.graph.outputs):
        program.model.metadata_props[STRUCTURE] = json.dumps(structure)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a checked model under a temporary name and rename it."""
    onnx.checker.check_model(model)
    record.write_bytes(path, model.SerializeToString())
