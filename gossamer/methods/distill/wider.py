"""Net2WiderNet: add channels to a trained network, at first without changing what it computes.

What it does: copies channels drawn at random, with everything that is coupled to them (through shortcuts,
concatenations, batch norms), and divides the weights that read them among the copies. The wider network gives the
outputs of the original and can learn more: train it on, at about a tenth of the original's learning rate.
Cost: a trace of the network and a few runs of the example inputs. The network grows: it is the start of a more accurate
one, or of a teacher.
When it fails: where something normalizes over channels (layer norm), where a `forward` has its widths written into it,
and in grouped convolutions; such groups stay as they are, and the log says why.
Equation: W1'[j] = W1[g(j)], W2'[:, j] = s_j W2[:, g(j)], where the shares s of a channel's copies add up to 1.
Source: Chen, Goodfellow & Shlens 2015, arXiv:1511.05641, section 2.2. Shares differ a little between copies, so that
their gradients differ; the paper adds noise, which changes the function.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect
from gossamer.graph.groups import find_groups
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.widening import widen


@dataclass(frozen=True, kw_only=True)
class Net2Wider(Method):
    """Add channels to a network, for training on (Net2WiderNet). Give either `factor` or `widths`.

    Args:
        factor: ratio of the new to the old number of channels, in (1, 64], for every group that can grow.
        widths: number of channels by group, as `gossamer analyze` lists them.

    Raises:
        BadInput: both or neither are given, or a named group cannot grow.
        NoEffect: no group grew.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> wider, edits = gossamer.methods.distill.Net2Wider(factor=1.5)(model, task.example_inputs)
        >>> [(edit.target, edit.after) for edit in edits]
        [('conv1', '12 channels'), ('conv2', '24 channels'), ('fc1', '24 channels')]
    """

    stage: ClassVar[int | None] = 10
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"factor": 1.5}

    factor: Annotated[float | None, Range(1, 64, open_=("low",))] = None
    widths: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.factor is None) == (not self.widths):
            raise BadInput(f"{self.name()}: give either factor or widths")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        found = find_groups(model, task.example_inputs)
        grown = {group.name: round((self.factor or 1.0) * group.size) for group in found.prunable()}
        result = widen(found, self.widths or grown, seed=context.seed)
        why = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in result.left.items()))
        if self.widths and result.left:
            raise BadInput(f"{self.name()}: {why}")
        if all(after == before for before, after in result.widths.values()):
            raise NoEffect(f"{self.name()}: no group of channels got wider{f': {why}' if why else ''}")
        for name, (before, after) in result.widths.items():
            self.note(
                context,
                EditKind.RESIZE,
                name,
                before=f"{before} channels",
                after=f"{after} channels",
                proof=result.proof,
            )
        for name, reason in result.left.items():
            self.note(context, EditKind.RESIZE, name, before="channels", after="left alone", note=reason)
        return result.model
