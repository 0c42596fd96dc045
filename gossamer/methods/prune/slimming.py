"""Network slimming: train with an l1 penalty on the scales of the batch norms, and remove channels without scale.

What it does: after each step, the scales of the batch norms are shrunk towards zero. A channel whose scales are exactly
zero loses its shift, too, stays zero and is removed, with proof that outputs do not change.
Cost: one training; the scales are few.
When it fails: networks without batch norms. Of channels through shortcuts, the scales of all batch norms that make them
have to become zero.
Equation: min L + lambda sum |gamma|; step: gamma <- sign(gamma) max(0, |gamma| - lr lambda).
Source: Liu et al. 2017, arXiv:1708.06519, section 3, with a proximal step in the place of the subgradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import NoEffect
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import Magnitudes
from gossamer.methods.prune._sparse import Penalized
from gossamer.modules.element_groups import ElementGroups


@dataclass(frozen=True, kw_only=True)
class Slimming(Penalized):
    """Network slimming (Liu et al. 2017). Give one target, or the strength.

    Args:
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Raises:
        NoEffect: no selected layer makes channels for a batch norm with scales.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.Slimming(speedup=2, epochs=5, lr=0.01)(model, task)
        >>> smaller.conv2.out_channels < 16
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        [groups] = super().families(model, task)
        scales = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _BatchNorm) and name}
        slim = groups.only(scales)
        if not len(slim):
            raise NoEffect(f"{self.name()} needs batch norms with scales, and there are none; use prune.group_lasso")
        return (slim,)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.sparsify(model, Magnitudes(), task, context, by_size=False)
