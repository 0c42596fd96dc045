"""L0 regularization with hard concrete gates: train a random gate on every channel, and remove channels that stay shut.

What it does: what makes a channel is multiplied by a gate, which is drawn anew in every step from a distribution on
[0, 1] that has mass at exactly 0 and 1. The loss and the expected number of weights that are not zero train how likely
each gate is to open. Under a target, the penalty acts on the gates that have to shut, the least likely to open, and its
strength follows from the target. A gate that would be shut without randomness stays shut. After a share of the
training, open gates are multiplied into the weights, the rest of the training is without gates, and shut channels are
removed, with proof.
Cost: one training; a product for each weight that makes a channel.
When it fails: gates make the gradients noisy, so that short trainings are worse than with `prune.group_lasso`. A gate
learns from the loss what its channel is worth, which takes some hundred steps.
Equation: s = sigmoid((log u - log(1 - u) + log alpha) / beta), z = min(1, max(0, s (zeta - gamma) + gamma));
min E[L(w z)] + lambda sum_g |g| sigmoid(log alpha_g - beta log(-gamma / zeta)).
Source: Louizos, Welling & Kingma 2018, arXiv:1712.01312, sections 2.2 and 2.3.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import attach, constraints, materialize, refuse_constrained
from gossamer.constraints.base import Constraint
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._sparse import Penalized
from gossamer.modules.element_groups import ElementGroups, spread
from gossamer.train.loop import TrainingStep
from gossamer.train.sparsity import FROZEN, NUMBERS, Shrinking, Sparsify, remembered

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3  # ends of the stretched interval, and the temperature: section 4 of the paper
SHUT = math.log(-GAMMA / ZETA)  # log alpha up to which a gate without randomness is 0
LEAST = 0.1  # above it, of a gate at first: none is shut before it was tried
GAIN = 10.0  # times the learning rate: gates have few steps, and gradients that are sums of small ones


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return the probability that a gate is not zero, element by element (equation 12 of the paper)."""
    return torch.sigmoid(log_alpha - BETA * SHUT)


def hard_concrete(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Return gates drawn from the hard concrete distribution, element by element (equations 10 and 11 of the paper).

    Args:
        log_alpha: location of each gate.
        uniform: random numbers in (0, 1), of the same shape.
    """
    return _stretched(torch.sigmoid((uniform.logit() + log_alpha) / BETA))


def settled_gates(log_alpha: Tensor) -> Tensor:
    """Return the gates of the trained network, without randomness (equation 13 of the paper)."""
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(concrete: Tensor) -> Tensor:
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class Gates(nn.Module):
    """One gate for each group, drawn once for each step while training.

    `opening` is log alpha above the value at which a gate without randomness is 0: a gate at 0 is shut.
    """

    uniform: Tensor
    folded: Tensor

    def __init__(self, log_alpha: Tensor) -> None:
        super().__init__()
        self.opening = nn.Parameter((log_alpha - SHUT).clamp_min(LEAST))
        self.register_buffer("uniform", torch.full_like(log_alpha, 0.5))
        self.register_buffer("folded", torch.tensor(False))

    def forward(self) -> Tensor:
        still = self.opening.detach()
        log_alpha = still + GAIN * (self.opening - still) + SHUT
        return hard_concrete(log_alpha, self.uniform) if self.training else settled_gates(log_alpha)


class Gated(Constraint):
    """A weight times the gates of its groups. Several weights have the same gates."""

    def __init__(self, gates: Gates, groups: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.gates, self.groups = gates, groups

    def forward(self, weight: Tensor) -> Tensor:
        if self.gates.folded:
            return weight
        return weight * spread(self.groups, self.gates().to(weight.dtype), 1.0)


@dataclass(frozen=True)
class GatePenalty:
    """A step along the slope of the expected number of weights that are not zero; gates that get to 0 are shut.

    Attributes:
        sizes: of each group relative to their mean.
    """

    sizes: tuple[float, ...]

    def __call__(self, step: Shrinking) -> None:
        [name] = step.groups.carried
        opening = step.parameters[name]
        likely = open_probability(opening + SHUT)
        slope = opening.new_tensor(self.sizes) * likely * (1 - likely)
        opening.sub_(step.amounts * slope.where(step.chosen, 0.0)).clamp_(min=0)


@dataclass(frozen=True, kw_only=True)
class GateSteps:
    """What is done after every step: gates shrink, and are drawn anew; at the end they go into the weights.

    Attributes:
        sparsify: shrinks the gates.
        seed: of the random numbers.
    """

    sparsify: Sparsify
    seed: int

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        self.sparsify(step)
        ended = step.number >= self.sparsify.last(step.steps) or bool(remembered(step.model, NUMBERS)[FROZEN])
        gates = gates_of(step.model)
        if ended and not gates.folded:
            fold_gates(step.model)
        generator = torch.Generator().manual_seed((self.seed << 32) + step.number)
        gates.uniform.copy_(torch.rand(gates.uniform.shape, generator=generator).clamp(1e-6, 1 - 1e-6))


def gates_of(model: nn.Module) -> Gates:
    """Return the gates of a gated network."""
    return next(module for module in model.modules() if isinstance(module, Gates))


def first_locations(groups: ElementGroups, norms: Tensor, drop_rate: float) -> Tensor:
    """Return log alpha of each gate at first, shape (groups,): odds of 1 - drop_rate, times the norm of the group over
    the mean of its layer. So a trained network begins with what its norms say."""
    odds = torch.full_like(norms, (1 - drop_rate) / drop_rate)
    for layer in dict.fromkeys(groups.names):
        own = torch.tensor([name == layer for name in groups.names], device=norms.device)
        odds[own] *= norms[own] / norms[own].mean().clamp_min(1e-30)
    return odds.clamp_min(1e-30).log()


def gate_groups(plain: nn.Module, groups: ElementGroups, log_alpha: Tensor) -> ElementGroups:
    """Put a gate on every group of a plain network, in place.

    Args:
        plain: without constraints.
        groups: whose carriers are multiplied by gates.
        log_alpha: of each gate, shape (groups,).

    Returns:
        The same groups with the gates as their carriers, and names as they are in the gated network.
    """
    gates = Gates(log_alpha)
    attach(plain, {name: (Gated(gates, arrays),) for name, arrays in groups.carried.items()})
    opening = next(name for name, p in plain.named_parameters() if p is gates.opening)
    own = {opening: (torch.arange(len(groups)),)}
    raw = {name: _raw(name) if name in groups.carried else name for name in groups.cleared}
    return replace(groups, carried=own, cleared={raw[name]: ids for name, ids in groups.cleared.items()} | own)


def _raw(name: str) -> str:
    owner, _, key = name.rpartition(".")
    return f"{owner}.parametrizations.{key}.original".removeprefix(".")


@torch.no_grad()
def fold_gates(model: nn.Module) -> None:
    """Multiply the gates into the weights, in place; from then on they are left out."""
    gates = gates_of(model)
    values = settled_gates(gates.opening + SHUT)
    parameters = dict(model.named_parameters())
    for name, [gated] in constraints(model).items():
        if isinstance(gated, Gated):
            parameters[_raw(name)].mul_(spread(gated.groups, values.to(parameters[_raw(name)].dtype), 1.0))
    gates.folded.fill_(True)


@dataclass(frozen=True, kw_only=True)
class L0Gates(Penalized):
    """L0 regularization with hard concrete gates (Louizos, Welling & Kingma 2018). Give one target, or the strength.

    Args:
        drop_rate: how likely a gate of a channel of mean norm is to be below one half at first, in (0, 0.9].
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.L0Gates(speedup=2, epochs=5, lr=0.01)(model, task)
        >>> smaller.conv1.out_channels + smaller.conv2.out_channels < 24
        True
    """

    example: ClassVar[Settings] = {"speedup": 2.0, "epochs": 3, "lr": 0.01}

    drop_rate: Annotated[float, Range(0, 0.9, open_=("low",))] = 0.1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        plain: Any = materialize(model)
        [groups] = self.families(plain, task)
        parameters = dict(plain.named_parameters())
        sizes, norms = groups.sizes(parameters), groups.norms(parameters)
        hook = self.hook(plain, GatePenalty(tuple((sizes / sizes.mean()).tolist())), task, by_size=False)
        gated = gate_groups(plain, groups, first_locations(groups, norms, self.drop_rate))
        hook = replace(hook, families=(gated,))
        hook.attach(plain)
        steps = GateSteps(sparsify=hook, seed=context.seed)
        trained = self.noted(self.train(plain, task, context, after_step=steps), context).model
        return self.cut(trained, hook, task, context)
