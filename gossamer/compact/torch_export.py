"""What all exports through torch's exporter share: a free batch, plain outputs, silence, and one line of reason."""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.outputs import plain


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within, the network gives tuples and dicts where it gives objects of classes that exporters may not know."""
    hook = model.register_forward_hook(lambda module, inputs, output: plain(output))
    try:
        yield
    finally:
        hook.remove()


def free_batch(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The inputs with a batch of at least 2 (some versions of torch take 1 as fixed) and which dimension is free, by
    the parameters of `forward`: those of `*inputs` are one tuple, which must not be empty."""
    first = next((x for x in inputs if isinstance(x, Tensor) and x.dim()), None)
    if first is None:
        return inputs, tuple(None for _ in inputs)
    shares = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == len(first) for x in inputs]
    if len(first) == 1:
        inputs = tuple(torch.cat([x, x]) if shared else x for x, shared in zip(inputs, shares))
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if shared else None for shared in shares)
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        at = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        return inputs, (*shapes[:at], shapes[at:]) if shapes[at:] else shapes
    return inputs, shapes


def export_failure(name: str, target: str, error: BaseException, dynamic_batch: bool) -> str:
    """One line out of the exporter's report: the innermost cause."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    hint = "; if its forward fixes the batch size, pass dynamic_batch=False" if dynamic_batch else ""
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
