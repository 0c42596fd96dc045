"""Loss-aware binarization (LAB): choose scales by the curvature of the loss, and train the real weights.

What it does: minimizes the loss over binary weights by a proximal Newton method. Its diagonal Hessian is the square
root of Adam's second moment. Each step moves real weights, and the nearest binary weights in the metric of the Hessian
are what the network computes with. With more bits: ternary weights (loss-aware ternarization) and m-bit weights
(loss-aware quantization).
Cost: a training of the network with Adam, with one forward pass of the teacher per batch; one more tensor for each
weight.
When it fails: with other optimizers there is no second moment, and the result is that of the least squared error.
Equation: a = ||d w||_1 / ||d||_1, b = sign(w); w <- w - g / d; d = sqrt(v) / lr, v the running mean of g^2. More bits:
b = round(k w / a) / k in turns with a = sum d b w / sum d b^2, k = 2^(m-1) - 1.
Source: Hou et al. 2017, arXiv:1611.01600, proposition 3.1; Hou & Kwok 2018, arXiv:1802.08635.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import LossAware
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.binarize._weights import BinaryWeights


@dataclass(frozen=True, kw_only=True)
class LossAwareBinarization(BinaryWeights):
    """Loss-aware binarization, ternarization and quantization (Hou et al. 2017, Hou & Kwok 2018).

    Args:
        bits: 1: two values; 2: three values; m: 2^m - 1 values.
        ends: binarize the first and the last layer, too.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.LossAwareBinarization(bits=2, layers=("fc1",), epochs=1, lr=0.001)
        >>> ternary, edits = method(model, task)
        >>> len(ternary.fc1.weight.unique())
        3
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    bits: Annotated[int, Range(1, 8)] = 1

    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        return LossAware(tuple(weight.shape), bits=self.bits, keep_zeros=masked)
