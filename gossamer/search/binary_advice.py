"""What binary layers could save on a network: measured on bits, against int8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.copies import parameter_count
from gossamer.core.goal import Goal
from gossamer.core.signs import sign_of
from gossamer.edits.swap import swap
from gossamer.measure import Runner, steady_latency
from gossamer.modules.binary import BinaryConv2d, BinaryLinear
from gossamer.runtime.runners import open_runner

NARROW = 32  # channels that one word of bits holds: below, most bits of a word are none
ENDS = "it is the first or the last layer, which lose too much as signs"
Layer = nn.Conv2d | nn.Linear


def reason_to_stay_real(name: str, layer: nn.Module, names: Sequence[str]) -> str:
    """Why a layer with weights does not become binary; "" where it can.

    Args:
        name: of the layer.
        layer: itself.
        names: of all layers with weights, in order.

    Example:
        >>> reason_to_stay_real("b", torch.nn.LSTM(4, 4), ["a", "b", "c"])
        'there is no binary layer for LSTM'
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return f"there is no binary layer for {type(layer).__name__}"
    if name in (names[0], names[-1]):
        return ENDS
    inputs = layer.weight.shape[1]
    if inputs < NARROW:
        return f"an output reads {inputs} channels, less than the {NARROW} bits of a word"
    return ""


@torch.no_grad()
def binary_twin(layer: Layer) -> nn.Module:
    """The layer with signs for its inputs and weights, scaled by the mean size of an output's weights."""
    bias = layer.bias is not None
    made: BinaryConv2d | BinaryLinear
    if isinstance(layer, nn.Conv2d):
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        made = BinaryConv2d(*shape, layer.dilation, layer.groups, bias, layer.padding_mode)
    else:
        made = BinaryLinear(layer.in_features, layer.out_features, bias)
    scale = layer.weight.flatten(1).abs().mean(1).clamp_min(1e-6)
    made.weight.copy_(sign_of(layer.weight) * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None and made.bias is not None:
        made.bias.copy_(layer.bias)
    return made.eval()


@dataclass(frozen=True)
class Binarized:
    """A network with binary layers, before any training. layers: that are binary. left: why others are not."""

    model: nn.Module
    layers: tuple[str, ...]
    left: Mapping[str, str]


def binarized(model: nn.Module) -> Binarized:
    """A copy with binary layers where there can be some."""
    modules = dict(model.named_modules())
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.RNNBase)
    names = [name for name, module in modules.items() if isinstance(module, kinds)]
    left = {name: why for name in names if (why := reason_to_stay_real(name, modules[name], names))}
    twins = {name: binary_twin(modules[name]) for name in names if name not in left}
    return Binarized(swap(model, twins) if twins else model, tuple(twins), left)


def times_on_bits(real: Any, network: nn.Module, inputs: tuple[Tensor, ...], goal: Goal) -> float:
    """How many times as fast a network with binary layers runs on bits as the original on the goal's runtime.

    Args:
        real: the original as the goal's runtime opens it.
        network: with binary layers.
        inputs: one batch.
        goal: its runtime and threads.
    """
    runners: dict[str, Runner] = {
        "real": open_runner(goal.runtime, real, threads=goal.threads),
        "bits": open_runner("binary", network, threads=goal.threads),
    }
    found = steady_latency(runners, inputs, tries=1, repeats=20, warmup=3, seconds=4)
    return found["real"].min_ms / found["bits"].min_ms


def bits_of(model: nn.Module, layers: Sequence[str]) -> float:
    """Bits that parameters take: one for each weight of a binary layer and 32 for its scales, 32 for all else."""
    modules = dict(model.named_modules())
    signs = [modules[name].weight for name in layers]
    count, scales = sum(w.numel() for w in signs), sum(len(w) for w in signs)
    return float(count + 32 * scales + 32 * (parameter_count(model) - count))
