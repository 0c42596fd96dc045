"""Bottleneck block (ResNet): replace a convolution by 1 x 1 to fewer channels, k x k among those, and 1 x 1 back.

What it does: fits three convolutions to the old kernel, by its leading directions of input and of output channels, then
to the old outputs on calibration data, without labels. There is no activation between them, so a kernel of that
multilinear rank is reproduced exactly.
Cost: a few small eigendecompositions; about two runs of the calibration data, then `steps` runs of single batches.
When it fails: kernels that use all of their channels need recovery with distillation afterwards.
Equation: W[n, c] = sum_{o, i} V[n, o] G[o, i] U[c, i], U and V the leading eigenvectors of the kernel's unfoldings,
each improved with the other one fixed.
Source: He et al. 2016, arXiv:1512.03385, section 4.1 (the block); De Lathauwer et al. 2000, SIAM J. Matrix Anal. Appl.
21(4), section 3 (orthogonal iteration).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.restructure._rewrite import (
    BlockReplacement,
    bias_of,
    convolution_like,
    dense_convolution,
    geometry,
    leading_singular_vectors,
    pointwise_convolution,
)

SWEEPS = 5


def squeezed(weight_NCK: Tensor, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factor a kernel (N, C, K): V G U^T is near to it, U and V orthonormal.

    Returns:
        U (C, inputs), G (outputs, inputs, K) and V (N, outputs).
    """
    w = weight_NCK.double()
    v = leading_singular_vectors(w.flatten(1), outputs)
    for _ in range(SWEEPS):
        u = leading_singular_vectors(torch.einsum("nck,no->cok", w, v).flatten(1), inputs)
        v = leading_singular_vectors(torch.einsum("nck,ci->nik", w, u).flatten(1), outputs)
    return u, torch.einsum("nck,ci,no->oik", w, u, v), v


def bottleneck(layer: Any, reduction: int) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer, weight = dense_convolution(layer), layer.weight.detach()
    inputs, outputs = -(-layer.in_channels // reduction), -(-layer.out_channels // reduction)
    u, core, v = squeezed(weight.flatten(2), inputs, outputs)
    middle = convolution_like(layer, core.view(*core.shape[:2], *layer.kernel_size), **geometry(layer))
    first, last = (
        pointwise_convolution(layer, u.T.contiguous()),
        pointwise_convolution(layer, v.contiguous(), bias_of(layer)),
    )
    return FittedBlock(nn.Sequential(first, middle, last), {"2": None})


@dataclass(frozen=True, kw_only=True)
class BottleneckBlock(BlockReplacement):
    """Replace convolutions by bottlenecks.

    The other options are those of `BlockReplacement`.

    Args:
        reduction: ratio of the channels outside to those inside, rounded up, at least 2.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.BottleneckBlock(reduction=2, layers=("conv2",), steps=2)
        >>> smaller, edits = method(model, task)
        >>> print(edits[0].before, "->", edits[0].after)
        3x3 8-16 -> 1x1 8-4, 3x3 4-8, 1x1 8-16
    """

    example: ClassVar[Settings] = {"reduction": 2, "steps": 2, "batches": 2}

    reduction: Annotated[int, Range(2, 65_536)] = 4

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, lambda layer: bottleneck(layer, self.reduction))
