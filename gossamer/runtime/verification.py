"""The check that a deployed network computes what the trained one does."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.kinds import checked_arguments
from gossamer.core.outputs import tensors
from gossamer.core.record import Record
from gossamer.core.runner import Runner
from gossamer.errors import BadInput, ExportMismatch

AGREEMENT = 99.9  # percent of the samples
DIFFERENCE = 1e-3  # largest difference over the largest output
ROUNDING = 1e-5  # a largest output that leads by less than this share may change places by rounding alone


@checked_arguments
@torch.no_grad()
def verify(
    reference: nn.Module | Callable[..., Any], runner: Runner, loader: Iterable[Any], *, subject: str = "result"
) -> list[Record]:
    """Compare a deployed network with its reference over a loader.

    Where the network gives several tensors, top-1 is that of the first, and all of floating-point numbers are compared,
    each relative to its own largest. Only a float32 network must agree; other precisions are recorded.

    Args:
        reference: what the outputs should be; a module is taken in eval mode.
        runner: the deployed network.
        loader: batches of inputs, with or without targets.
        subject: names the deployed network in the records.

    Returns:
        Top-1 agreement in percent, and the largest relative difference, as two records.

    Raises:
        ExportMismatch: shapes differ; or a float32 network differs by more than 1e-3 of the largest output, or names
            another class for more than 0.1 % of the samples (ties within rounding left out).
        BadInput: the loader gave no samples.

    Example:
        >>> from gossamer.runtime.runners import open_runner
        >>> network = torch.nn.Linear(8, 4)
        >>> runner = open_runner("torch", network, threads=1)
        >>> [row.value for row in verify(network, runner, [torch.ones(2, 8)])]
        [100.0, 0.0]
    """
    was_training = isinstance(reference, nn.Module) and reference.training
    if isinstance(reference, nn.Module):
        reference.eval()
    try:
        samples, same, unlike = 0, 0, 0
        differences: list[list[float]] = []
        sizes: list[list[float]] = []
        for batch in loader:
            inputs, _ = inputs_and_target(batch)
            expected, got = _tensors(reference(*inputs)), _tensors(runner(*inputs))
            should, are = ([tuple(x.shape) for x in each] for each in (expected, got))
            if should != are:
                raise ExportMismatch(f"{subject}: outputs of shape {_listed(are)}, should be {_listed(should)}")
            flips = expected[0].argmax(1) != got[0].argmax(1)
            top = expected[0].topk(min(2, expected[0].shape[1]), 1).values
            clear = (top[:, 0] - top[:, -1]) > ROUNDING * expected[0].abs().max()
            same, unlike = same + int((~flips).sum()), unlike + int((flips & clear).sum())
            samples += flips.numel()
            # A NaN must not get lost in max().
            differences.append([_largest(torch.nan_to_num(x - y, nan=torch.inf)) for x, y in zip(expected, got)])
            sizes.append([_largest(x) for x in expected])
    finally:
        if was_training and isinstance(reference, nn.Module):
            reference.train()
    if samples == 0:
        raise BadInput("verify: the loader gave no samples")
    agreement = 100 * same / samples
    relative = max(max(far) / max(*size, 1e-30) for far, size in zip(zip(*differences), zip(*sizes)))
    if runner.precision == "float32" and (100 * (1 - unlike / samples) < AGREEMENT or relative > DIFFERENCE):
        raise ExportMismatch(
            f"{subject} on {runner.runtime} {runner.version} does not compute what the network does: top-1 agreement "
            f"{agreement:.2f} % (at least {AGREEMENT} %), largest relative difference {relative:.1e} (at most "
            f"{DIFFERENCE:.0e}) over {samples} samples"
        )
    conditions = {"runtime": runner.runtime, "version": runner.version, "dtype": runner.precision}
    return [
        Record(subject=subject, what="agreement", value=agreement, unit="%", n=samples, conditions=conditions),
        Record(
            subject=subject, what="max_difference", value=relative, unit="relative", n=samples, conditions=conditions
        ),
    ]


def _tensors(output: Any) -> list[Tensor]:
    """The first tensor of an output and all others of floating-point numbers, on the CPU in float32, classes in
    dimension 1."""
    first, *others = tensors(output)
    found = [x.detach().cpu().float() for x in (first, *(x for x in others if x.is_floating_point()))]
    return [x if x.dim() > 1 else x.reshape(-1, 1) for x in found]


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))
