"""Fire module (SqueezeNet): replace a convolution by a 1 x 1 squeeze, then 1 x 1 and k x k side by side.

What it does: makes the outputs whose kernels use their middle position most by 1 x 1 convolutions, the others by k x k
ones, both on few squeezed channels. The block is fitted to the old kernel, then to the old outputs on calibration data,
without labels. Unlike in SqueezeNet there is no activation behind the squeeze, so that the start is as near as
possible; the activation behind the block is the network's own.
Cost: an eigendecomposition; about two runs of the calibration data, then `steps` runs of single batches.
When it fails: it is a strong change; recover with distillation. Even kernels, and paddings that move the output,
cannot be mixed with 1 x 1.
Equation: W[n] = E[n] S, S the leading directions of input channels; half of the E[n] have their middle position only.
Source: Iandola et al. 2016, arXiv:1602.07360, section 3.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

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
    leading_inputs,
    padding_of,
    pointwise_convolution,
)
from gossamer.modules.inserted import Fire


def fire(layer: Any, squeeze: float, spatial: float) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer = dense_convolution(layer, planar=True)
    sizes, gaps = layer.kernel_size, layer.dilation
    if layer.out_channels < 2:
        raise Unfit("it has one output channel only")
    if any(s % 2 == 0 or p != g * (s - 1) // 2 for s, p, g in zip(sizes, padding_of(layer), gaps)):
        raise Unfit("its padding is not half of its kernel, so 1x1 convolutions see other places")
    weight, bias = layer.weight.detach().double(), bias_of(layer)
    directions = leading_inputs(weight, max(1, round(squeeze * layer.out_channels)))
    kernels = torch.einsum("nchw,sc->nshw", weight, directions)
    middle = kernels[:, :, sizes[0] // 2, sizes[1] // 2]
    share = middle.square().sum(1) / kernels.square().sum((1, 2, 3)).clamp_min(1e-30)
    wide = min(max(round(spatial * len(weight)), 1), len(weight) - 1)
    by_share = share.argsort(stable=True)
    ones, threes = by_share[wide:].sort().values, by_share[:wide].sort().values
    block = Fire(
        pointwise_convolution(layer, directions),
        convolution_like(
            layer, middle[ones][..., None, None], None if bias is None else bias[ones], stride=layer.stride
        ),
        convolution_like(layer, kernels[threes], None if bias is None else bias[threes], **geometry(layer)),
        torch.cat([ones, threes]).argsort(),
    )
    return FittedBlock(block, {"expand1": ones, "expand3": threes})


@dataclass(frozen=True, kw_only=True)
class FireModule(BlockReplacement):
    """Replace convolutions by Fire modules.

    The other options are those of `BlockReplacement`.

    Args:
        squeeze: squeezed channels as a fraction of the outputs, in (0, 1].
        spatial: fraction of the outputs that keep a k x k kernel, in (0, 1).

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.restructure.FireModule(layers=("conv2",), steps=2)(model, task)
        >>> print(edits[0].before, "->", edits[0].after)
        3x3 8-16 -> 1x1 8-4, 1x1 4-8, 3x3 4-8
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    squeeze: Annotated[float, Range(0, 1, open_=("low",))] = 0.25
    spatial: Annotated[float, Range(0, 1, open_=("low", "high"))] = 0.5

    @classmethod
    def layer_candidates(cls, layer: Any, name: str) -> Iterator[Method]:
        if isinstance(layer, nn.Conv2d) and not is_pointwise(layer):
            yield cls(layers=(name,))

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, lambda layer: fire(layer, self.squeeze, self.spatial))
