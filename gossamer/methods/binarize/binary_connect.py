"""BinaryConnect: train real weights whose signs the network computes with.

What it does: uses the sign of each weight in every forward pass, adds the gradient of the sign to the real weight
(straight-through estimator), and keeps real weights in a range. With stochastic signs, they are drawn while the network
trains, which regularizes; the result has the deterministic ones, and its batch norms are estimated again.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: with values -1 and 1 in networks without norms behind the layers, since outputs become large: leave scale
at "glorot". In recurrent layers, where products of such weights explode. Narrow layers lose accuracy.
Equation: w_b = s sign(w), or s with probability clamp((w / l + 1) / 2, 0, 1) and else -s; w is clipped to [-l, l] after
each step; l = sqrt(1.5 / (inputs + outputs)), s = l or 1.
Source: Courbariaux et al. 2015, arXiv:1511.00363, algorithm 1; the range of a layer is that of its code, where learning
rates are divided by l instead, which is the same under Adam.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import Signs
from gossamer.methods._base import Settings
from gossamer.methods.binarize._weights import BinaryWeights, glorot_limit


@dataclass(frozen=True, kw_only=True)
class BinaryConnect(BinaryWeights):
    """BinaryConnect (Courbariaux et al. 2015).

    Args:
        stochastic: draw the signs while the network trains.
        scale: of the values. "glorot": the range of the layer's real weights; "one": -1 and 1, as published. Behind a
            layer with a batch norm both give the same network.
        ends: binarize the first and the last layer, too.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.BinaryConnect(layers=("fc1",), epochs=1, lr=0.001)
        >>> binary, edits = method(model, task)
        >>> len(binary.fc1.weight.unique())
        2
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    stochastic: bool = False
    scale: Literal["glorot", "one"] = "glorot"

    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        limit = glorot_limit(weight)
        scale = limit if self.scale == "glorot" else 1.0
        return Signs(scale, limit=limit, stochastic=self.stochastic, keep_zeros=masked)
