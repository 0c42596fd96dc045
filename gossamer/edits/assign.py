"""New values for weights, constrained or not."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.constraints.weights import weights_of
from gossamer.core.copies import copy_network


@torch.no_grad()
def assign(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with these raw weights ("conv1.weight"); their constraints stay on them."""
    changed = copy_network(model)
    raw = weights_of(changed)
    for name, value in values.items():
        raw[name].copy_(value.reshape(raw[name].shape))
    return changed
