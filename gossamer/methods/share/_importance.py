"""The importance of each weight's squared error to the loss: h in h (w - w')^2; shared by several methods."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.calibration.curvature import diagonal, summed_gradients
from gossamer.constraints.apply import materialize
from gossamer.constraints.weights import effective_weight
from gossamer.core.batches import inputs_and_target
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task, loss_of
from gossamer.errors import unknown

Importance = Literal["none", "hessian", "fisher", "adam"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)
# No weight counts less than this part of its layer's mean: the estimate is from few samples.
FLOOR = 1e-3


def importance_of(
    model: nn.Module, names: Iterable[str], how: str, task: Task, context: Context, samples: int
) -> dict[str, Tensor]:
    """Return the importance h of each weight, at least 0.001 of its layer's mean.

    Args:
        model: may have constraints; it is not changed.
        names: of the weights ("conv1.weight").
        how: "none": 1; "hessian": the diagonal of the Gauss-Newton matrix; "fisher": mean squared gradients of single
            samples; "adam": the square root of the second moment of mini-batch gradients.
        task: labelled training data and loss; not used with "none".
        context: where progress is reported.
        samples: training samples for the estimate.

    Returns:
        By name, of the weights' shapes.

    Raises:
        BadInput: an unknown kind of importance.

    Source: Choi et al. 2016, arXiv:1612.01543, sections 3.3 (with LeCun's recursion, which approximates the
    Gauss-Newton diagonal) and 3.5.
    """
    if how == "none":
        return {name: torch.ones_like(effective_weight(model, name)) for name in names}
    plain = materialize(model).requires_grad_(True).eval()
    weights = {name: plain.get_parameter(name) for name in names}
    layers = {name: layer_name(name) for name in weights}
    if how == "none":
        return {name: torch.ones_like(w, requires_grad=False) for name, w in weights.items()}
    batches = _batches(task.train, samples)
    match how:
        case "hessian" | "fisher":
            kind = "gauss_newton" if how == "hessian" else "fisher"
            by_layer = diagonal(plain, partial(loss_of, task), batches, list(layers.values()), kind)
            found = {name: by_layer[layer] for name, layer in layers.items()}
        case "adam":
            sums, count = summed_gradients(plain, partial(loss_of, task), batches, weights, squared=True)
            found = {name: (total / count).sqrt() for name, total in sums.items()}
        case _:
            raise unknown("importance", how, IMPORTANCES)
    context.progress.say(f"importance {how!r} of {sum(h.numel() for h in found.values()):,} weights, {samples} samples")
    floors = {name: FLOOR * float(h.mean()) for name, h in found.items()}
    return {name: h.clamp(min=floors[name]) if floors[name] > 0 else torch.ones_like(h) for name, h in found.items()}


def _batches(loader: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield whole batches until `samples` are reached."""
    for batch in loader:
        yield batch
        samples -= len(inputs_and_target(batch)[0][0])
        if samples <= 0:
            return
