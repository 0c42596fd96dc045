"""Remove units that zeros have cut off.

What it does: removes neurons and channels that no weight reads any more, and those that no weight feeds, whose constant
value goes into the biases behind them; again and again, until none is left. The outputs stay what they were. Masks go
on holding what is left of their weights.
Cost: a few traces of the network.
When it fails: a constant in front of a convolution that pads with zeros, or that has no bias, cannot be folded: the
unit stays. At moderate sparsity nothing is dead, and nothing happens.
Equation: x_j = c for all inputs: b <- b + W_j c, then W_j is gone.
Source: Han et al. 2015, arXiv:1506.02626, section 3.5.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.constraints.base import Mask, constrain, constraints, materialize
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.graph.slicing import take
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.dead_units import remove_dead


@dataclass(frozen=True, kw_only=True)
class DeadUnits(Method):
    """Comes after everything that makes zeros, and before everything that shares values."""

    stage: ClassVar[int | None] = 55
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {}

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        masks: dict[str, Tensor] = {}
        for name, stack in constraints(model).items():
            for constraint in stack:
                if not isinstance(constraint, Mask):
                    raise BadInput(
                        f"{self.name()}: {name} is held by {type(constraint).__name__}; put prune.dead first"
                    )
                masks[name] = masks[name] & constraint.mask if name in masks else constraint.mask
        cleared = remove_dead(materialize(model), task.example_inputs)
        for cut in cleared.cuts:
            masks = {name: take(mask, cut.kept.get(name, {})) for name, mask in masks.items()}
        for name, (before, after) in (cleared.widths or {"all layers": (0, 0)}).items():
            self.note(
                context,
                "resize",
                name,
                before=f"{before} units" if before else "no dead units",
                after=f"{after} units" if after else "nothing to remove",
                proof=cleared.max_relative,
                note=f"{cleared.folded} constants folded into biases" if cleared.folded else "",
            )
        return constrain(cleared.model, {n: Mask(m) for n, m in masks.items()}) if masks else cleared.model
