"""Biased weight decay (hyperbolic, exponential): a decay that is strong on small units and vanishes on large ones.

What it does: while training, the weights of each unit, with its bias, are shrunk by a penalty on the sum of their
magnitudes that levels off. Units that do little die, and units that are in use keep their size. Units at exactly zero
stay zero and are removed, with proof that outputs do not change.
Cost: one training; a few passes over the weights in each step.
When it fails: the penalty is not convex. Which units die depends on where the training starts: a strength that is too
large at first empties units that would have been useful.
Equation: B = sum_i w_i / (1 + s w_i), or (1 - exp(-s w_i)) / s, w_i = sum_j |w_ij|; step: soft threshold of w_ij by
lr lambda B'(w_i), B' = 1 / (1 + s w_i)^2 or exp(-s w_i). s is in units of the layer's mean w_i, or exp(-s w_i) is zero
for every unit with many inputs.
Source: Hanson & Pratt 1988, Comparing Biases for Minimal Network Construction with Back-Propagation, NIPS 1; the step
along the tangent of the concave bias is that of iteratively reweighted l1, Candes et al. 2008, arXiv:0711.1612.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import Biased
from gossamer.methods.prune._sparse import Penalized


@dataclass(frozen=True, kw_only=True)
class BiasedDecay(Penalized):
    """Biased weight decay (Hanson & Pratt 1988). Give one target, or the strength.

    Args:
        bias: "hyperbolic" or "exponential".
        sharpness: how soon the bias levels off, >= 0, where a unit's sum of magnitudes is 1 if it is the mean of its
            layer; at 0 it is the l1 norm.
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.BiasedDecay(speedup=2, layers=("conv*",), epochs=5, lr=0.01)
        >>> smaller, edits = method(model, task)
        >>> smaller.conv2.out_channels < 16
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    bias: Literal["hyperbolic", "exponential"] = "hyperbolic"
    sharpness: Annotated[float, Range(0, 1e6)] = 1.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.sparsify(model, Biased(self.bias, self.sharpness), task, context, by_size=False)
