"""Flattened convolution: replace a convolution by lateral, vertical and horizontal ones.

What it does: approximates every filter by an outer product of three vectors, computed as a 1 x 1 convolution and then a
k x 1 and a 1 x k convolution of every channel alone. The layers are fitted to the old filters, then to the old outputs
on calibration data, without labels. There is no activation between them, so filters of rank one are reproduced exactly.
Cost: a power iteration on the kernel; about two runs of the calibration data, then `steps` runs of single batches.
When it fails: trained filters are far from rank one: expect to recover with distillation, and keep the first layer.
Equation: W[n, c, y, x] = a[n, c] b[n, y] g[n, x]: C + k + k numbers for each filter instead of C k k.
Source: Jin et al. 2015, arXiv:1412.5474, section 3.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.methods._base import Settings
from gossamer.methods.restructure._rewrite import (
    BlockReplacement,
    Unfit,
    bias_of,
    convolution_like,
    dense_convolution,
    padding_of,
    pointwise_convolution,
)

SWEEPS = 50


def rank_one(weight_NCyx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best outer product of every filter that alternating least squares finds.

    They start at the singular vectors of the unfoldings.

    Args:
        weight_NCyx: kernels.

    Returns:
        a (N, C), and b (N, y) and g (N, x), both of length one.
    """
    w = weight_NCyx.double()
    b = torch.linalg.svd(w.permute(0, 2, 1, 3).flatten(2), full_matrices=False).U[..., 0]
    g = torch.linalg.svd(w.permute(0, 3, 1, 2).flatten(2), full_matrices=False).U[..., 0]
    a = torch.einsum("ncyx,ny,nx->nc", w, b, g)
    for _ in range(SWEEPS):
        b = nn.functional.normalize(torch.einsum("ncyx,nc,nx->ny", w, a, g), dim=1, eps=1e-30)
        g = nn.functional.normalize(torch.einsum("ncyx,nc,ny->nx", w, a, b), dim=1, eps=1e-30)
        a = torch.einsum("ncyx,ny,nx->nc", w, b, g)
    return a, b, g


def flattened_block(layer: Any) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer = dense_convolution(layer, planar=True)
    if 1 in layer.kernel_size:
        raise Unfit(f"its kernel is {'x'.join(map(str, layer.kernel_size))} already")
    a, b, g = rank_one(layer.weight.detach())
    (py, px), (sy, sx), (dy, dx) = padding_of(layer), layer.stride, layer.dilation
    along = {"groups": layer.out_channels, "padding_mode": layer.padding_mode}
    vertical = convolution_like(layer, b[:, None, :, None], stride=(sy, 1), dilation=(dy, 1), padding=(py, 0), **along)
    row = g[:, None, None, :]
    horizontal = convolution_like(
        layer, row, bias_of(layer), stride=(1, sx), dilation=(1, dx), padding=(0, px), **along
    )
    return FittedBlock(nn.Sequential(pointwise_convolution(layer, a), vertical, horizontal), {"2": None})


@dataclass(frozen=True, kw_only=True)
class FlattenedConvolution(BlockReplacement):
    """Replace convolutions by lateral, vertical and horizontal ones.

    The options are those of `BlockReplacement`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.FlattenedConvolution(layers=("conv2",), steps=2)
        >>> [layer.kernel_size for layer in method(model, task).model.conv2]
        [(1, 1), (3, 1), (1, 3)]
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, flattened_block)
