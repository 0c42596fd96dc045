"""What all exports through torch's exporter share: plain outputs, silence, and one line of reason."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer
from torch.utils._pytree import tree_leaves

from gossamer.compact.free_dimensions import Call
from gossamer.core.copies import check_network
from gossamer.core.outputs import plain
from gossamer.errors import BadInput
from gossamer.graph.tracer import trace


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within, the network gives tuples and dicts where it gives objects of classes that exporters may not know."""
    hook = model.register_forward_hook(lambda module, inputs, output: plain(output))
    try:
        yield
    finally:
        hook.remove()


def refuse_compiled(model: nn.Module, target: str) -> None:
    """Raise BadInput for what is no network, and for TorchScript, from which torch exports nothing."""
    check_network(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"its module {name!r}" if name else "it"
            raise BadInput(
                f"{type(model).__name__} cannot be exported to {target}: {what} is compiled by TorchScript; export the "
                "module that it was made from"
            )


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Within, torch's transformers do not look at the numbers of a mask to find out whether it is the causal one.

    No exporter can follow that, and the mask gives the same result.
    """
    look = getattr(transformer, "_detect_is_causal_mask", None)
    if look is None:  # private to torch: another version may do without
        yield
        return
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = look


@masks_as_given()
def exported_program(model: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """The graph of a run by torch's exporter.

    Where that builds a free size in, torch reads the Python code itself: `len(x)` is a plain number otherwise.
    """
    try:
        run = call.again()
        return torch.export.export(model, run.args, run.kwargs, dynamic_shapes=run.shapes)
    except Exception:
        if call.shapes is not None:
            run = call.again()
            with contextlib.suppress(Exception):
                return torch.export.export(model, run.args, run.kwargs, dynamic_shapes=run.shapes, strict=True)
        raise


def export_failure(
    model: nn.Module, target: str, error: BaseException, call: Call, again: Callable[[Call], Any] | None = None
) -> str:
    """One line out of the exporter's report: the innermost cause, and advice where it helps.

    Args:
        model: the network.
        target: what it was exported to, for the text.
        error: of the exporter.
        call: the run that failed.
        again: exports a run, to find out whether nothing free helps; None: torch's own exporter.
    """
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    hint = ""
    if call.shapes is not None:
        with contextlib.suppress(Exception):
            again(call.fixed()) if again is not None else exported_program(model, call.fixed())
            named = f"free dimensions {sorted(set(call.names.values()))}" if call.names else "the batch size"
            away = "leave them out of `free`" if call.names else "pass dynamic_batch=False"
            hint = f"; its forward fixes {named}: {away}"
    name = type(model).__name__
    why = _known_reason(model, target, cause, call) or f"{type(cause).__name__}: {lines[0] if lines else cause}{hint}"
    return f"{name} cannot be exported to {target}: {why}"


def _known_reason(model: nn.Module, target: str, cause: BaseException, call: Call) -> str | None:
    """What no file can hold, where the network does that: torch says it in words about its exporter."""
    with contextlib.suppress(Exception), torch.no_grad():
        numbers = () if target == "ONNX" else (int, float)  # an ONNX file gives tensors alone
        run = call.again()
        for leaf in tree_leaves(plain(model(*run.args, **run.kwargs))):
            if leaf is not None and not isinstance(leaf, (torch.Tensor, *numbers)):
                return (
                    f"it gives a {type(leaf).__name__}; files give tensors, alone or in tuples, lists, dicts and "
                    "dataclasses: leave it out, or give it as a tensor"
                )
        found = trace(model, run.kwargs or run.args)
        if any(op.name == "aten._pack_padded_sequence" for op in found.ops):
            return (
                "it packs sequences by their lengths (pack_padded_sequence), and files have no such sequences: run "
                "the recurrent layer on the padded batch in eval mode, and take what lies at each one's last step"
            )
    if type(cause).__name__ == "GuardOnDataDependentSymNode":
        return (
            "its forward decides by numbers that it computes (`if x.sum() > 0`, `int(x)`), and a file has one way for "
            "all inputs: compute both and choose with torch.where"
        )
    return None


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
