"""The last layer of a classifier: only some of its outputs, or a new one for other classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.copies import state_of
from gossamer.errors import BadInput


@torch.no_grad()
def keep_outputs(model: nn.Module, outputs: Sequence[int], inputs: tuple[Any, ...]) -> None:
    """Cut all outputs but these out of the last layer, in place, in this order; checked against the network before."""
    before = model(*inputs)[:, list(outputs)]
    width = model(*inputs).shape[1]
    for layer in reversed(list(model.modules())):
        size = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}.get(type(layer))
        if size is None or getattr(layer, size) != width or getattr(layer, "groups", 1) != 1:
            continue
        whole = dict(layer.named_parameters(recurse=False))
        for key, tensor in whole.items():
            setattr(layer, key, nn.Parameter(tensor[list(outputs)].clone(), tensor.requires_grad))
        setattr(layer, size, len(outputs))
        try:
            fits = torch.allclose(model(*inputs), before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
        except RuntimeError:  # what reads the layer needs all of it
            fits = False
        if fits:
            return
        for key, tensor in whole.items():
            setattr(layer, key, tensor)
        setattr(layer, size, width)
    raise BadInput(f"{type(model).__name__}: its {width} outputs do not come from one last layer that could be cut")


def with_own_head(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of trained weights, with the network's own for one layer that has another number of outputs there;
    and the name of that layer."""
    own = state_of(model)
    other = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    layers = {name.rpartition(".")[0] for name in other}
    if len(layers) != 1 or any(tensors[name].shape[1:] != own[name].shape[1:] for name in other):
        return dict(tensors), None
    return {**tensors, **{name: own[name] for name in other}}, layers.pop()
