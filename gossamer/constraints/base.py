"""The base class of all constraints.

A constraint is a parametrization (`torch.nn.utils.parametrize`): the optimizer moves the raw weight and the parameters
of the constraint, and the layer computes with the effective weight. Whatever momentum or weight decay do to the raw
weight, the effective one stays in its set.
"""

from typing import ClassVar

from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.gsr.format.generated import GeneratedWeight


class Constraint(nn.Module):
    """A set that a weight stays in: maps a raw weight to its effective value, of the same shape.

    Subclasses implement `forward`. Constraints stack: what the first one gives is the input of the next. `order` must
    not fall on the way, since what fixes zeros comes before what fixes values.

    Args:
        order: where it belongs in a stack; masks have 0, what fixes values has 1.
        place: of the weight among the parameters of its layer, to which `materialize` restores it.

    Example:
        >>> import torch
        >>> class Positive(Constraint):
        ...     def forward(self, weight):
        ...         return weight.clamp(min=0)
        >>> Positive()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    order: ClassVar[int] = 1
    place: int = 0  # of the weight among the parameters of its layer, to which `materialize` restores it

    def check(self, weight: Tensor) -> None:
        """Raise BadInput if this does not fit such a weight."""
        try:
            shape = self(weight).shape
        except (RuntimeError, IndexError) as error:
            raise BadInput(f"{type(self).__name__} does not fit a weight of {list(weight.shape)}: {error}") from error
        if shape != weight.shape:
            raise BadInput(f"{type(self).__name__} gives {list(shape)} for a weight of {list(weight.shape)}")

    def finalized(self) -> "Constraint":
        """The constraint that replaces this one when its training ends; itself by default."""
        return self

    def rebuild(self) -> None:
        """Recompute what follows from the rest and is in no state dict."""

    def generated(self) -> GeneratedWeight | None:
        """The effective weight as a rule and fewer numbers, for the compact file; None where there is no rule."""
        return None
