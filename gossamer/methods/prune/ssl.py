"""Structured sparsity learning (SSL): group lasso on filters, channels, filter shapes and depth while training.

What it does: while training, proximal steps empty four kinds of groups: filters (what makes a channel), channels (what
reads one), filter shapes (one tap of one input channel in all filters of a layer), and whole residual blocks. Filters
and channels are cut, residual blocks become identities, and layers with empty columns read fewer inputs: outputs stay
what they are.
Cost: one training; a few passes over the weights in each step, for each kind.
When it fails: kinds compete. Where shapes are emptied, less is gained by filters. Blocks go early, since they are few
groups of many weights: give depth alone, or leave it out.
Equation: min L + lambda sum over kinds, sum_g sqrt(size_g) |w_g|_2, with the proximal step of each kind in turn.
Source: Wen et al. 2016, arXiv:1608.03665, section 3, with proximal steps in the place of subgradients and a threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, unknown
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import GroupLasso
from gossamer.methods.prune._sparse import Penalized, unread
from gossamer.modules.element_groups import ElementGroups, Sides, block_groups, channel_groups, column_groups

KINDS = ("filters", "channels", "shapes", "depth")


@dataclass(frozen=True, kw_only=True)
class StructuredSparsity(Penalized):
    """Structured sparsity learning (Wen et al. 2016). Give one target, or the strength.

    Args:
        groups: kinds of groups, of "filters", "channels", "shapes" and "depth".
        gather: whether layers with empty columns are replaced by layers that gather the inputs they read; else they
            keep zeros.
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`. "depth" has
            every residual block, whatever the layers.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.StructuredSparsity(speedup=2, groups=("filters",), epochs=5, lr=0.01)
        >>> smaller, edits = method(model, task)
        >>> smaller.conv2.out_channels < 16
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    groups: tuple[str, ...] = ("filters", "channels")
    gather: bool = True

    def __post_init__(self) -> None:
        for kind in self.groups:
            if kind not in KINDS:
                raise unknown(f"{self.name()} group", kind, KINDS)
        if not self.groups:
            raise BadInput(f"{self.name()}: groups is empty; name some of {', '.join(KINDS)}")
        super().__post_init__()

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        return [self._family(kind, model, task) for kind in self.groups]

    def implied(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        """Return the channels whose columns may all become empty."""
        return unread(model, task) if "shapes" in self.groups else ()

    def _family(self, kind: str, model: nn.Module, task: Task) -> ElementGroups:
        match kind:
            case "shapes":
                return column_groups(model, layers=self.layers, ignore=self.ignore)
            case "depth":
                return block_groups(model, task.example_inputs)
            case _:
                sides: Sides = "made" if kind == "filters" else "read"
                inputs = task.example_inputs
                return channel_groups(model, inputs, sides=sides, layers=self.layers, ignore=self.ignore)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        smaller = self.sparsify(model, GroupLasso(), task, context)
        if "shapes" not in self.groups or not self.gather:
            return smaller
        return self.thinned(smaller, task, context)
