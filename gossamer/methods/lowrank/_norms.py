"""Batch normalization between the layers of a chain, which changes nothing until the network is trained."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput

NORMS = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


def with_norms(chain: nn.Sequential) -> nn.Sequential:
    """Return the chain with a batch norm behind every layer with weights but the last."""
    *inner, _ = (layer for layer in chain if type(layer) in NORMS)
    made: list[nn.Module] = []
    for layer in chain:
        made.append(layer)
        if layer in inner:
            weight: Any = layer.weight
            norm = NORMS[type(layer)](len(weight), device=weight.device, dtype=weight.dtype)
            made.append(norm.train(layer.training))
    return nn.Sequential(*made).train(chain.training)


@torch.no_grad()
def set_norms(model: nn.Module, chains: Iterable[str], loader: Iterable[Any], batches: int) -> None:
    """Set the norms in these chains, in place, so that they pass everything on unchanged.

    The mean and the variance of their inputs become their statistics, and their bias and weight as well. In training
    mode the norms then change nothing for batches that are like the data.
    """
    inside = {f"{name}.{i}": m for name in chains for i, m in model.get_submodule(name).named_children()}
    norms: dict[str, Any] = {name: m for name, m in inside.items() if type(m) in NORMS.values()}
    for norm in norms.values():
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # the statistics of a new norm are 0 and 1
    sums: dict[str, list[Tensor]] = {}
    with evaluating(model), layer_inputs(model, list(norms)) as seen:
        for batch in islice(loader, batches):
            model(*place(model, batch))
            for name, xs in seen.items():
                for x in xs:
                    rows = x.transpose(0, 1).flatten(1).double()
                    new = [torch.tensor(float(rows.shape[1])), rows.sum(1), rows.square().sum(1)]
                    sums[name] = [a + b for a, b in zip(sums[name], new)] if name in sums else new
            seen.clear()
    for name, norm in norms.items():
        if name not in sums:
            raise BadInput(f"layer {name!r} saw no input: the calibration loader gave no batch")
        count, total, squares = sums[name]
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.bias.copy_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())
