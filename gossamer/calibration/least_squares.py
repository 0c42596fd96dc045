"""Least squares for the weights and bias of one layer: the change that brings its output nearest to another.

Minimizes |rest - X dW|^2 + dampening |dW|^2 by the normal equations (X^T X + dampening) dW = X^T rest. Only X^T X and
X^T rest are kept, so memory does not grow with the data.
"""

from typing import Any

import torch
from torch import Tensor

from gossamer.calibration.inputs import Layer, input_rows, output_rows, sample_chunks

# Ridge regularization relative to the mean square of a feature, by default.
DAMPENING = 1e-5

# X^T X (groups, D + 1, D + 1) and X^T Y (groups, D + 1, O / groups), X the layer's input rows with a one behind.
Normal = tuple[Tensor, Tensor]


def add_system(before: Normal | None, layer: Layer, x: Tensor, rest: Tensor) -> Normal:
    """The normal equations with those of one more call. x: the layer's input; rest: what its output lacks."""
    for part_x, part_rest in sample_chunks(layer, x, rest):
        features, wanted = _flat(input_rows(layer, part_x)), _flat(output_rows(layer, part_rest))
        # A column of ones solves for the bias together with the weights.
        features = torch.cat([features, features.new_ones(*features.shape[:2], 1)], 2)
        same, cross = (features.mT @ features).double(), (features.mT @ wanted).double()
        before = (same, cross) if before is None else (before[0] + same, before[1] + cross)
    assert before is not None
    return before


def _flat(rows: Tensor) -> Tensor:
    """(samples, groups, positions, D) as (groups, rows, D)."""
    return rows.transpose(0, 1).flatten(1, 2)


@torch.no_grad()
def add_correction(layer: Any, system: Normal, *, dampening: float = DAMPENING) -> None:
    """Add the change of weight and bias that takes most of the rest away; without a bias, the weight's alone."""
    same, cross = system
    diagonal = same.diagonal(dim1=1, dim2=2)
    if layer.bias is None:
        same, cross, diagonal = same[:, :-1, :-1], cross[:, :-1], diagonal[:, :-1]
    eye = torch.eye(same.shape[1], dtype=same.dtype, device=same.device)
    ridge = dampening * diagonal.mean(1).clamp_min(1e-30)
    change = torch.linalg.solve(same + ridge[:, None, None] * eye, cross).mT  # (groups, O / groups, D + 1)
    if layer.bias is not None:
        layer.bias += change[..., -1].flatten().to(layer.bias.dtype)
        change = change[..., :-1]
    layer.weight += change.reshape(layer.weight.shape).to(layer.weight.dtype)
