"""Vertical and horizontal filters fitted in turn to the outputs of a layer (data reconstruction).

In all shapes g is the number of groups, O of outputs, R of filters between, P = I k of inputs times rows of the kernel,
l of its columns, and D = P l.
"""

import torch
from torch import Tensor

from gossamer.methods.lowrank._matrices import energy_of, last_factor

# The fit ends when a sweep gains less than this share of the error, after so many sweeps, or when so many
# multiply-adds (some ten seconds on one core) are spent; each sweep fits the vertical filters in so many steps.
GAIN = 1e-4
SWEEPS = 30
WORK = 2 * 10**11
STEPS = 20


def along_rows(vertical: Tensor, rest: int) -> Tensor:
    """Return what vertical filters (g, R, P) do to windows: (g, R l, D)."""
    same = torch.eye(rest, dtype=vertical.dtype, device=vertical.device)
    return torch.einsum("grp,st->grspt", vertical, same).flatten(3).flatten(1, 2)


def alternated(target: Tensor, vertical: Tensor, outer: Tensor, gram: Tensor, rest: int) -> tuple[Tensor, Tensor]:
    """Fit vertical and horizontal filters in turn, each by least squares while the other stays.

    Args:
        target: the layer's weight W, shape (g, O, D).
        vertical: filters to begin with, shape (g, R, P).
        outer: their best horizontal filters, shape (g, O, R l).
        gram: second moment of the inputs, shape (g, D, D).
        rest: l.

    Returns:
        Vertical and horizontal filters of those shapes. trace((W - W') G (W - W')^T) is not larger than before.

    Source: Jaderberg et al. 2014, arXiv:1405.3866, section 3 (data reconstruction).
    """
    by_column = gram.unflatten(2, (-1, rest)).movedim(3, 1)  # type: ignore[no-untyped-call]  # (g, l, D, P)
    sweep = STEPS * vertical.shape[1] * gram.numel()
    error = _error(target, vertical, outer, gram, rest)
    for _ in range(min(SWEEPS, max(1, WORK // sweep))):
        tried = fit_vertical(target, vertical, outer, by_column)
        fitted = last_factor(target, along_rows(tried, rest), gram)
        new = _error(target, tried, fitted, gram, rest)
        if not new < error:  # rounding: there is nothing more to gain
            break
        vertical, outer, gained, error = tried, fitted, error - new, new
        if gained < GAIN * new:
            break
    return vertical, outer


def fit_vertical(target: Tensor, vertical: Tensor, outer: Tensor, by_column: Tensor) -> Tensor:
    """Improve the vertical filters for given horizontal ones by conjugate gradients, which never increase the error.

    Args:
        target: shape (g, O, D).
        vertical: shape (g, R, P).
        outer: shape (g, O, R l).
        by_column: second moment of the inputs, its second side split into columns: shape (g, l, D, P).
    """
    rest = by_column.shape[1]

    def gathered(matrix: Tensor) -> Tensor:
        """The part of a gradient (g, R l, D) that vertical filters have: row s meets column s of the windows."""
        by_row = matrix.unflatten(1, (-1, rest)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return (by_row @ by_column).sum(1)  # type: ignore[no-any-return]

    normal = outer.mT @ outer
    left = gathered(outer.mT @ target) - gathered(normal @ along_rows(vertical, rest))
    step, size = left, _inner(left, left)
    for _ in range(STEPS):
        curved = gathered(normal @ along_rows(step, rest))
        curvature = _inner(step, curved)
        length = torch.where(curvature > 0, size / curvature, 0.0)
        vertical, left = vertical + length * step, left - length * curved
        before, size = size, _inner(left, left)
        step = left + torch.where(before > 0, size / before, 0.0) * step
    return vertical


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


def _error(target: Tensor, vertical: Tensor, outer: Tensor, gram: Tensor, rest: int) -> float:
    return float(energy_of(target - outer @ along_rows(vertical, rest), gram).sum())
