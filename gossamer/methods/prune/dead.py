"""Dead unit removal: remove neurons and channels whose connections are all zero.

What it does: removes neurons and channels that no weight reads, and those that no weight feeds, whose constant output
is added to the biases of the next layers. This is repeated until none is left. The network's outputs do not change.
Masks stay on the remaining weights.
Cost: a few traces of the network.
When it fails: a constant in front of a convolution that pads with zeros, or that has no bias, cannot be folded: the
unit stays. At moderate sparsity no unit is dead, and nothing happens.
Equation: x_j = c for all inputs: b <- b + W_j c, then W_j is removed.
Source: Han et al. 2015, arXiv:1506.02626, section 3.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.graph.slicing import take_channels
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.dead_units import remove_dead


@dataclass(frozen=True, kw_only=True)
class DeadUnits(Method):
    """Removal of dead units (Han et al. 2015). It has no settings.

    In a recipe it comes after the methods that make zeros and before those that share or quantize values.

    Raises:
        BadInput: a weight has a constraint that is not a mask.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> model[0].weight.data[:2] = 0
        >>> smaller, edits = gossamer.methods.prune.DeadUnits()(model, torch.zeros(1, 4))
        >>> smaller[0]
        Linear(in_features=4, out_features=4, bias=True)
    """

    stage: ClassVar[int | None] = 55
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        masks: dict[str, Tensor] = {}
        for name, stack in constraints(model).items():
            for constraint in stack:
                if not isinstance(constraint, Mask):
                    raise BadInput(
                        f"{self.name()}: {name} is constrained by {type(constraint).__name__}; put prune.dead first"
                    )
                masks[name] = masks[name] & constraint.mask if name in masks else constraint.mask
        cleared = remove_dead(materialize(model), task.example_inputs)
        for cut in cleared.cuts:
            masks = {name: take_channels(mask, cut.kept.get(name, {})) for name, mask in masks.items()}
        for name, (before, after) in (cleared.widths or {"all layers": (0, 0)}).items():
            self.note(
                context,
                EditKind.RESIZE,
                name,
                before=f"{before} units" if before else "no dead units",
                after=f"{after} units" if after else "nothing to remove",
                proof=cleared.max_relative,
                note=f"{cleared.folded} constants folded into biases" if cleared.folded else "",
            )
        return constrain(cleared.model, {n: Mask(m) for n, m in masks.items()}) if masks else cleared.model
