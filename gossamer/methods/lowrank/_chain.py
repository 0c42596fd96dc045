"""Chains of layers that replace one layer: what they cost, and how they are made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.core.placement import evaluating, place
from gossamer.modules.inserted import Reorder

Count = int | Tensor
# The sizes of a layer's input and output along its spatial axes, for every call in a run; for Linear the rows of both.
Calls = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One layer of a chain.

    Attributes:
        inputs: input channels. Counts may be tensors, with one number for each option whose cost is wanted.
        outputs: output channels.
        axes: the axes of the kernel that this layer has, with their stride, padding and dilation; () for 1 x 1.
        groups: of the convolution.
        fixed: whether the layer is not trained.
    """

    inputs: Count
    outputs: Count
    axes: tuple[int, ...] = ()
    groups: Count = 1
    fixed: bool = False

    def size(self, kernel: Sequence[int]) -> Count:
        """Return the number of weights. kernel: sizes of the original kernel."""
        return self.outputs * self.inputs // self.groups * math.prod(kernel[a] for a in self.axes)


def kernel_of(layer: Layer) -> tuple[int, ...]:
    """Return the sizes of the kernel; () for a linear layer."""
    return () if isinstance(layer, nn.Linear) else tuple(layer.kernel_size)


def kernel_axes(layer: Layer) -> tuple[int, ...]:
    """Return the numbers of the axes of the kernel; () for a linear layer."""
    return tuple(range(len(kernel_of(layer))))


def grouped_weight(layer: Layer) -> Tensor:
    """Return the weight as (groups, O, I, ...), in float64; above 4M elements in float32 or its own precision."""
    weight = layer.weight.detach()
    weight = weight.double() if weight.numel() <= 1 << 22 else weight.float() if weight.itemsize < 4 else weight
    return weight.unflatten(0, (groups_of(layer), -1))  # type: ignore[no-any-return, no-untyped-call]


def chain_params(factors: Sequence[Factor], kernel: Sequence[int]) -> Count:
    """Return the number of weights of a chain, without its bias."""
    return sum(factor.size(kernel) for factor in factors)


def chain_macs(factors: Sequence[Factor], kernel: Sequence[int], calls: Calls) -> Count:
    """Return the multiply-adds of a chain for one sample.

    An axis of the kernel changes the size of the map in the factor that carries it: from there on the positions of the
    output count along that axis, before it those of the input.
    """
    total: Count = 0
    done: set[int] = set()
    for factor in factors:
        done |= set(factor.axes)
        positions = sum(
            math.prod(after[a] if a in done else before[a] for a in range(len(before))) for before, after in calls
        )
        total = total + factor.size(kernel) * positions
    return total


def dense_factor(layer: Layer) -> Factor:
    """Return the layer itself, as a chain of one."""
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * groups_of(layer)
    return Factor(inputs=inputs, outputs=outputs, axes=kernel_axes(layer), groups=groups_of(layer))


def make_chain(layer: Layer, factors: Sequence[Factor], weights: Sequence[Tensor]) -> nn.Sequential:
    """Build the layers of a chain.

    Args:
        layer: the layer to replace; it gives the bias, precision, device and mode.
        factors: the layers to build.
        weights: one for each factor, in any shape with the right elements in order.

    Returns:
        The chain. Its last layer has the bias.
    """
    made: list[nn.Module] = []
    for n, (factor, weight) in enumerate(zip(factors, weights, strict=True)):
        bias = layer.bias is not None and n == len(factors) - 1
        one = _make(layer, factor, bias)
        one.weight.data = weight.reshape(one.weight.shape).to(layer.weight).contiguous()
        if bias:
            one.bias.data = layer.bias.detach().clone()  # type: ignore[union-attr]
        one.requires_grad_(layer.weight.requires_grad and not factor.fixed)
        made.append(one.train(layer.training))
    return nn.Sequential(*made).train(layer.training)


def reordered(chain: nn.Sequential, before: Mapping[int, Tensor], outputs: Tensor) -> nn.Sequential:
    """Put the channels of a chain into another order.

    Args:
        chain: the layers.
        before: by place in the chain, the order in which that layer takes its inputs.
        outputs: the chain's outputs are those of the original in this order, its bias included.

    Returns:
        A chain that gives the outputs in the order of the original.
    """
    made: list[nn.Module] = []
    for n, layer in enumerate(chain):
        made += [Reorder(before[n])] if n in before and not _sorted(before[n]) else []
        made.append(layer)
    last: Any = chain[-1]
    if last.bias is not None:
        last.bias.data = last.bias.data[outputs]
    made += [] if _sorted(outputs) else [Reorder(outputs.argsort())]
    return nn.Sequential(*made).to(last.weight.device).train(chain.training)


def _sorted(order: Tensor) -> bool:
    return bool((order.diff() > 0).all())


def _make(layer: Layer, factor: Factor, bias: bool) -> Any:
    sizes: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    inputs, outputs = int(factor.inputs), int(factor.outputs)
    if isinstance(layer, nn.Linear):
        return torch.nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, **sizes)  # type: ignore[no-untyped-call]

    def along(values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(value if a in factor.axes else otherwise for a, value in enumerate(values))

    return torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        type(layer),
        inputs,
        outputs,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        groups=int(factor.groups),
        bias=bias,
        padding_mode=layer.padding_mode if factor.axes else "zeros",
        **sizes,
    )


@torch.no_grad()
def calls_of(model: nn.Module, layers: Sequence[str], example_inputs: tuple[Any, ...]) -> dict[str, Calls]:
    """Return the sizes on which layers work in a run, for one sample, without layers that are not called."""
    with evaluating(model), _noting(model, layers) as seen:
        model(*place(model, (example_inputs, None)))
    return seen


@contextmanager
def _noting(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
    seen: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            x = inputs[0]
            if isinstance(layer, nn.Linear):
                rows = (math.prod(x.shape[1:-1]),)
                seen.setdefault(name, []).append((rows, rows))
            else:
                axes = len(layer.kernel_size)
                seen.setdefault(name, []).append((tuple(x.shape[-axes:]), tuple(y.shape[-axes:])))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
