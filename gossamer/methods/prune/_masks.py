"""From scores to masks: exact counts, sparsity budgets over layers, and the edit that constrains the weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import by_pattern, layer_name
from gossamer.core.record import Edit, EditKind
from gossamer.errors import BadInput, NoEffect
from gossamer.train.loop import TrainingStep

Scope = Literal["layer", "global", "lamp", "erk"]


def smallest_mask(scores: Tensor, drop: int) -> Tensor:
    """Return the mask that drops exactly `drop` of the smallest scores.

    Args:
        scores: any shape.
        drop: how many to drop.

    Returns:
        Bool tensor of the same shape; True keeps. Among equal scores the first ones are dropped.
    """
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.flatten().argsort(stable=True)[:drop]] = False
    return keep.view(scores.shape)


def joint_masks(scores: Mapping[str, Tensor], drop: int) -> dict[str, Tensor]:
    """Return masks that drop exactly `drop` of the smallest scores, in one ranking over all layers."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    parts = torch.split(smallest_mask(flat, drop), [s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts)}


def layer_masks(scores: Mapping[str, Tensor], drops: Mapping[str, int]) -> dict[str, Tensor]:
    """Return masks that drop exactly `drops[name]` of the smallest scores of each layer."""
    return {name: smallest_mask(s, drops[name]) for name, s in scores.items()}


def lamp_scores(weight: Tensor) -> Tensor:
    """Return LAMP scores: w_u^2 / sum of w_v^2 over the weights v of the layer that are not smaller.

    They are comparable between layers: each is the part of the layer's remaining energy that is lost with the weight.
    The largest weight has 1, zeros have 0. Equal weights are taken in their order.

    Args:
        weight: any shape.

    Returns:
        Same shape, float64.

    Source: Lee et al. 2021, arXiv:2010.07611, equation 5.
    """
    square = weight.detach().double().square().flatten()
    order = square.argsort(stable=True)
    ascending = square[order]
    rest = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(square)
    scores[order] = ascending / rest.clamp_min(torch.finfo(torch.double).tiny)
    return scores.view(weight.shape)


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return Erdos-Renyi-kernel densities: small layers stay denser.

    They are proportional to (n_out + n_in + kernel sizes) / (n_out n_in kernel sizes), and at most 1.

    Args:
        shapes: of the weights, by name.
        density: fraction of all weights to keep, in [0, 1].

    Returns:
        Densities by name; over all weights together they give `density`.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    share = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    budget, dense = density * sum(sizes.values()), set[str]()
    while True:
        open_ = [name for name in shapes if name not in dense]
        left = budget - sum(sizes[name] for name in dense)
        scale = left / sum(share[name] * sizes[name] for name in open_) if open_ else 0.0
        full = {name for name in open_ if scale * share[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else scale * share[name] for name in shapes}
        dense |= full


def counts(sizes: Mapping[str, int], fractions: Mapping[str, float], total: int) -> dict[str, int]:
    """Round size * fraction to whole numbers whose sum is exactly `total`: the largest remainders are rounded up."""
    exact = {name: sizes[name] * fractions[name] for name in sizes}
    result = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    missing = total - sum(result.values())
    for name in sorted(exact, key=lambda name: result[name] - exact[name])[:missing]:
        result[name] += 1
    return result


def scoped_masks(scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Return masks that drop exactly round(sparsity * number of weights) weights.

    Args:
        scores: by name, of the weights' shapes.
        sparsity: fraction to drop over all weights together, in [0, 1].
        scope: "layer": the same sparsity in every layer; "global": one ranking; "lamp": one ranking, of `lamp_scores`;
            "erk": densities of `erk_densities`.

    Returns:
        Bool tensors by name; True keeps.
    """
    sizes = {name: s.numel() for name, s in scores.items()}
    total = sum(sizes.values())
    drop = round(sparsity * total)
    match scope:
        case "global" | "lamp":
            return joint_masks(scores, drop)
        case "layer":
            return layer_masks(scores, counts(sizes, dict.fromkeys(sizes, sparsity), drop))
        case "erk":
            densities = erk_densities({name: tuple(s.shape) for name, s in scores.items()}, 1 - sparsity)
            kept = counts(sizes, densities, total - drop)
            return layer_masks(scores, {name: n - kept[name] for name, n in sizes.items()})


def scores_of(weights: Mapping[str, Tensor], scope: Scope) -> dict[str, Tensor]:
    """Return the magnitudes of the weights by name, or their LAMP scores where the scope is "lamp"."""
    return {name: lamp_scores(w) if scope == "lamp" else w.abs() for name, w in weights.items()}


def sparsity_of(names: Iterable[str], sparsities: Mapping[str, float]) -> dict[str, float]:
    """Return the sparsity of each weight ("fc1.weight") from sparsities by layer or pattern ("conv*").

    Later entries win. Weights that no entry matches are left out.

    Raises:
        BadInput: a sparsity is outside [0, 1), or an entry matches no layer.
    """
    for pattern, value in sparsities.items():
        if not 0 <= value < 1:
            raise BadInput(f"sparsities: {pattern!r} = {value} must be in [0, 1)")
    weights = {layer_name(name): name for name in names}
    return {weights[layer]: value for layer, value in by_pattern(weights, sparsities, "sparsities").items()}


def selected_weights(model: nn.Module, layers: Iterable[str], ignore: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights that a method may prune, with their effective values, by name.

    Args:
        model: may have constraints.
        layers: names or patterns of layers.
        ignore: names or patterns of layers to leave out.
    """
    return {name: effective_weight(model, name) for name in weights_of(model, layers, ignore)}


def mask_weights(model: nn.Module, masks: Mapping[str, Tensor], context: Context, method: str) -> nn.Module:
    """Return a copy of the model with these masks on its weights, and log the edits.

    Args:
        model: is not changed.
        masks: by name of the weight, of its shape; True keeps.
        context: whose log gets the edits.
        method: its name in a recipe.

    Raises:
        NoEffect: the masks drop nothing.
    """
    if all(bool(mask.all()) for mask in masks.values()):
        raise NoEffect(f"{method}: no weight is dropped; ask for a higher sparsity, or for more layers")
    result = constrain(model, {name: Mask(mask) for name, mask in masks.items()})
    note_edits(model, result, masks, context, method)
    return result


def note_edits(
    before: nn.Module,
    after: nn.Module,
    names: Iterable[str],
    context: Context,
    method: str,
    kind: EditKind = EditKind.CONSTRAIN,
) -> None:
    """Log one edit for each of these weights, with the counts of nonzero values before and after.

    kind: ASSIGN where the weights that are left got other values, too.
    """
    for name in names:
        was, value = effective_weight(before, name), effective_weight(after, name)
        kept = int(value.count_nonzero())
        context.log.edits.append(
            Edit(
                method=method,
                kind=kind,
                target=name,
                before=f"{int(was.count_nonzero()):,} weights that are not zero",
                after=f"{kept:,} ({100 * kept / value.numel():.2f} %)",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Moving:
    """A mask that a method updates during a training.

    Attributes:
        mask: the constraint.
        raw: the parameter below all constraints.
        value: what enters the mask, of the weight's shape.
        allowed: bool of the weight's shape; False where other masks below it drop.
    """

    mask: Mask
    raw: nn.Parameter
    value: Tensor
    allowed: Tensor


@torch.no_grad()
def moving(model: nn.Module, names: Iterable[str]) -> dict[str, Moving]:
    """Return the last mask of each of these weights, with what enters it.

    Raises:
        TypeError: the last constraint of a weight is not a mask.
    """
    stacks, raws, found = constraints(model), weights_of(model), {}
    for name in names:
        *below, mask = stacks[name]
        if not isinstance(mask, Mask):
            raise TypeError(f"{name} is constrained by {type(mask).__name__} last, not by a Mask")
        raw = raws[name]
        value, allowed = raw.detach(), torch.ones_like(raw, dtype=torch.bool)
        for constraint in below:
            value = constraint(value)
            allowed = allowed & constraint.mask if isinstance(constraint, Mask) else allowed
        found[name] = Moving(mask=mask, raw=raw, value=value, allowed=allowed)
    return found


def zeros(weights: Mapping[str, Tensor]) -> float:
    """Return the fraction of zeros over all weights together."""
    return 1 - sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def cubic(start: float, final: float, progress: float) -> float:
    """Return the sparsity at a progress in [0, 1]: it rises fast at first and slowly at the end.

    Source: Zhu & Gupta 2017, arXiv:1710.01878, equation 1.
    """
    return final + (start - final) * (1 - progress) ** 3


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When masks are updated in a training, and to which sparsity.

    Attributes:
        start: sparsity at the first step.
        final: sparsity from the last update on.
        every: steps between two updates.
        until: fraction of all steps at which the last update happens.
    """

    start: float
    final: float
    every: int
    until: float

    def sparsity(self, step: TrainingStep) -> float | None:
        """Return the sparsity from this step on, or None where the masks stay as they are."""
        last = max(round(self.until * step.steps), 1)
        if step.number > last or (step.number % self.every and step.number < last):
            return None
        return cubic(self.start, self.final, step.number / last)
