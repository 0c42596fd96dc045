"""How much each group of coupled channels is missed: cut for real, one group at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import NoEffect
from gossamer.graph.groups import find_groups
from gossamer.measure import evaluate
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.train import recalibrate

SPARSITIES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Drop in points on validation after one group was cut to `kept` of `size` channels, without training."""

    group: str
    sparsity: float
    kept: int
    size: int
    drop: float


def sensitivity(
    model: nn.Module, task: Task, context: Context, *, sparsities: Sequence[float] = SPARSITIES
) -> list[Sensitivity]:
    """Cut each group alone, by each sparsity, and measure (Li et al. 2017, arXiv:1608.08710, section 3.2, by groups).

    A group is everything that must be cut together, so a layer whose channels run through a shortcut is judged with all
    that it takes along; scanned layer by layer, such layers would look robust. Batch norms are estimated again.
    """
    groups = [group for group in find_groups(model, task.example_inputs).groups if group.reason is None]
    if not groups:
        raise NoEffect("this network has no channels that can be cut; `gossamer analyze` says why")
    before = evaluate(model.eval(), task)
    rows = []
    trials = [(group, sparsity) for group in groups for sparsity in sparsities]
    for group, sparsity in context.progress.bar(trials, label="sensitivity"):
        kept = max(1, round(group.size * (1 - sparsity)))
        small = ChannelPruning(widths={group.name: kept})(model, task, seed=context.seed).model
        recalibrate(small, task.calibration)
        drop = before.metric.lost(before.value, evaluate(small.eval(), task).value)
        rows.append(Sensitivity(group=group.name, sparsity=sparsity, kept=kept, size=group.size, drop=drop))
    return rows
