"""Robustness to distortions of weights and activations (Merolla et al. 2016, arXiv:1606.01981)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.constraints.signs import stochastic_sign
from gossamer.constraints.weights import weights_of
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.signs import sign_of
from gossamer.core.task import Task
from gossamer.errors import NoEffect
from gossamer.measure.accuracy import evaluate
from gossamer.train.batches import seed_everything
from gossamer.train.recalibrate import recalibrate

FEW_BITS = 0.68  # bits of entropy per weight, at which the source still finds 89 % on CIFAR-10


@dataclass(frozen=True)
class Projection:
    """A distortion of values in [-1, 1].

    Attributes:
        name: in tables.
        apply: the distorted values.
        unbiased: the values are right on average, so that they keep their scale. Others are scaled so that their mean
            size stays.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    unbiased: bool = False


def signed_power(x: Tensor, exponent: float) -> Tensor:
    """Return sign(x) |x|^exponent."""
    return x.sign() * x.abs() ** exponent


def uniform_noise(x: Tensor, width: float) -> Tensor:
    """Return x + noise, uniform in [-width, width]."""
    return x + width * (2 * torch.rand_like(x) - 1)


def gaussian_noise(x: Tensor, deviation: float) -> Tensor:
    """Return x + normal noise."""
    return x + deviation * torch.randn_like(x)


def multiplied_noise(x: Tensor, width: float) -> Tensor:
    """Return x times noise, uniform in [1 - width, 1 + width]."""
    return x * (1 + width * (2 * torch.rand_like(x) - 1))


def ternary_entropy(nonzeros: float) -> float:
    """Return the entropy in bits of values -1, 0 and 1 of which a share is not 0, both signs alike."""
    terms = ((1 - nonzeros, 1.0), (nonzeros, 2.0))
    return sum(-share * math.log2(share / ways) for share, ways in terms if share > 0)


def few_bits(x: Tensor, bits: float = FEW_BITS) -> Tensor:
    """Return the signs of the largest values and 0 for the others, as many as have this entropy per value."""
    low, high = 0.0, 2 / 3  # where the entropy is largest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if ternary_entropy(middle) < bits else (low, middle)
    kept = max(1, round(low * x.numel()))
    order = x.abs().flatten().argsort(descending=True, stable=True)
    codes = torch.zeros_like(x).flatten()
    codes[order[:kept]] = x.flatten()[order[:kept]].sign()
    return codes.view(x.shape)


PROJECTIONS: tuple[Projection, ...] = (
    Projection("sign", sign_of),
    Projection("stochastic sign", stochastic_sign, unbiased=True),
    Projection("round to -1, 0, 1", torch.round),
    *(
        Projection(f"power {exponent:g}", partial(signed_power, exponent=exponent))
        for exponent in (0.25, 0.5, 2.0, 4.0)
    ),
    *(Projection(f"uniform noise {w:g}", partial(uniform_noise, width=w), True) for w in (0.25, 0.5, 1.0)),
    *(Projection(f"Gaussian noise {s:g}", partial(gaussian_noise, deviation=s), True) for s in (0.1, 0.25, 0.5)),
    Projection("multiplied noise 0.5", partial(multiplied_noise, width=0.5), True),
    Projection(f"{FEW_BITS:g} bits", few_bits),
)


def distort(values: Tensor, projection: Projection) -> Tensor:
    """Return values under a projection, which sees them divided by the largest.

    Example:
        >>> distort(torch.tensor([-4.0, 2.0]), PROJECTIONS[0])
        tensor([-3.,  3.])
    """
    largest = values.abs().max()
    if not bool(largest > 0):
        return values
    found = projection.apply(values / largest)
    if projection.unbiased:
        return largest * found
    size = found.abs().mean()
    return found * (values.abs().mean() / size) if bool(size > 0) else found


@dataclass(frozen=True, kw_only=True)
class Distorted:
    """A score under one projection.

    Attributes:
        what: "weights", or "activations": the inputs of layers.
        projection: its name.
        value: of the task's metric.
        drop: in points, against the network as it is.
    """

    what: Literal["weights", "activations"]
    projection: str
    value: float
    drop: float


def robustness(
    model: nn.Module,
    task: Task,
    context: Context,
    *,
    projections: Sequence[Projection] = PROJECTIONS,
    split: Literal["validation", "test"] = "validation",
) -> list[Distorted]:
    """Score a network under projections of all its weights, and of the inputs of all its layers but the first.

    Nothing is trained. Batch norms are estimated again on calibration data, since the scale of outputs changes.

    Args:
        model: the network, constrained or not; it is left as it is.
        task: data and metric.
        context: seed and progress.
        projections: the distortions.
        split: the data.

    Returns:
        A row for each projection, weights first.

    Raises:
        NoEffect: the network has no linear layers and no convolutions.

    Example:
        >>> import gossamer
        >>> from gossamer.core.progress import Quiet
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> rows = robustness(model, task, Context(progress=Quiet()), projections=PROJECTIONS[:1])
        >>> [(row.what, row.projection) for row in rows]
        [('weights', 'sign'), ('activations', 'sign')]

    Source: Merolla et al. 2016, arXiv:1606.01981, sections 2 and 3. "0.68 bits" are here ternary weights of that
    entropy.
    """
    before, rows = evaluate(materialize(model).eval(), task, split), list[Distorted]()
    every = [(what, one) for what in ("weights", "activations") for one in projections]
    for what, projection in context.with_progress().progress.bar(every, label="robustness"):
        changed = materialize(model).eval()
        with own_randomness():
            seed_everything(context.seed, len(rows))
            if what == "weights":
                distort_weights(changed, projection)
                recalibrate(changed, task.calibration)
                after = evaluate(changed, task, split)
            else:
                with distorted_inputs(changed, projection):
                    recalibrate(changed, task.calibration)
                    after = evaluate(changed, task, split)
        drop = before.metric.lost(before.value, after.value)
        rows.append(Distorted(what=what, projection=projection.name, value=after.value, drop=drop))  # type: ignore[arg-type]
    return rows


@torch.no_grad()
def distort_weights(model: nn.Module, projection: Projection) -> None:
    """Distort the weights of all linear layers and convolutions of a plain network, in place."""
    for weight in weights_of(model).values():
        weight.copy_(distort(weight, projection))


@contextmanager
def distorted_inputs(model: nn.Module, projection: Projection) -> Iterator[None]:
    """Within, linear layers and convolutions get distorted inputs, but for the one that runs first."""
    names = [layer_name(name) for name in weights_of(model)]
    first: list[nn.Module] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not first:
            first.append(module)
        return None if module is first[0] else (distort(inputs[0], projection), *inputs[1:])

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook) for name in names]
    if not hooks:
        raise NoEffect("robustness: the network has no linear layers and no convolutions")
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
