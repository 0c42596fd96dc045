"""What of a graph runs on bits: binary layers, what packs their inputs, and what is left to torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.gsr.format.graph import Graph, State, Value
from gossamer.modules.binary import binary_weight
from gossamer.runtime.binary.images import Padding
from gossamer.runtime.binary.kernels import Limits
from gossamer.runtime.binary.pools import SignPool
from gossamer.runtime.binary.products import SignProduct, Switches
from gossamer.runtime.binary.regions import Constants, Region, regions
from gossamer.runtime.binary.switches import falling, integer_curve, limits_of, switches_of

PRODUCTS = {"conv2d": 4, "conv2d.padding": 4, "linear": 2}  # dimensions of their inputs
MOST_TERMS = 1 << 24  # of a product, which float32 holds exactly
MOST_TRIED = 1 << 26  # integers of all channels of a layer that are tried; larger layers write their numbers


@dataclass(frozen=True)
class BinaryStep:
    """A step of the graph that runs on bits.

    Attributes:
        number: of the step.
        weight: the stored tensor.
        product: the layer.
        bias: (outputs,), or None.
        signs: the value whose signs go in, before padding.
        dims: of its input and output.
    """

    number: int
    weight: int
    product: SignProduct
    bias: Tensor | None
    signs: int
    dims: int


@dataclass(frozen=True)
class FromNumbers:
    """Signs that are packed from numbers. root: the value of the numbers."""

    root: int
    limits: Limits
    pool: SignPool | None = None


@dataclass(frozen=True)
class FromProducts:
    """Signs that a binary step writes itself. step: its number. flips: what a pool turns, (channels,)."""

    step: int
    switches: Switches
    pool: SignPool | None = None
    flips: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))


Source = FromNumbers | FromProducts


@dataclass(frozen=True)
class BinaryPlan:
    """How a graph runs.

    Attributes:
        constants: of the graph.
        products: the binary steps, by number.
        sources: of the signs that go into them, by value.
        left: why layers that look binary are left to torch, by the number of the stored weight.
    """

    constants: Constants
    products: dict[int, BinaryStep]
    sources: dict[int, Source]
    left: dict[int, str]

    def weights(self) -> list[int]:
        """The stored tensors whose signs run on bits."""
        return [step.weight for step in self.products.values()]

    def fused(self) -> dict[int, int]:
        """The value of signs that a binary step writes in the place of numbers, by the number of the step."""
        return {one.step: value for value, one in self.sources.items() if isinstance(one, FromProducts)}


def binary_plan(graph: Graph, tensors: Sequence[Tensor]) -> BinaryPlan:
    """Find what of a graph runs on bits.

    Args:
        graph: the network's steps.
        tensors: stored.
    """
    constants = Constants(graph, tensors)
    plan = BinaryPlan(constants, {}, {}, {})
    for number, step in enumerate(graph.steps):
        if step.op not in PRODUCTS or number + graph.inputs in constants.known:
            continue
        weight = step.args[1]
        if not isinstance(step.args[0], Value) or not isinstance(weight, State):
            continue
        found = _binary_step(constants, number)
        source = _source(plan, found) if isinstance(found, BinaryStep) else found
        if isinstance(source, str):
            if source:
                plan.left[weight.index] = source
            continue
        assert isinstance(found, BinaryStep)
        plan.products[number] = found
        plan.sources.setdefault(found.signs, source)
    return plan


def _binary_step(constants: Constants, number: int) -> BinaryStep | str:
    """A layer whose weights are signs; else why it is none, "" where nothing looks like one."""
    step = constants.graph.steps[number]
    weight = constants.tensors[step.args[1].index]
    split = binary_weight(weight) if weight.dtype == torch.float32 and weight.dim() >= 2 else None
    if split is None:
        return ""
    signs, scales = (part.numpy() for part in split)
    bias = step.args[2] if len(step.args) > 2 else None
    if bias is not None and not isinstance(bias, State):
        return "its bias is computed"
    offset = None if bias is None else constants.tensors[bias.index].float()
    if step.op == "linear":
        product = SignProduct(signs[:, :, None, None], scales.astype(np.float32))
        value = step.args[0].index
    else:
        settings = _settings(step.op, step.args, weight.shape)
        value, padding, outside = _unpadded(constants, step.args[0].index, settings.pop("padding"))
        if padding is None:
            return "its padding holds other numbers than -1, 0 and 1"
        product = SignProduct(signs, scales.astype(np.float32), padding=padding, outside=outside, **settings)
    if product.terms > MOST_TERMS:
        return f"{product.terms:,} terms are more than float32 counts exactly"
    return BinaryStep(number, step.args[1].index, product, offset, value, PRODUCTS[step.op])


def _settings(op: str, args: tuple[Any, ...], shape: Sequence[int]) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution."""

    def pair(place: int, usual: int) -> tuple[int, int]:
        given = args[place] if len(args) > place else usual
        first, *more = given if isinstance(given, list | tuple) else [given]
        return int(first), int(more[0] if more else first)

    dilation = pair(5, 1)
    if op == "conv2d.padding":
        total = [d * (k - 1) if args[4:5] == ("same",) else 0 for d, k in zip(dilation, shape[2:])]
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        down, across = pair(4, 0)
        padding = (down, down, across, across)
    groups = int(args[6]) if len(args) > 6 else 1
    return {"stride": pair(3, 1), "padding": padding, "dilation": dilation, "groups": groups}


def _unpadded(constants: Constants, value: int, padding: Padding) -> tuple[int, Padding | None, int]:
    """The value before a step that pads it, the padding, and what lies outside; padding None: other numbers do."""
    number = constants.maker(value)
    if number is None or constants.graph.steps[number].op != "pad":
        return value, padding, 0
    args = constants.graph.steps[number].args
    outside = args[3] if len(args) > 3 else 0
    constant = len(args) < 3 or args[2] == "constant"
    if not constant or outside not in (-1, 0, 1, None) or any(padding) or len(args[1]) != 4 or min(args[1]) < 0:
        return value, None, 0
    left, right, top, bottom = args[1]
    return args[0].index, (top, bottom, left, right), int(outside or 0)


def _source(plan: BinaryPlan, step: BinaryStep) -> Source | str:
    """What packs the signs of a binary step; else why its inputs are not signs."""
    if step.signs in plan.sources:
        return plan.sources[step.signs]
    functions = regions(plan.constants, step.signs)
    for function in reversed(functions):
        if found := _from_products(plan, function, step):
            return found
    numbers = [one for function in functions if (one := _from_numbers(function, step, None))]
    if numbers:
        return next((one for function, one in reversed(numbers) if function.alone), numbers[0][1])
    behind = _pool_behind(plan.constants, step.signs)
    for function in regions(plan.constants, behind[1]) if behind else []:
        if found_numbers := _from_numbers(function, step, behind[0] if behind else None):
            return found_numbers[1]
    return "its inputs are not signs"


def _pool_behind(constants: Constants, value: int) -> tuple[SignPool, int] | None:
    """The max-pool that makes a value, and the value that goes in."""
    number = constants.maker(value)
    if number is None or constants.graph.steps[number].op != "max_pool2d":
        return None
    args = constants.graph.steps[number].args
    return SignPool.of(args[1:]), args[0].index


def _from_numbers(function: Region, step: BinaryStep, pool: SignPool | None) -> tuple[Region, FromNumbers] | None:
    if not function.steps or not function.monotone:
        return None
    try:
        limits = limits_of(lambda x: function.of_channels(x, step.dims), step.product.channels)
    except (ValueError, RuntimeError):  # constants that are not those of channels
        return None
    return None if limits is None else (function, FromNumbers(function.root, limits, pool))


def _from_products(plan: BinaryPlan, after: Region, step: BinaryStep) -> FromProducts | None:
    """Signs that a binary step in front can write itself: nothing else reads its numbers, or what is between."""
    constants, behind = plan.constants, _pool_behind(plan.constants, after.root)
    if (after.steps and not after.alone) or not step.product.input_format(1, 1, 1).dense:
        return None
    if behind is None:
        before = [Region(constants, after.root, after.root, ())]
    else:
        before = [one for one in regions(constants, behind[1]) if one.alone]
        if behind[1] in constants.given or len(constants.users[behind[1]]) > 1:
            return None
    for function in before:
        number = constants.maker(function.root)
        made = plan.products.get(number) if number is not None else None
        if made is not None and made.product.writes_dense and 2 * made.product.signs.size < MOST_TRIED:
            return _switches(function, after, made, behind[0] if behind else None)
    return None


def _switches(before: Region, after: Region, made: BinaryStep, pool: SignPool | None) -> FromProducts | None:
    """The switches of the integers of a binary step, with what a pool between has to turn."""
    scales = torch.from_numpy(made.product.scales)
    offset = torch.zeros(()) if made.bias is None else made.bias

    def number(x: Tensor) -> Tensor:
        return before.of_channels(x + offset, made.dims)

    try:
        numbers = integer_curve(number, scales, made.product.terms)
        signs = replace(numbers, numbers=after.of_channels(numbers.numbers, made.dims))
    except (ValueError, RuntimeError):
        return None
    found = switches_of(signs)
    if found is None or pool is None:
        return None if found is None else FromProducts(made.number, found)
    falls = falling(numbers, signs)
    return None if falls is None else FromProducts(made.number, replace(found, flips=found.flips ^ falls), pool, falls)
