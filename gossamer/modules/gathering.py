"""Layers whose weight has columns of zeros, as layers that read fewer inputs: the matrix product is really thinner."""

from typing import Any

import torch
from torch import nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.core.arguments import arguments
from gossamer.core.placement import evaluating
from gossamer.edits.swap import swap
from gossamer.modules.inserted import GatheredConv, Reorder


def as_gathered(layer: nn.Module) -> nn.Module | None:
    """A module that computes the same and reads only what has a weight that is not zero.

    Args:
        layer: a linear layer whose input has two dimensions, or a 2-D convolution without groups that pads with zeros.

    Returns:
        The module; None where all columns or none have such a weight, or for another layer.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> _ = layer.weight.data[:, 1:3].zero_()
        >>> as_gathered(layer)
        Sequential(
          (0): Reorder()
          (1): Linear(in_features=2, out_features=2, bias=True)
        )
    """
    if isinstance(layer, nn.Linear):
        used = (layer.weight != 0).any(0)
        if bool(used.all()) or not bool(used.any()):
            return None
        smaller = nn.Linear(int(used.sum()), layer.out_features, bias=layer.bias is not None).to(layer.weight)
        with torch.no_grad():
            smaller.weight.copy_(layer.weight[:, used])
            if layer.bias is not None:
                smaller.bias.copy_(layer.bias)
        return nn.Sequential(Reorder(used.nonzero().flatten()), smaller)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        used = (layer.weight != 0).any(0)
        if not bool(used.all()) and bool(used.any()) and not isinstance(layer.padding, str):
            return GatheredConv(layer, used)
    return None


def gather_columns(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A copy in which layers with columns of zeros read only what they use, and these layers by name.

    Args:
        model: without constraints.
        example_inputs: what it is run on: linear layers are replaced where their input has two dimensions.
    """
    layers = [n for n, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    args, kwargs = arguments(example_inputs)
    with evaluating(model), torch.no_grad(), layer_inputs(model, layers) as seen:
        model(*args, **kwargs)
    plain = [n for n in seen if isinstance(model.get_submodule(n), nn.Conv2d) or all(x.ndim == 2 for x in seen[n])]
    found = {n: new for n in plain if (new := as_gathered(model.get_submodule(n))) is not None}
    return swap(model, found) if found else model, found
