"""Importance criteria: a score for every weight. The scores of everything that is removed together are summed later."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gossamer.calibration.curvature import summed_gradients
from gossamer.core.batches import Model
from gossamer.core.placement import evaluating
from gossamer.errors import BadInput, unknown

Criterion = Literal["l1", "l2", "taylor", "fisher", "bn_scale", "random", "order"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
NEEDS_LABELS = ("taylor", "fisher")

Scores = dict[str, Tensor]


def l1_scores(model: nn.Module) -> Scores:
    """Return |w| for every parameter with at least two dimensions.

    Source: Li et al. 2017, arXiv:1608.08710, section 3.1.
    """
    return {name: p.detach().abs() for name, p in model.named_parameters() if p.ndim > 1}


def l2_scores(model: nn.Module) -> Scores:
    """Return w^2 for every parameter with at least two dimensions; summed over a group, it is the squared norm.

    Source: Fang et al. 2023, arXiv:2301.12900, section 3.2.
    """
    return {name: p.detach().abs().square() for name, p in model.named_parameters() if p.ndim > 1}


def bn_scale_scores(model: nn.Module) -> Scores:
    """Return |gamma| of the batch norms, and nothing for other parameters (network slimming).

    Raises:
        BadInput: the network has no batch norms with a scale.

    Source: Liu et al. 2017, arXiv:1708.06519, section 3.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    scores = {
        f"{name}.weight": module.weight.detach().abs()
        for name, module in model.named_modules()
        if isinstance(module, norms) and module.affine
    }
    if not scores:
        raise BadInput("criterion 'bn_scale' needs batch norms with a scale, and this network has none; use 'l2'")
    return scores


def random_scores(model: nn.Module, *, generator: torch.Generator) -> Scores:
    """Return uniform noise in [0, 1) for every parameter with at least two dimensions: the control of an experiment."""
    return {
        name: torch.rand(p.shape, generator=generator).to(p.device)
        for name, p in model.named_parameters()
        if p.ndim > 1
    }


def gradient_scores(
    model: nn.Module,
    loss: Callable[[Model, Any], Tensor],
    batches: Iterable[Any],
    *,
    second_order: bool,
) -> Scores:
    """Return the estimated change of the loss when a weight becomes zero, from the gradients g of the batches.

    First order (Taylor): |mean(g) w|. Second order (Fisher): mean(g^2) w^2 / 2, the diagonal Fisher estimate of the
    saliency of Optimal Brain Damage. g is the gradient of a batch's mean loss, so the scores give a ranking; small
    batches estimate better.

    Args:
        model: is run in eval mode and not changed.
        loss: of the model on a batch.
        batches: of labelled data.
        second_order: which of the two.

    Returns:
        Scores by parameter name, of the parameters' shapes.

    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 8; Theis et al. 2018, arXiv:1801.05787, equation 6.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with evaluating(model):  # batch statistics of small batches would blur the gradients
        sums, n = summed_gradients(model, loss, batches, weights, squared=second_order)
    if second_order:
        return {name: sums[name] / n * p.detach().abs().square() / 2 for name, p in weights.items()}
    # torch's gradient of a complex weight points along the steepest ascent of its real and imaginary part.
    return {name: (sums[name] / n * p.detach().conj()).real.abs() for name, p in weights.items()}


def element_scores(
    model: nn.Module,
    criterion: str,
    *,
    loss: Callable[[Model, Any], Tensor] | None = None,
    batches: Iterable[Any] = (),
    seed: int = 0,
) -> Scores:
    """Return the scores of one criterion.

    Args:
        model: is not changed.
        criterion: "l1", "l2", "bn_scale", "random", or with data "taylor", "fisher". "order": nothing is scored, and of
            equal scores the first channels stay, as `distill.once_for_all` has sorted them.
        loss: of the model on a batch, for "taylor" and "fisher".
        batches: of labelled data, for "taylor" and "fisher".
        seed: of "random".

    Returns:
        Scores by parameter name, of the parameters' shapes. Parameters that are left out count as zero.

    Raises:
        BadInput: an unknown criterion, or one that needs data without them.
    """
    match criterion:
        case "l1":
            return l1_scores(model)
        case "l2":
            return l2_scores(model)
        case "bn_scale":
            return bn_scale_scores(model)
        case "random":
            return random_scores(model, generator=torch.Generator().manual_seed(seed))
        case "order":
            return {}
        case "taylor" | "fisher":
            if loss is None:
                raise BadInput(f"criterion {criterion!r} needs data: give a task, or use 'l1' or 'l2'")
            return gradient_scores(model, loss, batches, second_order=criterion == "fisher")
        case _:
            raise unknown("criterion", criterion, CRITERIA)
