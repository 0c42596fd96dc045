"""Half-space projection (HSPG, Only Train Once): project groups to zero when a step leads out of their half space.

What it does: groups whose removal leaves the outputs as they are when they are zero are ranked by their norm. The least
salient, as many as the target asks for, get a step towards zero after each step of the optimizer. A group is projected
to exactly zero when its new values have left the half space around its last ones, that is, when the steps together
lead it through zero. Groups that are not chosen train as usual. Zero groups are removed, with proof.
Cost: one training, and a copy of the weights.
When it fails: groups with large gradients are kept away from zero; then the strength rises until they go. What is left
at the end of that time is removed.
Equation: v_g = w_g - lr lambda w_g / |w_g|; w_g <- 0 if <v_g, w_g of the last step> < margin |w_g of the last step|^2.
Source: Chen et al. 2021, arXiv:2107.07467, section 3 (half-space step); Chen et al. 2023, arXiv:2303.06862, section 4
(only redundant groups, chosen by saliency).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import HalfSpace
from gossamer.methods.prune._sparse import Penalized


@dataclass(frozen=True, kw_only=True)
class HalfSpaceProjection(Penalized):
    """Half-space projection (Chen et al. 2021, 2023). Give one target, or the strength.

    Args:
        margin: a group is projected if <new, last> < margin * |last|^2, in [0, 1); larger projects sooner.
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.HalfSpaceProjection(speedup=2, epochs=5, lr=0.01)(model, task)
        >>> smaller.conv2.out_channels < 16
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    margin: Annotated[float, Range(0, 1, open_=("high",))] = 0.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.sparsify(model, HalfSpace(self.margin), task, context, keeps_previous=True)
