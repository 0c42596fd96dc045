"""Group-wise brain damage: empty columns of the lowered convolution, and multiply thinner matrices.

What it does: while training, one tap of one input channel becomes zero in all filters of a convolution together: a
column of the matrix that the convolution is lowered to. Only the columns that have to go for the target are shrunk. At
the end, such a convolution gathers the inputs that it still reads and multiplies a really smaller matrix.
Cost: one training; a few passes over the weights in each step.
When it fails: gathering has a price. Where few columns are empty, the dense convolution is faster: measure. Runtimes
that do not lower convolutions to matrix products gain later.
Equation: min L + lambda sum over taps i, j and inputs s of |K(i, j, s, :)|_2, for the smallest columns only; proximal
step K(i, j, s, :) <- max(0, 1 - lr lambda sqrt(T) / |K(i, j, s, :)|) K(i, j, s, :), T the number of filters.
Source: Lebedev & Lempitsky 2016, arXiv:1506.02515, sections 3.2 and 3.3 (gradual group-wise sparsification).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import GroupLasso
from gossamer.methods.prune._sparse import SparseTraining, unread
from gossamer.modules.element_groups import ElementGroups, column_groups


@dataclass(frozen=True, kw_only=True)
class BrainDamage(SparseTraining):
    """Group-wise brain damage (Lebedev & Lempitsky 2016). Give one target.

    Args:
        gather: whether the convolutions are replaced by ones that gather the inputs they read; else they keep zeros.
        speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`. Only convolutions
            without groups count among `layers`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Raises:
        NoEffect: none of the selected layers is a convolution without groups.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.BrainDamage(speedup=2, layers=("conv2",), epochs=5, lr=0.01)
        >>> thin, edits = method(model, task)
        >>> thin.conv2.conv.in_channels < 8 * 9
        True
    """

    stage: ClassVar[int | None] = 35  # convolutions that gather have no channels that could be cut afterwards
    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    gather: bool = True

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        return (column_groups(model, layers=self.layers, ignore=self.ignore, linear=False),)

    def implied(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        """Return the channels whose columns may all become empty."""
        return unread(model, task)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        smaller = self.sparsify(model, GroupLasso(gradual=True), task, context)
        return self.thinned(smaller, task, context) if self.gather else smaller
