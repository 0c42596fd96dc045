"""A torch module as one small `.onnx` file."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer import record
from gossamer.deploy.free import Call, Free, free_dimensions
from gossamer.deploy.onnx_clean import STRUCTURE, clean
from gossamer.errors import BadInput
from gossamer.network import bake
from gossamer.network.trace import arguments, warm
from gossamer.outputs import places, plain, tensors

LIMIT = 2**31 - 2**20  # protobuf refuses messages of 2 GiB


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    free: Free | None = None,
) -> Path:
    """Write the module in eval mode and float32 as one ONNX file; gives the path.

    example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments, whose names the inputs
    of the file then have. dynamic_batch: the first dimension of every input that shares it with the first one is free.
    free: other free dimensions with their names, by number or name of the argument, instead of the batch there:
    `{0: {0: "time", 1: "batch"}}`; one name is one size everywhere.

    BatchNorm is folded, nothing but what is needed to run is stored, weighted nodes carry the name of their torch
    module. Where the network gives dicts or tuples, metadata says where the outputs stand in them (`STRUCTURE`, JSON),
    and `open_runner` gives them back. Tensors lie in `<name>.data` beside the file only above 2 GiB. The module is not
    touched. Raises BadInput that names the operation when the module cannot be exported.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    refuse_compiled(model, "ONNX")
    copied = bake(model).cpu().float().eval()
    args, kwargs = in_float32(arguments(example_inputs))
    call = free_dimensions(copied, args, kwargs, free or {}, dynamic_batch=dynamic_batch)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            warm(copied, call.kwargs or call.args)
            program = _export(copied, call)
            lengths = free_lengths(program.exported_program)
            if not lengths:
                program.optimize()
        except Exception as error:
            again = partial(_export, copied, call.fixed())
            raise BadInput(reason(copied, "ONNX", error, call, again)) from error
    assert program is not None
    note_structure(program, copied, call)
    if sum(p.numel() * p.element_size() for p in copied.state_dict().values()) > LIMIT:
        program.save(str(path), external_data=True)
        return path
    proto = program.model_proto
    if lengths:
        forget_shapes(proto.graph)
    write_onnx(clean(proto, dims=call.names, inputs=call.inputs), path)
    return path


def _export(model: nn.Module, call: Call) -> Any:
    return torch.onnx.export(
        model,
        call.args if call.kwargs else (*call.args, {}),  # or a last argument that is a dict would be taken for keywords
        kwargs=call.kwargs or None,
        dynamo=True,
        verbose=False,
        optimize=False,
        dynamic_shapes=call.shapes,
    )


def free_lengths(program: torch.export.ExportedProgram) -> bool:
    """Whether a recurrent layer takes sequences of any length. torch notes the example's length for what such a layer
    gives, and its optimizer would build that in."""
    for node in program.graph.nodes:
        name = str(node.target).removeprefix("aten.")
        if name in ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"):
            time = 1 if node.args[8 if len(node.args) > 8 else -1] else 0
            if not isinstance(node.args[0].meta["val"].shape[time], int):
                return True
    return False


def forget_shapes(graph: onnx.GraphProto) -> None:
    """All shapes but those of inputs and weights: they are found again from the operations."""
    graph.ClearField("value_info")
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def in_float32(inputs: Any) -> Any:
    """Numbers with a fraction in single precision on the CPU, as the exported network has its weights."""

    def single(x: Tensor) -> Tensor:
        return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()

    return tree_map_only(Tensor, single, inputs)


@torch.no_grad()
def note_structure(program: Any, model: nn.Module, call: Call) -> None:
    """Into the metadata of an exported program: where its outputs stand, unless there is one tensor alone."""
    outputs = model(*call.args, **call.kwargs)
    structure = None if isinstance(outputs, Tensor) else places(outputs)
    if structure is not None and len(list(tensors(outputs))) == len(program.model.graph.outputs):
        program.model.metadata_props[STRUCTURE] = json.dumps(structure)


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within, the network gives tuples and dicts where it gives objects of classes that exporters may not know."""
    hook = model.register_forward_hook(lambda module, inputs, output: plain(output))
    try:
        yield
    finally:
        hook.remove()


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a checked model under a temporary name and rename it."""
    onnx.checker.check_model(model)
    record.write_bytes(path, model.SerializeToString())


def refuse_compiled(model: nn.Module, target: str) -> None:
    """Raise BadInput for TorchScript, from which torch exports nothing."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"its module {name!r}" if name else "it"
            raise BadInput(
                f"{type(model).__name__} cannot be exported to {target}: {what} is compiled by TorchScript; export the "
                "module that it was made from"
            )


def reason(
    model: nn.Module, target: str, error: BaseException, call: Call, again: Callable[[], Any] | None = None
) -> str:
    """One line out of the exporter's report: the innermost cause; and what helps, if it does.

    again: exports with nothing free.
    """
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    hint = ""
    if call.shapes is not None:
        with contextlib.suppress(Exception):
            again() if again is not None else torch.export.export(model, call.args, call.kwargs)
            named = f"free dimensions {sorted(set(call.names.values()))}" if call.names else "the batch size"
            away = "leave them out of `free`" if call.names else "pass dynamic_batch=False"
            hint = f"; its forward fixes {named}: {away}"
    name = type(model).__name__
    return f"{name} cannot be exported to {target}: {type(cause).__name__}: {lines[0] if lines else cause}{hint}"


@contextmanager
def silent() -> Iterator[None]:
    """No warnings, prints or log lines of the exporters inside."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
