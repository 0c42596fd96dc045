"""Set the smallest weights to zero.

What it does: ranks the weights by size, drops the smallest, and holds them at zero through all later training.
Cost: one sort.
When it fails: at high sparsity in one shot accuracy is lost that training may not bring back: use `prune.gradual` or
`prune.iterative`. A global ranking can empty a layer whose weights are all small. Zeros make the file smaller; a dense
kernel is not faster for them.
Equation: keep the largest |w|. scope "lamp": the largest w_u^2 / (sum of w_v^2 over the layer's v with |w_v| >= |w_u|);
"erk": density of a layer ~ (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w).
Source: Han et al. 2015, arXiv:1506.02626, section 3; Lee et al. 2021, arXiv:2010.07611 (LAMP); Evci et al. 2020,
arXiv:1911.11134 (ERK).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Settings
from gossamer.methods.prune._masks import (
    Scope,
    held_weights,
    hold,
    layer_masks,
    scoped_masks,
    scores_of,
    sparsity_of,
)


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: Scope = "layer") -> dict[str, Tensor]:
    """Masks by name that drop round(sparsity * number) weights, exactly that many also where weights are equal."""
    return scoped_masks(scores_of(weights, scope), sparsity, scope)


def masks_by_layer(weights: Mapping[str, Tensor], sparsities: Mapping[str, float]) -> dict[str, Tensor]:
    """Masks of the layers that `sparsities` names, each with its own sparsity."""
    by_name = sparsity_of(weights, sparsities)
    scores = {name: weights[name].abs() for name in by_name}
    return layer_masks(scores, {name: round(s * weights[name].numel()) for name, s in by_name.items()})


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Give sparsity (of all named layers together), shared out by `scope`, or sparsities (by layer or pattern; later
    ones win). scope: "layer" (the same in each), "global" (one ranking), "lamp", "erk"."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    example: ClassVar[Settings] = {"sparsity": 0.4}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    sparsities: Mapping[str, float] = field(default_factory=dict)
    scope: Scope = "layer"
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (not self.sparsities):
            raise BadInput(f"{self.name()}: give either sparsity or sparsities")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = held_weights(model, self.layers, self.ignore)
        if self.sparsity is None:
            return hold(model, masks_by_layer(weights, self.sparsities), context, self.name())
        return hold(model, magnitude_masks(weights, self.sparsity, self.scope), context, self.name())
