"""BatchNorm statistics that fit the weights again."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.errors import BadInput
from gossamer.task import split


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> bool:
    """Estimate the running mean and variance of every BatchNorm anew: the plain average over the (first) `batches`.

    No weight changes. False where the model has no BatchNorm that keeps statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        seen = 0
        for batch in islice(loader, batches):
            inputs, _ = split(batch)
            model(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs))
            seen += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise BadInput("recalibrate: the loader gave no batch; give at least one")
    return True
