"""Masks: weights that are zero."""

from typing import ClassVar

import torch
from torch import Tensor

from gossamer.constraints.base import Constraint
from gossamer.errors import BadInput


class Mask(Constraint):
    """Pruning: masked weights are zero, and so are their gradients.

    Args:
        mask: bool, True keeps, of the weight's shape.

    Raises:
        BadInput: for a mask of another dtype.

    Example:
        >>> import torch
        >>> Mask(torch.tensor([True, False]))(torch.tensor([3.0, 4.0]))
        tensor([3., 0.])
    """

    order: ClassVar[int] = 0
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise BadInput(f"Mask: the mask is {mask.dtype}, it must be torch.bool (True keeps)")
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        return weight.where(self.mask, 0.0)

    def check(self, weight: Tensor) -> None:
        if self.mask.shape != weight.shape:
            raise BadInput(f"Mask has {list(self.mask.shape)}, the weight {list(weight.shape)}: they must be equal")
