"""Learning the number of neurons (group lasso, sparse group lasso): train under a penalty that empties whole neurons.

What it does: while training, a proximal step shrinks the weights of each neuron or channel, its bias with them, and
makes small ones exactly zero. They stay zero and are removed, with proof that outputs do not change. The strength of
the penalty follows from a target.
Cost: one training; a few passes over the weights in each step.
When it fails: the penalty shrinks large groups too, so that the rest of the training has to undo this bias. Channels
through shortcuts are removed only if all layers that make them agree.
Equation: min L + lambda sum_g sqrt(size_g) ((1 - alpha) |w_g|_2 + alpha |w_g|_1 / sqrt(size_g)); proximal step: soft
threshold by lr lambda alpha, then w_g <- max(0, 1 - lr lambda (1 - alpha) sqrt(size_g) / |w_g|) w_g.
Source: Alvarez & Salzmann 2016, arXiv:1611.06321, section 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import GroupLasso
from gossamer.methods.prune._sparse import Penalized


@dataclass(frozen=True, kw_only=True)
class NeuronCount(Penalized):
    """Learning the number of neurons (Alvarez & Salzmann 2016). Give one target, or the strength.

    Args:
        sparse: share of the l1 norm in the penalty, alpha, in [0, 1): 0 is the group lasso, 0.5 the paper's sparse
            group lasso.
        proximal: when the proximal step is done: after each "step" of the optimizer, or after each "epoch", as in the
            paper.
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.NeuronCount(speedup=2, layers=("conv*",), epochs=5, lr=0.01)
        >>> smaller, edits = method(model, task)
        >>> smaller.conv2.out_channels < 16
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    sparse: Annotated[float, Range(0, 1, open_=("high",))] = 0.0
    proximal: Literal["step", "epoch"] = "step"

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        every = len(task.train) if self.proximal == "epoch" else 1
        return self.sparsify(model, GroupLasso(self.sparse), task, context, every=every)
