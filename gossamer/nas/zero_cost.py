"""Zero-cost scores: what an untrained network's gradients and activations say of what it will learn.

Each is one or two passes over one batch. Counting parameters is one of them, because it is what the others have to
beat.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.errors import BadInput, unknown

Score = Callable[[nn.Module, tuple[Any, ...], Any, Task], float]


def params(model: nn.Module, inputs: tuple[Any, ...], batch: Any, task: Task) -> float:
    """How many parameters there are."""
    return float(sum(p.numel() for p in model.parameters()))


def gradient_norm(model: nn.Module, inputs: tuple[Any, ...], batch: Any, task: Task) -> float:
    """Euclidean norm of the gradient of the loss of one batch (Abdelfattah et al. 2021, arXiv:2101.08134)."""
    model.train()
    torch.autograd.backward(task.loss(model, batch))
    squares = [float(p.grad.detach().double().square().sum()) for p in model.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


def synflow(model: nn.Module, inputs: tuple[Any, ...], batch: Any, task: Task) -> float:
    """Synaptic flow: the sum of |weight x gradient| of the sum of outputs, all weights positive, input ones.

    Source: Tanaka et al. 2020, arXiv:2006.05467; logarithm, because the product over layers spans many decades.
    """
    model.double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()
    ones = tuple(torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1] for x in inputs)
    output = model(*ones)
    torch.autograd.backward(output.sum())
    total = sum(float((p * p.grad).detach().abs().sum()) for p in model.parameters() if p.grad is not None)
    return math.log(total)


def naswot(model: nn.Module, inputs: tuple[Any, ...], batch: Any, task: Task) -> float:
    """Logarithm of the determinant of the kernel of binary codes: which ReLUs are on, sample by sample.

    Source: Mellor et al. 2021, arXiv:2006.04647. Samples that switch on the same units are hard to tell apart.
    """
    samples = len(inputs[0])
    kernel = torch.zeros(samples, samples, dtype=torch.float64)

    def note(module: nn.Module, taken: tuple[Tensor, ...], output: Tensor) -> None:
        on = (output.detach().flatten(1) > 0).double()
        kernel.add_(on @ on.T + (1 - on) @ (1 - on).T)

    hooks = [
        one.register_forward_hook(note) for one in model.modules() if isinstance(one, nn.ReLU | nn.ReLU6 | nn.Hardswish)
    ]
    try:
        with torch.no_grad():
            model.train()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.linalg.slogdet(kernel)[1])


def jacobian_correlation(model: nn.Module, inputs: tuple[Any, ...], batch: Any, task: Task) -> float:
    """How little the gradients of the outputs, with respect to each input, are correlated between samples.

    Source: Mellor et al. 2021, arXiv:2006.04647v1 (jacob_cov): minus the sum of log(e + k) + 1 / (e + k) over the
    eigenvalues e of the correlation matrix, k = 1e-5.
    """
    model.train()
    x = inputs[0].detach().clone().requires_grad_()
    torch.autograd.backward(model(x, *inputs[1:]).sum())
    assert x.grad is not None
    rows = x.grad.flatten(1).double()
    values = torch.linalg.eigvalsh(torch.corrcoef(rows)) + 1e-5
    return float(-(values.log() + 1 / values).sum())


ZERO_COST: dict[str, Score] = {
    "params": params,
    "gradient_norm": gradient_norm,
    "synflow": synflow,
    "naswot": naswot,
    "jacobian_correlation": jacobian_correlation,
}


def zero_cost_score(name: str, model: nn.Module, task: Task) -> float:
    """A score of an untrained network, on the first training batch; higher is said to be better.

    Args:
        name: one of `ZERO_COST`.
        model: with fresh weights; it is left alone.
        task: whose first training batch and loss are taken.

    Returns:
        The score.

    Raises:
        BadInput: another name, or a score that is no number for this network.

    Example:
        >>> import gossamer
        >>> zero_cost_score("params", torch.nn.Linear(3, 2), gossamer.data.tiny_task())
        8.0
    """
    if name not in ZERO_COST:
        raise unknown("zero-cost score", name, ZERO_COST)
    batch = next(iter(task.train))
    inputs, _ = inputs_and_target(batch)
    found = ZERO_COST[name](copy_network(model), inputs, batch, task)
    if found != found:
        raise BadInput(f"{name} of this network is no number: its first batch has too few or equal samples")
    return found
