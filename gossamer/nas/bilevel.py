"""Two levels: weights are trained on training data, an architecture on validation data, each given the other.

Source: Liu et al. 2019, arXiv:1806.09055, section 2.3 (DARTS). Zela et al. 2020, arXiv:1909.09656, sections 3 and 4
(RobustDARTS: the curvature of the validation loss tells when the architecture overfits).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FURTHER = 1e-3  # relative change of an eigenvalue, below which it is known


def architecture_gradient(
    train_loss: Callable[[Sequence[Tensor]], Tensor],
    validation_loss: Callable[[Sequence[Tensor]], Tensor],
    weights: Sequence[Tensor],
    architecture: Sequence[Tensor],
    rate: float = 0.0,
) -> list[Tensor]:
    """Gradient of L_val(w - rate * dL_train/dw, a) with respect to the architecture a, through both arguments.

    With g = dL_val/dw at the moved weights: dL_val/da - rate * d(dL_train/dw . g)/da, where g counts as a constant. The
    paper approximates the second term by finite differences; here it is exact, by a second backward pass.

    Args:
        train_loss: of weights, given the architecture.
        validation_loss: the same on other data.
        weights: w.
        architecture: a, on which both losses depend.
        rate: of the step of the weights that is looked ahead; 0: none, the first-order gradient.

    Returns:
        A tensor for each of the architecture; zeros where nothing depends on it.

    Example:
        >>> w, a = torch.tensor(1.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
        >>> first = architecture_gradient(lambda w: a * w[0], lambda w: w[0] ** 2 + a, [w], [a])
        >>> second = architecture_gradient(lambda w: a * w[0], lambda w: w[0] ** 2 + a, [w], [a], rate=0.1)
        >>> float(first[0]), round(float(second[0]), 6)  # w moves to 1 - 0.1 a = 0.7, and 1 - 2 * 0.7 * 0.1 = 0.86
        (1.0, 0.86)
    """
    if not rate:
        return list(torch.autograd.grad(validation_loss(weights), architecture, materialize_grads=True))
    inner = torch.autograd.grad(train_loss(weights), weights, create_graph=True, materialize_grads=True)
    moved = [(w - rate * slope).detach().requires_grad_() for w, slope in zip(weights, inner)]
    found = torch.autograd.grad(validation_loss(moved), [*architecture, *moved], materialize_grads=True)
    direct, ahead = found[: len(architecture)], found[len(architecture) :]
    used = [(slope, vector) for slope, vector in zip(inner, ahead) if slope.requires_grad]
    if not used:
        return list(direct)
    slopes, vectors = zip(*used)
    through = torch.autograd.grad(slopes, architecture, vectors, materialize_grads=True)
    return [one - rate * other for one, other in zip(direct, through)]


def largest_eigenvalue(loss: Tensor, architecture: Sequence[Tensor], generator: torch.Generator, steps: int) -> float:
    """The largest eigenvalue of the Hessian of a loss with respect to an architecture, by power iteration.

    Power iteration finds the eigenvalue that is farthest from zero. Where that one is negative, the Hessian is moved by
    it, so that the largest one is the farthest.

    Args:
        loss: with its graph.
        architecture: on which it depends.
        generator: of the first direction.
        steps: products with the Hessian, at most, of each of the two iterations.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(largest_eigenvalue((torch.tensor([1.0, -5.0]) * x**2).sum(), [x], torch.Generator(), 50), 3)
        2.0
    """
    slopes = torch.autograd.grad(loss, architecture, create_graph=True, materialize_grads=True)
    slope = torch.cat([one.flatten() for one in slopes])
    if not slope.requires_grad:  # linear: the Hessian is zero
        return 0.0

    def product(direction: Tensor) -> Tensor:
        found = torch.autograd.grad(slope, architecture, direction, retain_graph=True, materialize_grads=True)
        return torch.cat([one.flatten() for one in found])

    farthest = _farthest(product, slope, generator, steps)
    if farthest >= 0:
        return farthest
    return farthest + _farthest(lambda direction: product(direction) - farthest * direction, slope, generator, steps)


def _farthest(product: Callable[[Tensor], Tensor], like: Tensor, generator: torch.Generator, steps: int) -> float:
    """The eigenvalue of a symmetric product that is farthest from zero."""
    direction = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    direction, known = direction / direction.norm(), 0.0
    for _ in range(steps):
        image = product(direction)
        found, length = float(direction @ image), image.norm()
        if length == 0:
            return 0.0
        direction = image / length
        if abs(found - known) <= FURTHER * abs(found):
            return found
        known = found
    return known
