"""Inception block (GoogLeNet): replace a convolution by 1 x 1, 3 x 3, 5 x 5 and a pool side by side.

What it does: makes the eighth of the outputs whose kernels are flattest from a 3 x 3 average pool. Of the others, those
that use the middle of their kernel most are made by 1 x 1 convolutions, the next (where the kernel is larger) by 3 x 3,
the rest by the whole kernel, both behind a 1 x 1 to few channels. The block is fitted to the old kernel, then to the
old outputs on calibration data, without labels. There is no activation behind the reductions, so that the start is as
near as possible.
Cost: two eigendecompositions; about two runs of the calibration data, then `steps` runs of single batches.
When it fails: it is a strong change; recover with distillation. Even kernels, strides, dilations and paddings that move
the output cannot be mixed.
Equation: W[n] = E[n] S_k for the outputs of kernel k, S_k the leading directions of input channels of these kernels.
Source: Szegedy et al. 2015, arXiv:1409.4842, section 4 and figure 2b (there with the maximum in the pool).
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
    Unfit,
    bias_of,
    convolution_like,
    dense_convolution,
    leading_inputs,
    padding_of,
    pointwise_convolution,
)
from gossamer.modules.inserted import Inception


def centre(weight: Tensor, size: int) -> Tensor:
    """Return the middle size x size of kernels."""
    top, left = ((side - size) // 2 for side in weight.shape[2:])
    return weight[:, :, top : top + size, left : left + size]


def inception(layer: Any, squeeze: float, spatial: float) -> FittedBlock:
    """Return the block for a convolution. Raises Unfit where there is none."""
    layer = dense_convolution(layer, planar=True)
    size, outputs = layer.kernel_size[0], layer.out_channels
    plain = set(layer.stride) == set(layer.dilation) == {1} and layer.kernel_size == (size, size) and size % 2
    if not plain or padding_of(layer) != (size // 2, size // 2):
        raise Unfit("its outputs are not those of every place, each from around it")
    if outputs < 8:
        raise Unfit(f"it has {outputs} output channels only")
    weight, bias = layer.weight.detach().double(), bias_of(layer)
    energy = weight.square().sum((1, 2, 3)).clamp_min(1e-30)
    flat = (centre(weight, 3).sum((2, 3)).square().sum(1) / 9 / energy).argsort(descending=True, stable=True)
    central = (centre(weight, 1).square().sum((1, 2, 3)) / energy).argsort(descending=True, stable=True)
    wide, pooled = max(round(spatial * outputs), 2), max(outputs // 8, 1)
    kernels = {size: wide} if size == 3 else {3: wide - wide // 2, size: wide // 2}
    rest = central[~torch.isin(central, flat[:pooled])]
    counts = [outputs - wide - pooled, *kernels.values()]
    parts = [part.sort().values for part in (flat[:pooled], *rest.split(counts))]
    biases = [None if bias is None else bias[part] for part in parts]
    branches: list[nn.Module] = [
        nn.Sequential(
            nn.AvgPool2d(3, 1, 1), pointwise_convolution(layer, centre(weight[parts[0]], 3).sum((2, 3)), biases[0])
        ),
        nn.Sequential(pointwise_convolution(layer, centre(weight[parts[1]], 1).flatten(1), biases[1])),
    ]
    for kernel, part, b in zip(kernels, parts[2:], biases[2:]):
        middle = centre(weight[part], kernel)
        few = leading_inputs(middle, max(1, round(squeeze * len(part))))
        expanded = torch.einsum("nchw,sc->nshw", middle, few)
        mode = layer.padding_mode
        last = convolution_like(layer, expanded, b, padding=kernel // 2, padding_mode=mode)
        branches.append(nn.Sequential(pointwise_convolution(layer, few), last))
    last_layers = {f"branches.{n}.{0 if n == 1 else 1}": part for n, part in enumerate(parts)}
    return FittedBlock(Inception(branches, torch.cat(parts).argsort()), last_layers)


@dataclass(frozen=True, kw_only=True)
class InceptionBlock(BlockReplacement):
    """Replace convolutions by Inception blocks.

    The other options are those of `BlockReplacement`.

    Args:
        squeeze: channels behind a reduction as a fraction of the outputs of its branch, in (0, 1].
        spatial: fraction of the outputs that see more than one position, in (0, 0.75].

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.restructure.InceptionBlock(layers=("conv2",), steps=2)
        >>> print(method(model, task).edits[0].after)
        1x1 8-2, 1x1 8-6, 1x1 8-4, 3x3 4-8
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    squeeze: Annotated[float, Range(0, 1, open_=("low",))] = 0.5
    spatial: Annotated[float, Range(0, 0.75, open_=("low",))] = 0.5

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, lambda layer: inception(layer, self.squeeze, self.spatial))
