"""The check that a deployed network computes what the trained one does."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, ExportMismatch
from gossamer.measure.runner import Runner
from gossamer.record import Record
from gossamer.task import split

AGREEMENT = 99.9  # percent of the samples
DIFFERENCE = 1e-3  # largest difference over the largest output
ROUNDING = 1e-5  # a largest output that leads by less than this share may change places by rounding alone


@torch.no_grad()
def verify(
    reference: nn.Module | Callable[..., Any], runner: Runner, loader: Iterable[Any], *, subject: str = "result"
) -> list[Record]:
    """Top-1 agreement in percent and largest relative difference to the reference over a loader, as two records.

    A float32 network that differs by more than 1e-3 of the largest output, or names another class for more than 0.1 %
    of the samples (ties within rounding left out), raises ExportMismatch. Other precisions are only recorded.
    """
    was_training = isinstance(reference, nn.Module) and reference.training
    if isinstance(reference, nn.Module):
        reference.eval()
    try:
        samples, same, unlike, difference, largest = 0, 0, 0, 0.0, 0.0
        for batch in loader:
            inputs, _ = split(batch)
            expected, got = _first(reference(*inputs)), _first(runner(*inputs))
            if expected.shape != got.shape:
                raise ExportMismatch(
                    f"{subject}: outputs of shape {tuple(got.shape)}, should be {tuple(expected.shape)}"
                )
            flips = expected.argmax(1) != got.argmax(1)
            top = expected.topk(min(2, expected.shape[1]), 1).values
            clear = (top[:, 0] - top[:, -1]) > ROUNDING * expected.abs().max()
            same, unlike = same + int((~flips).sum()), unlike + int((flips & clear).sum())
            samples += flips.numel()
            # A NaN must not get lost in max().
            difference = max(difference, float(torch.nan_to_num((expected - got).abs(), nan=float("inf")).max()))
            largest = max(largest, float(expected.abs().max()))
    finally:
        if was_training and isinstance(reference, nn.Module):
            reference.train()
    if samples == 0:
        raise BadInput("verify: the loader gave no samples")
    agreement, relative = 100 * same / samples, difference / max(largest, 1e-30)
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


def _first(output: Any) -> Tensor:
    """The first tensor of an output, on the CPU in float32, classes in dimension 1."""
    tensor = next(leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    tensor = tensor.detach().cpu().float()
    return tensor if tensor.dim() > 1 else tensor[:, None]
