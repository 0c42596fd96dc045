"""Whether a compiled teacher is worth its compilation, by measurement."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gossamer.core.copies import copy_network
from gossamer.train.hyperparameters import computes_in_bfloat16

PLAIN, COMPILED = "plain", "compiled"
WORTH_SECONDS = 120.0  # of asking, in all: compiling takes a good part of a minute itself
GAIN = 0.9  # of the plain time, at most, for the compiled teacher to be taken
CLOSE = 0.02  # of the size of the outputs, at most, that it may be off: bfloat16 rounds otherwise where it is fused
ROUNDS = 5


@torch.no_grad()
def teacher_times(teacher: nn.Module, inputs: tuple[Any, ...], steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of the fastest of some runs for a training batch, in the precision of the training: plain, and
    compiled where so many steps could repay it and it gives the same."""
    there = copy_network(teacher).eval().to(device)
    batch = tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)
    half = computes_in_bfloat16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = there(*batch)
        found = {PLAIN: _time(there, batch)}
        if steps * found[PLAIN] / 1000 > WORTH_SECONDS:
            try:
                quick = torch.compile(there)
                if _close(quick(*batch), expected):
                    found[COMPILED] = _time(quick, batch)
            except Exception:  # compilers fail in their own ways; the plain teacher remains
                return found
    return found


def faster_form(found: dict[str, float]) -> str:
    """The one to take."""
    return COMPILED if found.get(COMPILED, float("inf")) < GAIN * found[PLAIN] else PLAIN


def _time(ask: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        ask(*inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(1000 * (time.perf_counter() - start))
    return min(spent)


def _close(outputs: Any, expected: Any) -> bool:
    pairs = [(a, b) for a, b in zip(tree_leaves(outputs), tree_leaves(expected)) if isinstance(b, Tensor)]
    return all(float((a - b).abs().max()) <= CLOSE * float(b.abs().max()) for a, b in pairs)
