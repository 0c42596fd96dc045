"""Stride to max-pooling: replace a strided convolution by a dense one and a max-pool (reverse of `restructure.stride`).

What it does: computes the convolution at every position, and takes the largest value by a max-pool of the size of the
stride. It starts with the old weights, and is fitted to the old outputs on calibration data, without labels.
Cost: `steps` runs of single batches. The convolution takes stride^2 times its multiply-adds: this is for accuracy, or
for runtimes that stride badly, not for speed.
When it fails: a maximum is above the old output, which the training has to correct: the fit is rough, expect to recover
with distillation. Dilated layers and strides above the kernel's size are left.
Equation: w * x + b at every s-th position becomes the maximum of w' * x + b' over s x s positions.
Source: Springenberg et al. 2015, arXiv:1412.6806, section 2 (there the other way).
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.methods._base import Settings
from gossamer.methods.restructure._rewrite import BlockReplacement, Unfit

POOLS = {nn.Conv1d: nn.MaxPool1d, nn.Conv2d: nn.MaxPool2d, nn.Conv3d: nn.MaxPool3d}


def convolution_and_pool(layer: Any) -> FittedBlock:
    """Return the convolution at every position, and a pool. Raises Unfit where there is none."""
    if type(layer) not in POOLS or set(layer.stride) == {1}:
        raise Unfit("it is no convolution with a stride")
    if set(layer.dilation) != {1} or any(step > size for step, size in zip(layer.stride, layer.kernel_size)):
        raise Unfit("it is dilated, or leaves positions out")
    dense = copy.deepcopy(layer)
    dense.stride = (1,) * len(layer.stride)
    # As many windows as the stride takes positions: the last one may be smaller.
    pool = POOLS[type(layer)](layer.stride, ceil_mode=True)
    return FittedBlock(nn.Sequential(dense, pool))


@dataclass(frozen=True, kw_only=True)
class StrideToPooling(BlockReplacement):
    """Replace strided convolutions by dense ones and a max-pool.

    The options are those of `BlockReplacement`.

    Example:
        >>> import gossamer
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        >>> method = gossamer.methods.restructure.StrideToPooling(steps=2)
        >>> changed, edits = method(model, gossamer.data.tiny_task())
        >>> changed[0][1]
        MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=0, dilation=1, ceil_mode=True)
    """

    saves: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.rewrite(model, task, context, convolution_and_pool)
