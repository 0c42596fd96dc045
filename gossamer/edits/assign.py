"""New values for weights, constrained or not."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.constraints.weights import weights_of
from gossamer.core.copies import copy_network


@torch.no_grad()
def assign(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model with these raw weights; their constraints stay on them.

    Args:
        model: the network, which is left as it is.
        values: new weights by name ("conv1.weight"), each of the shape of the old one.

    Returns:
        The copy.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> assign(nn.Linear(2, 1), {"weight": torch.ones(1, 2)}).weight.tolist()
        [[1.0, 1.0]]
    """
    changed = copy_network(model)
    raw = weights_of(changed, tables=True)
    for name, value in values.items():
        raw[name].copy_(value.reshape(raw[name].shape))
    return changed
