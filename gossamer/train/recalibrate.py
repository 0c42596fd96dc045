"""BatchNorm statistics that fit the weights again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput

USUAL_MOMENTUM = 0.1  # PyTorch's


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> bool:
    """Estimate the running mean and variance of every BatchNorm again, as the plain average over batches.

    No weight changes.

    Args:
        model: the network, changed in place.
        loader: batches with or without labels.
        batches: how many of them are used; None for all.

    Returns:
        False where the model has no BatchNorm that keeps statistics.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recalibrate(norm, [torch.full((4, 1), 2.0)]), norm.running_mean.item()
        (True, 2.0)
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        try:
            for batch in islice(loader, batches):
                model(*place(model, batch))
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
    if not seen:
        raise BadInput("recalibrate: the loader gave no batch; give at least one")
    return True


@contextmanager
def following_statistics(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm whose momentum is 0 follow what it sees with PyTorch's usual momentum, and put the 0 back.

    Networks converted from other frameworks often have a momentum of 0: a training would normalize by the batches, and
    be judged with the statistics from before its first step.

    Args:
        model: about to be trained.

    Example:
        >>> norm = nn.BatchNorm1d(1, momentum=0.0)
        >>> with following_statistics(norm):
        ...     norm.momentum
        0.1
        >>> norm.momentum
        0.0
    """
    still = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.momentum == 0]
    for norm in still:
        norm.momentum = USUAL_MOMENTUM
    try:
        yield
    finally:
        for norm in still:
            norm.momentum = 0.0
