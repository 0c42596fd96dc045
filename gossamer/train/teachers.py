"""Teachers that are more than one network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from gossamer.errors import BadInput


class ExternalModel(nn.Module):
    """A teacher that only gives outputs: no layers and no weights to learn from, and no costs that could be counted."""

    recorded: ClassVar[bool] = False  # whether it knows nothing but what it was asked before

    def __deepcopy__(self, memo: dict[int, Any]) -> "ExternalModel":
        return self


def only_remembers(teacher: nn.Module) -> bool:
    """Whether it, or one of an ensemble, gives outputs for what it was asked before, and for nothing else."""
    return any(isinstance(part, ExternalModel) and part.recorded for part in teacher.modules())


def gives_outputs_only(teacher: nn.Module) -> bool:
    """Whether it, or one of an ensemble, is such a teacher."""
    return any(isinstance(part, ExternalModel) for part in teacher.modules())


class Ensemble(nn.Module):
    """Several networks as one: the mean of their outputs, logits for logits (Ba & Caruana 2014, section 2.2)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise BadInput("an ensemble needs at least one network")
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Any) -> Any:
        """Outputs of any structure that is the same for all members."""
        flat = [tree_flatten(member(*inputs)) for member in self.members]
        first, structure = flat[0]
        for number, (leaves, other) in enumerate(flat[1:], 2):
            mine, theirs = [_shape(x) for x in first], [_shape(x) for x in leaves]
            if other != structure or mine != theirs:
                raise BadInput(
                    f"the teachers of an ensemble must give equal outputs: the first gives {mine}, "
                    f"number {number} gives {theirs}"
                )
        return tree_unflatten([_mean(column) for column in zip(*(leaves for leaves, _ in flat))], structure)


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__


def _mean(column: Sequence[Any]) -> Any:
    """Of what is floating-point; the first member's where it is not."""
    first = column[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return first
    return torch.stack(list(column)).mean(0)
