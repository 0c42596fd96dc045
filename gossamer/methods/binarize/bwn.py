"""Binary-Weight-Networks (BWN): train weights that are signs times one scale for each filter.

What it does: replaces each filter by its signs times the mean size of its weights, which is the nearest such filter,
and trains the real weights behind it. Products with such weights need additions only, and one multiplication per
output.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: first and last layers lose most; the source keeps them real, and so does the default here.
Equation: W ~ a B, B = sign(W), a = mean |W| minimize ||W - a B||^2 = ||W||^2 - n a^2; dC/dW_i = dC/dW~_i (1 / n + a
[|W_i| < 1]).
Source: Rastegari et al. 2016, arXiv:1603.05279, section 3.1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import ScaledSigns
from gossamer.methods._base import Settings
from gossamer.methods.binarize._weights import BinaryWeights


@dataclass(frozen=True, kw_only=True)
class BinaryWeightNetwork(BinaryWeights):
    """Binary-Weight-Networks (Rastegari et al. 2016).

    Args:
        ends: binarize the first and the last layer, too.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.BinaryWeightNetwork(layers=("fc1",), epochs=1, lr=0.001)
        >>> binary, edits = method(model, task)
        >>> len(binary.fc1.weight[0].unique())
        2
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    ends: bool = False

    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        return ScaledSigns(keep_zeros=masked)
