"""Group norm pruning with growing regularization (GReg, DepGraph): decay the smallest coupled groups until they go.

What it does: channels are ranked by the norm of everything that is coupled with them: rows that make them, columns that
read them, batch norms between. Those that have to go for the target are decayed more and more while training, the
smallest the most. What is left of them at the end of that time is removed, and the rest of the training recovers.
Cost: one training; a few passes over the weights in each step.
When it fails: groups become small but not zero before they are removed, so that a short training pays for the removal
at once. The ranking can change while training; a group that is no longer chosen is not decayed any more.
Equation: w_g <- (1 - lr lambda_t base^(1 - s_g)) w_g for the chosen groups g, s_g the norm of the group scaled to
[0, 1]; lambda_t grows as the norms of the chosen groups ask for it.
Source: Wang et al. 2021, arXiv:2012.09243, section 3 (growing); Fang et al. 2023, arXiv:2301.12900, section 3.3 (groups
and their exponents).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import Growing
from gossamer.methods.prune._sparse import SparseTraining
from gossamer.modules.element_groups import ElementGroups, channel_groups


@dataclass(frozen=True, kw_only=True)
class GrowingRegularization(SparseTraining):
    """Group norm pruning with growing regularization (Wang et al. 2021; Fang et al. 2023). Give one target.

    Args:
        base: how much stronger the smallest group is decayed than the largest, >= 1.
        speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.GrowingRegularization(speedup=2, epochs=5, lr=0.01)
        >>> smaller, edits = method(model, task)
        >>> smaller.conv1.out_channels < 8
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    base: Annotated[float, Range(1, 1e6)] = 16.0

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        inputs = task.example_inputs
        return (channel_groups(model, inputs, sides="both", layers=self.layers, ignore=self.ignore),)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.sparsify(model, Growing(self.base), task, context)
