"""Magnitude pruning: set the smallest weights to zero.

What it does: ranks the weights by absolute value, sets the smallest to zero and keeps them at zero in all later
training.
Cost: one sort of the weights. No data.
When it fails: at high sparsity in one shot, accuracy is lost that training may not recover: use `prune.gradual` or
`prune.iterative`. A global ranking can empty a layer whose weights are all small. Zeros make the compact file smaller;
dense kernels do not run faster because of them.
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
    layer_masks,
    mask_weights,
    scoped_masks,
    scores_of,
    selected_weights,
    sparsity_of,
)


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: Scope = "layer") -> dict[str, Tensor]:
    """Return masks that drop exactly round(sparsity * number of weights) of the smallest weights.

    Args:
        weights: by name, of any shapes.
        sparsity: fraction to drop over all weights together, in [0, 1].
        scope: how the sparsity is spread over the layers; see `scoped_masks`.

    Returns:
        Bool tensors by name, of the weights' shapes; True keeps. Among equal values the first ones are dropped.
    """
    return scoped_masks(scores_of(weights, scope), sparsity, scope)


def masks_by_layer(weights: Mapping[str, Tensor], sparsities: Mapping[str, float]) -> dict[str, Tensor]:
    """Return masks for the layers that `sparsities` names, each with its own sparsity.

    Args:
        weights: by name ("fc1.weight"), of any shapes.
        sparsities: fraction to drop, in [0, 1), by layer ("fc1") or pattern ("conv*"); later entries win.

    Returns:
        Bool tensors by name of the weight; True keeps.

    Raises:
        BadInput: an entry matches no layer, or a sparsity is outside [0, 1).
    """
    by_name = sparsity_of(weights, sparsities)
    scores = {name: weights[name].abs() for name in by_name}
    return layer_masks(scores, {name: round(s * weights[name].numel()) for name, s in by_name.items()})


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Magnitude pruning (Han et al. 2015). Give `sparsity` or `sparsities`.

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1).
        sparsities: fraction of zeros by layer or pattern, such as {"conv*": 0.5, "fc1": 0.9}; later entries win. Layers
            that no entry matches are left dense.
        scope: how `sparsity` is spread. "layer": the same in every layer; "global": one ranking over all layers;
            "lamp": one ranking of LAMP scores; "erk": small layers stay denser (Erdos-Renyi kernel).
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: neither or both of sparsity and sparsities are given.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(8, 4)
        >>> pruned, edits = gossamer.methods.prune.Magnitude(sparsity=0.75)(model)
        >>> int((pruned.weight == 0).sum())
        24
    """

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
        weights = selected_weights(model, self.layers, self.ignore)
        if self.sparsity is None:
            return mask_weights(model, masks_by_layer(weights, self.sparsities), context, self.name())
        return mask_weights(model, magnitude_masks(weights, self.sparsity, self.scope), context, self.name())
