"""Pooling to stride (all-convolutional network): replace max-pooling by a stride of the convolution before it.

What it does: gives a convolution whose result is max-pooled (a batch norm and a ReLU may be between) the pool's stride,
and removes the pool. Its weights are fitted by least squares, then training, to what the pool passed on, on calibration
data, without labels.
Cost: about two runs of the calibration data, then `steps` runs of single batches. It saves the pool and, of a pool of
2 x 2, three quarters of the convolution.
When it fails: a maximum is not linear: expect to recover with distillation. Pools that overlap or pad, and pools that a
`forward` calls as a function, stay; so do maps of odd size, where the two would differ in size.
Equation: max over a window of s x s of (w * x + b) becomes w' * x + b' at every s-th position.
Source: Springenberg et al. 2015, arXiv:1412.6806, section 2.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.calibration.block_reconstruction import FittedBlock
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.graph.tracer import Op, Trace, trace
from gossamer.methods._base import NetworkCandidate, Settings
from gossamer.methods.restructure._rewrite import BlockReplacement, Unfit

POOLS = ("aten.max_pool2d_with_indices", "aten.max_pool2d")
RISING = ("aten.relu", "aten.relu_", "aten.native_batch_norm", "aten._native_batch_norm_legit_no_training")


def readers_of(t: Trace, op: Op) -> list[Op]:
    """Return the operations that read the first result of another."""
    assert op.outs[0] is not None
    return [other for other in t.ops if any(ref.index == op.outs[0].index for ref in other.refs())]


def pool_behind(model: nn.Module, t: Trace, layer: str) -> tuple[str, list[str]]:
    """Return the pool module behind a convolution, and the batch norms between.

    Raises:
        Unfit: there is none, or something else reads what it reads.
    """
    ops = [op for op in t.ops if op.modules and op.modules[-1] == layer and op.name == "aten.convolution"]
    if len(ops) != 1:
        raise Unfit(f"a run calls it {len(ops)} times")
    op, norms = ops[0], list[str]()
    while True:
        readers = readers_of(t, op)
        if len(readers) != 1:
            raise Unfit(f"{len(readers)} operations read {op.where}")
        op = readers[0]
        if op.name in POOLS:
            break
        if op.name not in RISING:
            raise Unfit(f"{op.where} stands behind it, not a max-pool")
        norms += [op.modules[-1]] if "batch_norm" in op.name else []
    name = op.modules[-1] if op.modules else ""
    calls = [o for o in t.ops if o.name in POOLS and o.modules and o.modules[-1] == name]
    if not isinstance(model.get_submodule(name), nn.MaxPool2d) or len(calls) != 1:
        raise Unfit(f"{op.where} is no pool module of its own")
    return name, norms


def pair(number: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return one number as two."""
    return (number, number) if isinstance(number, int) else tuple(number)


def strided(model: nn.Module, t: Trace, layer: Any, name: str) -> FittedBlock:
    """Return the convolution with the pool's stride, for the place of the layer. Raises Unfit where there is none."""
    if not isinstance(layer, nn.Conv2d):
        raise Unfit(f"{type(layer).__name__} is not a two-dimensional convolution")
    at, norms = pool_behind(model, t, name)
    pool: Any = model.get_submodule(at)
    window, step = pair(pool.kernel_size), pair(pool.stride)
    plain = pair(pool.padding) == (0, 0) and pair(pool.dilation) == (1, 1)
    if window != step or not plain:
        raise Unfit(f"{at} overlaps, pads or dilates")
    [op] = [op for op in t.ops if op.modules and op.modules[-1] == name and op.name == "aten.convolution"]
    height, width = t.shapes[op.outs[0].index][2:]  # type: ignore[union-attr]
    if height % step[0] or width % step[1]:
        raise Unfit(f"its outputs of {height}x{width} are no multiple of the {step[0]}x{step[1]} of {at}")
    # Where norms turn the sign of a channel, the pool lets its least value through.
    sign = torch.ones(layer.out_channels, device=layer.weight.device, dtype=layer.weight.dtype)
    for norm in norms:
        module = model.get_submodule(norm)
        if not isinstance(module, _BatchNorm):
            raise Unfit(f"{norm} is no batch norm module")
        if module.affine:
            sign = sign * module.weight.detach().sign()
    sign = sign.where(sign != 0, 1.0).view(-1, 1, 1)

    def let_through(y: Tensor) -> Tensor:
        return sign * F.max_pool2d(sign * y, window)

    block = copy.deepcopy(layer)
    block.stride = tuple(a * b for a, b in zip(layer.stride, step))
    if block.padding == "same":
        raise Unfit('its padding is "same", which strides do not go with')
    return FittedBlock(block, {"": None}, wanted=let_through, idle=(at,))


@dataclass(frozen=True, kw_only=True)
class PoolingToStride(BlockReplacement):
    """Replace max-pooling by the stride of the convolution before it.

    The options are those of `BlockReplacement`.

    Example:
        >>> import gossamer
        >>> from torch import nn
        >>> conv = nn.Conv2d(1, 4, 3, padding=1)
        >>> model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
        >>> method = gossamer.methods.restructure.PoolingToStride(steps=2)
        >>> smaller, edits = method(model, gossamer.data.tiny_task())
        >>> print(edits[0].after)
        3x3 1-4 stride 2; no 2
    """

    example: ClassVar[Settings] = {"steps": 2, "batches": 2}

    @classmethod
    def network_candidates(cls) -> Sequence[NetworkCandidate]:
        what = "convolutions that take the steps of the pools behind them"
        return (NetworkCandidate("strides for pools", what, cls()),)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        t = trace(model, task.example_inputs)
        names = {id(module): name for name, module in model.named_modules()}
        return self.rewrite(model, task, context, lambda layer: strided(model, t, layer, names[id(layer)]))
