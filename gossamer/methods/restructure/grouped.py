"""Grouped convolution with channel shuffle (ShuffleNet): replace a convolution by two grouped ones and a shuffle.

What it does: a k x k convolution of g groups, a shuffle that gives every later group an equal part of every earlier
one, and a 1 x 1 convolution of g groups. For dense kernels the best such pair is known in closed form: every block of
the kernel between a group of inputs and a group of outputs gets the same rank. Then least squares and training on the
old outputs, without labels.
Cost: a small singular value decomposition for each pair of groups; about two runs of the calibration data, then `steps`
runs of single batches.
When it fails: channels must be multiples of `groups`; some runtimes compute grouped convolutions slowly.
Equation: W[j, b] = P[j, b] B[b, j], the singular vectors of the (N/g x C k^2/g) block from group b to group j, of rank
h/g^2 where h is the number of channels between.
Source: Zhang et al. 2018, arXiv:1707.01083, section 3.1 (the shuffle); Dao et al. 2022, arXiv:2204.00595, section 3.3
(projection of dense matrices on this structure).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Settings
from gossamer.methods._candidates import is_pointwise
from gossamer.methods.restructure._rewrite import (
    BlockReplacement,
    Unfit,
    bias_of,
    convolution_like,
    dense_convolution,
    geometry,
    pointwise_convolution,
)
from gossamer.modules.inserted import Shuffle


def factors(weight_NCK: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return the nearest B (h, C / g, K) and P (N, h / g) of two grouped convolutions with a shuffle, h = rank g^2."""
    n, c, k = weight_NCK.shape
    blocks = weight_NCK.double().view(groups, n // groups, groups, c // groups * k).transpose(1, 2)  # (j, b, N/g, Ck/g)
    u, s, v = torch.linalg.svd(blocks, full_matrices=False)
    root, more = s.sqrt()[..., :rank], max(rank - s.shape[-1], 0)
    p = nn.functional.pad(u[..., :rank] * root[..., None, :], (0, more))  # (j, b, N/g, rank)
    b = nn.functional.pad(root[..., None] * v[..., :rank, :], (0, 0, 0, more))  # (j, b, rank, Ck/g)
    # Group j of the second reads channels a = j * rank ... (j + 1) * rank - 1 of every first group b, at a g + b.
    second = p.permute(0, 2, 3, 1).reshape(n, rank * groups)
    first = b.permute(1, 0, 2, 3).reshape(groups * groups * rank, c // groups, k)
    return first.to(weight_NCK.dtype), second.to(weight_NCK.dtype)


def grouped_block(layer: Any, groups: int) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer = dense_convolution(layer)
    for what, channels in (("input", layer.in_channels), ("output", layer.out_channels)):
        if channels % groups:
            raise Unfit(f"its {channels} {what} channels are not a multiple of groups = {groups}")
    rank = -(-layer.out_channels // groups**2)
    first, second = factors(layer.weight.detach().flatten(2), groups, rank)
    first = first.view(*first.shape[:2], *layer.kernel_size)
    spatial = convolution_like(layer, first, groups=groups, **geometry(layer))
    last = pointwise_convolution(layer, second, bias_of(layer), groups=groups)
    return FittedBlock(nn.Sequential(spatial, Shuffle(groups), last), {"2": None})


PLANNED = 4  # groups that the planner tries


@dataclass(frozen=True, kw_only=True)
class GroupedConvolution(BlockReplacement):
    """Replace convolutions by two grouped ones with a channel shuffle.

    The other options are those of `BlockReplacement`.

    Args:
        groups: of both convolutions, at least 2. They have as many channels between as outputs, rounded up to groups^2.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.GroupedConvolution(groups=2, layers=("conv2",), steps=2)
        >>> print(method(model, task).edits[0].after)
        3x3 8-16 in 2 groups, 1x1 16-16 in 2 groups
    """

    example: ClassVar[Settings] = {"groups": 2, "steps": 2, "batches": 2}

    groups: Annotated[int, Range(2, 65_536)] = 4

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if not is_pointwise(layer) and not any(size % PLANNED for size in layer.weight.shape[:2]):
            yield cls(layers=(name,), groups=PLANNED)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, lambda layer: grouped_block(layer, self.groups))
