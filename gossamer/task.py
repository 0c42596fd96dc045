"""The user's data and measure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput


class Loader(Protocol):
    """Batches that can be gone through again and again: a `DataLoader`, gossamer's `Batches`, or a list."""

    def __iter__(self) -> Any: ...

    def __len__(self) -> int: ...


Model = Callable[..., Any]


def split(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The positional inputs and the target of a batch: `(x, y)`, `((x1, x2), y)`, or inputs alone (target None)."""
    if isinstance(batch, Tensor):
        return (batch,), None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), target
    raise BadInput(f"a batch must be (inputs, target) or one tensor of inputs, got {type(batch).__name__}")


def cross_entropy(model: Model, batch: Any) -> Tensor:
    """Mean cross entropy of the logits, in nats."""
    inputs, target = split(batch)
    return F.cross_entropy(model(*inputs), target)


@torch.no_grad()
def top1_correct(model: Model, loader: Iterable[Any]) -> Tensor:
    """1.0 for every sample whose largest logit is at its label, else 0.0; shape (samples,)."""
    correct = []
    for batch in loader:
        inputs, target = split(batch)
        correct.append((model(*inputs).argmax(1).cpu() == target.cpu()).float())
    return torch.cat(correct)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The user's data and measure. Validation decides, test is only reported, calibration needs no labels.

    `loss(model, batch)` gives a scalar. `metric(model, loader)` gives one score in [0, 1] for every sample, in the
    order of the loader, so that two networks can be compared sample by sample; its mean times 100 is what is called
    top-1 (percent) below. `metric` gets a plain callable: a module in eval mode, or an exported network.
    """

    name: str
    train: Loader
    validation: Loader
    test: Loader
    calibration: Loader
    example_inputs: tuple[Any, ...]
    loss: Callable[[Model, Any], Tensor] = cross_entropy
    metric: Callable[[Model, Iterable[Any]], Tensor] = top1_correct
    measure: str = "top1"
    classes: tuple[str, ...] = field(default=())
