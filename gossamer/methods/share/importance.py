"""How much the loss minds an error in each weight: the weights h of h (w - w')^2; what several methods share."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from gossamer.errors import BadInput, unknown
from gossamer.network import bake
from gossamer.network.curvature import diagonal
from gossamer.network.values import layer_name
from gossamer.run import Run
from gossamer.task import Task, split

Importance = Literal["none", "hessian", "fisher", "adam"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)
# No weight counts less than this part of its layer's mean: the estimate is from few samples.
FLOOR = 1e-3


def importance_of(
    model: nn.Module, names: Iterable[str], how: str, task: Task, run: Run, samples: int
) -> dict[str, Tensor]:
    """h by weight name, each of its weight's shape, at least 0.001 of its layer's mean.

    "hessian": the diagonal of the Gauss-Newton matrix (Choi et al. 2016, arXiv:1612.01543, section 3.3, take LeCun's
    recursion, which approximates it); "fisher": of squared gradients of single samples; "adam": the square root of the
    second moment of mini-batch gradients, as Adam holds it (section 3.5).
    """
    plain = bake(model).requires_grad_(True).eval()
    weights = {name: plain.get_parameter(name) for name in names}
    layers = {name: layer_name(name) for name in weights}
    batches = _batches(task.train, samples)
    match how:
        case "none":
            return {name: torch.ones_like(w, requires_grad=False) for name, w in weights.items()}
        case "hessian" | "fisher":
            kind = "gauss_newton" if how == "hessian" else "fisher"
            by_layer = diagonal(plain, task.loss, batches, list(layers.values()), kind)
            found = {name: by_layer[layer] for name, layer in layers.items()}
        case "adam":
            roots = adam_roots(plain, list(weights.values()), task, batches)
            found = dict(zip(weights, roots))
        case _:
            raise unknown("importance", how, IMPORTANCES)
    run.progress.say(f"importance {how!r} of {sum(h.numel() for h in found.values()):,} weights, {samples} samples")
    floors = {name: FLOOR * float(h.mean()) for name, h in found.items()}
    return {name: h.clamp(min=floors[name]) if floors[name] > 0 else torch.ones_like(h) for name, h in found.items()}


def adam_roots(model: nn.Module, weights: list[nn.Parameter], task: Task, batches: Iterable[Any]) -> list[Tensor]:
    """sqrt(mean over batches of the squared gradient of the batch's loss), for every weight."""
    sums, count = [torch.zeros_like(w, requires_grad=False) for w in weights], 0
    for batch in batches:
        placed = apply_to_collection(batch, Tensor, lambda x: x.to(weights[0].device))
        for total, g in zip(sums, torch.autograd.grad(task.loss(model, placed), weights, allow_unused=True)):
            if g is not None:
                total += g.square()
        count += 1
    if not count:
        raise BadInput("importance 'adam' needs labelled training data; the train loader gave no batch")
    return [(total / count).sqrt() for total in sums]


def _batches(loader: Iterable[Any], samples: int) -> Iterator[Any]:
    """As many whole batches as it takes."""
    for batch in loader:
        yield batch
        samples -= len(split(batch)[0][0])
        if samples <= 0:
            return
