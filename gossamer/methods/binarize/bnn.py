"""Binarized neural networks (BNN, BinaryNet): train signs of weights and of inputs.

What it does: layers compute with the signs of their weights and of their inputs, so that a product is an XNOR and a
count. A batch norm stands before each sign. Gradients pass through the sign where the input is in [-1, 1]. The first
layer keeps its inputs, in fixed-point numbers where its weights are binarized.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: accuracy drops in narrow and in deep networks; binarize.bireal and binarize.react keep more. Pools and
ReLUs directly before a sign lose its information; modules ReLU become Hardtanh.
Equation: y = sign(w) * sign(z), z = norm(x); dz = d sign(z) [|z| <= 1]; w is clipped to the layer's range.
Source: Courbariaux et al. 2016, arXiv:1602.02830, algorithms 1, 3 and 5, section 1.3.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import Signs
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.binarize._inputs import BinaryInputs, binary_layer
from gossamer.methods.binarize._weights import glorot_limit
from gossamer.modules.binary import FixedPointInput, Norm


def fixed_point_step(x: Tensor, bits: int) -> float:
    """Return the smallest power of two with which fixed-point numbers of so many bits reach the largest of x."""
    largest = float(x.detach().abs().max())
    return 2.0 ** math.ceil(math.log2(largest / ((1 << (bits - 1)) - 1))) if largest > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class BinarizedNetwork(BinaryInputs):
    """Binarized neural networks (Courbariaux et al. 2016).

    Args:
        norm: "batch": a batch norm before each sign; "shift": one that multiplies by powers of two alone while it is
            trained, and becomes the ordinary one with the same outputs; "none": where the network has one there.
        first_bits: of the inputs of the first layer where `ends` binarizes its weights. None: real inputs.
        ends: binarize the first and the last layer, too, as published.
        activations, layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryInputs`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.BinarizedNetwork(ends=True, epochs=1, lr=0.001)
        >>> binary, edits = method(model, task)
        >>> binary.fc2.sign
        Sign(estimator='hard_tanh')
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    norm: Norm = "batch"
    first_bits: Annotated[int | None, Range(2, 16)] = 8

    def replacement(self, layer: nn.Module, x: Tensor) -> nn.Module:
        return binary_layer(layer, x, norm=self.norm)

    def first_replacement(self, name: str, layer: nn.Module, x: Tensor) -> dict[str, nn.Module]:
        if self.first_bits is None:
            return {}
        return {name: nn.Sequential(FixedPointInput(self.first_bits, fixed_point_step(x, self.first_bits)), layer)}

    def constraint(self, weight: Tensor) -> Constraint:
        limit = glorot_limit(weight)
        return Signs(limit, limit=limit)
