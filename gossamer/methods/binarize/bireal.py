"""Bi-Real net: binary layers with real shortcuts around each.

What it does: carries the real input of each binary layer around it and adds it to the normed outputs, so that real
values reach the end of the network. The gradient of the sign is that of a piecewise polynomial, which is nearer to it.
Cost: a training of the network, with one forward pass of the teacher per batch. Shortcuts have no weights and cost one
addition per output.
When it fails: where a layer changes the shape in a way that neither a pool nor repeated channels follow, there is no
shortcut.
Equation: y = norm(sign(w) * sign(x)) + x; d sign(x) = 2 - 2 |x| where |x| < 1, else 0.
Source: Liu et al. 2018, arXiv:1808.00278, section 3; strides and widths as in Liu et al. 2020, arXiv:2003.03488.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import ScaledSigns
from gossamer.methods._base import Settings
from gossamer.methods.binarize._inputs import BinaryInputs, binary_layer, with_shortcut
from gossamer.modules.binary import Norm


@dataclass(frozen=True, kw_only=True)
class BiRealNetwork(BinaryInputs):
    """Bi-Real net (Liu et al. 2018).

    Args:
        norm: "batch": a batch norm before each sign; "shift": one of powers of two in the training;
            "none": where values have both signs there.
        ends: binarize the first and the last layer, too; the first keeps real inputs.
        activations, layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryInputs`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.BiRealNetwork(layers=("fc2",), epochs=1, lr=0.001)
        >>> binary, edits = method(model, task)
        >>> edits[0].target
        'fc2'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    norm: Norm = "batch"

    def replacement(self, layer: nn.Module, x: Tensor) -> nn.Module:
        return with_shortcut(binary_layer(layer, x, norm=self.norm, estimator="polynomial"))

    def constraint(self, weight: Tensor) -> Constraint:
        return ScaledSigns()
