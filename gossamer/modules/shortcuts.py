"""What shortcuts of residual blocks have become wrong by, for the last layers of these blocks to make up for."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.weight_reconstruction import layer_input, layers_of
from gossamer.graph.tracer import trace
from gossamer.modules.blocks import find_blocks
from gossamer.modules.folding import norms_after


@dataclass(frozen=True)
class Shortcut:
    """An identity shortcut around a block whose last layer is known.

    Attributes:
        block: its name.
        norm: of the batch norm between the last layer and the addition, None where there is none.
    """

    block: str
    norm: str | None

    def __call__(self, model: nn.Module, original: nn.Module, batch: Any) -> Tensor:
        """What the last layer has to give more, so that the sum is the original's: (x_original - x) / scale."""
        before, now = (layer_input(one, self.block, batch, whole=False) for one in (original, model))
        assert before is not None and now is not None
        error = before - now
        if self.norm is None:
            return error
        norm: Any = model.get_submodule(self.norm)
        gain = norm.weight if norm.affine else torch.ones_like(norm.running_var)
        scale = gain / (norm.running_var + norm.eps).sqrt()
        # Channels that the norm all but silences cannot make up for anything.
        inverse = torch.where(scale.abs() > 1e-3 * scale.abs().max(), 1 / scale, 0.0)
        return error * inverse.view(1, -1, *[1] * (error.dim() - 2))


def shortcut_errors(model: nn.Module, example_inputs: Any) -> dict[str, Shortcut]:
    """The identity shortcuts of a network, by the name of the last layer inside each block.

    Args:
        model: without constraints.
        example_inputs: what it is run on.

    Example:
        >>> class Block(nn.Sequential):
        ...     def forward(self, x):
        ...         return x + super().forward(x)
        >>> model = nn.Sequential(Block(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), nn.Linear(3, 2))
        >>> shortcut_errors(model, torch.zeros(1, 3))
        {'0.2': Shortcut(block='0', norm=None)}
    """
    t = trace(model, example_inputs)
    norms, found = norms_after(model, t), {}
    for block in find_blocks(model, example_inputs):
        inside = [name for name in layers_of(t) if name.startswith(f"{block.name}.")]
        if inside:
            found[inside[-1]] = Shortcut(block.name, norms.get(inside[-1]))
    return found
