"""Depthwise separable convolution (MobileNet): replace a convolution by a depthwise and a 1 x 1 convolution.

What it does: fits a depthwise convolution (every input channel alone) and a 1 x 1 convolution to the old kernel, then
to the old outputs on calibration data, without labels. There is no activation between the two, so a kernel that is
separable is reproduced exactly.
Cost: about two runs of the calibration data, then `steps` runs of single batches.
When it fails: a trained kernel has k^2 directions per input channel, of which `multiplier` are kept: with 1, expect to
recover with distillation afterwards. First layers of one or three channels save little.
Equation: W[n, c] = sum_m p[n, c, m] d[c, m]; for every c the first singular vectors of W[:, c] (N x k^2).
Source: Howard et al. 2017, arXiv:1704.04861, section 3.1; no activation between: Chollet 2017, arXiv:1610.02357,
section 4.7; Guo et al. 2018, arXiv:1808.02167 (the decomposition of trained kernels).
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
    bias_of,
    convolution_like,
    dense_convolution,
    geometry,
    pointwise_convolution,
)


def separate(weight_NCK: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the nearest p (N, C, m) and d (C, m, K): W[n, c] = sum_m p[n, c, m] d[c, m]; missing terms are 0."""
    u, s, v = torch.linalg.svd(weight_NCK.transpose(0, 1).double(), full_matrices=False)
    root = s.sqrt()
    p = (u * root[:, None, :])[..., :multiplier].transpose(0, 1)
    d = (root[..., None] * v)[:, :multiplier]
    return p.to(weight_NCK.dtype), d.to(weight_NCK.dtype)


def separable_block(layer: Any, multiplier: int) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer = dense_convolution(layer)
    weight = layer.weight.detach()
    multiplier = min(multiplier, len(weight), weight[0, 0].numel())  # there are no more singular vectors
    p, d = separate(weight.flatten(2), multiplier)
    depthwise = d.reshape(layer.in_channels * multiplier, 1, *layer.kernel_size)
    first = convolution_like(layer, depthwise, groups=layer.in_channels, **geometry(layer))
    return FittedBlock(nn.Sequential(first, pointwise_convolution(layer, p.flatten(1), bias_of(layer))), {"1": None})


@dataclass(frozen=True, kw_only=True)
class DepthwiseSeparable(BlockReplacement):
    """Replace convolutions by depthwise separable ones.

    The other options are those of `BlockReplacement`.

    Args:
        multiplier: depthwise filters for each input channel, at least 1; k^2 of them are exact.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.DepthwiseSeparable(layers=("conv2",), steps=2)
        >>> print(method(model, task).edits[0].after)
        3x3 8-8 in 8 groups, 1x1 8-16
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    multiplier: Annotated[int, Range(1, 1024)] = 1

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if not is_pointwise(layer):
            yield cls(layers=(name,))

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, lambda layer: separable_block(layer, self.multiplier))
