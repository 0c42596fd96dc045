"""Where and how a network runs: its mode, its device, and batches brought there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode; afterwards every module is in the mode that it was in."""
    with _modes_put_back(model):
        model.eval()
        yield


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """The same with train mode, but for what would change its statistics or draw random numbers."""
    with _modes_put_back(model):
        train_mode(model)
        yield


@contextmanager
def _modes_put_back(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def place(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The inputs of a batch on the model's device."""
    device = device_of(model)
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs_and_target(batch)[0])


def place_whole(model: nn.Module, batch: Any) -> Any:
    """A batch on the model's device, as it is."""
    device = device_of(model)
    return apply_to_collection(batch, Tensor, lambda x: x.to(device))


_STAY_IN_EVAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def train_mode(model: nn.Module) -> None:
    """Train mode, but for norms and dropout."""
    for module in model.modules():
        module.training = not isinstance(module, _STAY_IN_EVAL)
