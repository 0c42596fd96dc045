"""Ternary weight networks (TWN, TTQ): train weights of three values, one of them zero.

What it does: sets weights below a threshold to zero and replaces the others by their sign times a scale. The scale is
the mean of these weights (TWN), or there are two values that are trained with the network (TTQ).
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: first and last layers lose most; the sources keep them real for ImageNet, and so does the default here.
Equation: TWN: threshold 0.7 mean |w|, a = mean of |w| above it. TTQ: threshold t max |w|; w_t is p, 0 or -n; dp = sum
    of
the gradients of its weights; the gradient of a real weight is that of w_t times p, 1 or n.
Source: Li et al. 2016, arXiv:1605.04711, section 2; Zhu et al. 2016, arXiv:1612.01064, section 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from gossamer.constraints.base import Constraint
from gossamer.constraints.signs import TernaryWeights, TrainedTernary
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.binarize._weights import BinaryWeights


def first_values(weight: Tensor, threshold: float) -> tuple[float, float]:
    """Return the mean sizes of the weights above and below +- threshold * max |w|; 1 where there are none."""
    limit = threshold * weight.abs().max()
    means = (part.abs().mean() if len(part) else 1.0 for part in (weight[weight > limit], weight[weight < -limit]))
    positive, negative = (float(mean) for mean in means)
    return positive, negative


@dataclass(frozen=True, kw_only=True)
class TernaryNetwork(BinaryWeights):
    """Ternary weight networks (Li et al. 2016) and trained ternary quantization (Zhu et al. 2016).

    Args:
        values: "mean": one scale, the mean of the weights above the threshold (TWN); "trained": two values, trained
            with the network (TTQ).
        threshold: below it weights become zero; with "mean" in units of mean |w|, usually 0.7, with "trained" in units
            of max |w|, usually 0.05. None: the usual one.
        ends: binarize the first and the last layer, too.
        layers, ignore, optimizer, epochs, lr, weight_decay, clip, temperature, alpha: see `BinaryTraining`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.binarize.TernaryNetwork(layers=("fc1",), epochs=1, lr=0.001)
        >>> ternary, edits = method(model, task)
        >>> len(ternary.fc1.weight.unique())
        3
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.001}

    values: Literal["mean", "trained"] = "mean"
    threshold: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    ends: bool = False

    def constraint(self, weight: Tensor, *, masked: bool) -> Constraint:
        if self.values == "mean":
            return TernaryWeights(self.threshold or 0.7)
        threshold = self.threshold or 0.05
        return TrainedTernary(*first_values(weight, threshold), threshold)
