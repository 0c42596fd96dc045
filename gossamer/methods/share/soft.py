"""Soft weight-sharing: train under a Gaussian mixture prior that pulls the weights towards a few values.

What it does: trains the network with a mixture of Gaussians as prior of its weights. One component is fixed at zero and
has most of the mass, so most weights become zero; the means of the others are trained. Afterwards, components that are
nearly equal are merged, and every weight takes the mean of its most probable component.
Cost: a training with (components + 1) exponentials for each weight in every step.
When it fails: too large a tau, or components that are too narrow at the start, destroy the weights; large networks
take long. After few steps the components are still wide: then there are fewer zeros, and more values.
Equation: -log p(T | X, w) - tau log sum_j pi_j N(w | mu_j, sigma_j^2); mu_0 = 0, pi_0 fixed; Gamma on 1 / sigma^2.
Source: Ullrich et al. 2017, arXiv:1702.04008; Nowlan & Hinton 1992.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gossamer.constraints.apply import constrain
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.batches import inputs_and_target
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.record import EditKind
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import Trained
from gossamer.train.attached_modules import attached
from gossamer.train.hyperparameters import Training
from gossamer.train.loop import fit

LOG_2PI = math.log(2 * math.pi)
# Gamma(shape, rate) on the precision: of the component at zero, and of the others (as in the source's own code).
ZERO_GAMMA = (5000.0, 2.0)
GAMMA = (250.0, 0.1)
# Steps of means, log precisions and proportions over those of the weights (there 1e-4, 3e-3, 3e-3 over 5e-4).
PACES = (0.2, 6.0, 6.0)
# The loss may rise by this factor, and by as much less 1 in nats, when weights take the values of their components, on
# so many batches; else the proportions of the mixture count to the next of these powers.
ROOM = 1.1
JUDGED = 32
POWERS = (1.0, 0.5, 0.25, 0.1, 0.0)
# Weights are gone through in pieces of so many.
PIECE = 2**13


@dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """A mixture of J + 1 Gaussians; the first is the one at zero.

    Attributes:
        proportions: shape (J + 1,), with the sum 1.
        means: shape (J + 1,).
        variances: shape (J + 1,).
    """

    proportions: Tensor
    means: Tensor
    variances: Tensor


def log_joint(weights: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return log pi_j N(w_i | mu_j, sigma_j^2).

    Args:
        weights: shape (n,).
        mixture: of J + 1 components.

    Returns:
        Shape (n, J + 1).
    """
    error = (weights[:, None] - mixture.means).square() / mixture.variances
    return mixture.proportions.log() - 0.5 * (error + mixture.variances.log() + LOG_2PI)


def negative_log_prior(weights: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return -sum_i log p(w_i), a scalar in nats.

    Args:
        weights: shape (n,).
        mixture: the prior.

    Source: Nowlan & Hinton 1992; Ullrich et al. 2017, arXiv:1702.04008, equation 3.
    """
    value: Tensor = _NegativeLogPrior.apply(  # type: ignore[no-untyped-call]
        weights, mixture.proportions, mixture.means, mixture.variances
    )
    return value


class _NegativeLogPrior(torch.autograd.Function):
    """Computes the value and, in the same pass over pieces that fit into the cache, its gradients."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, proportions: Tensor, means: Tensor, variances: Tensor) -> Tensor:
        mixture = GaussianMixture(proportions=proportions, means=means, variances=variances)
        value, pulls = weights.new_zeros((), dtype=torch.float64), []
        sums = weights.new_zeros(3, len(means), dtype=torch.float64)
        for part in torch.split(weights, PIECE):
            joint = log_joint(part, mixture)
            total = joint.logsumexp(1, keepdim=True)
            r = (joint - total).exp()
            pull = (part[:, None] - means) / variances
            value -= total.double().sum()
            sums[0] -= r.sum(0)
            sums[1] -= (r * pull).sum(0)
            sums[2] -= (r * (pull.square() - 1 / variances)).sum(0) / 2
            pulls.append((r * pull).sum(1))
        by_proportion, by_mean, by_variance = sums.to(weights.dtype)
        ctx.save_for_backward(torch.cat(pulls), by_proportion / proportions, by_mean, by_variance)
        return value.to(weights.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        return tuple(slope * gradient for gradient in ctx.saved_tensors)


def responsibilities(weights: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return p(j | w_i), shape (n, J + 1); rows sum to 1."""
    return log_joint(weights, mixture).softmax(1)


def negative_log_hyperprior(mixture: GaussianMixture) -> Tensor:
    """Return -sum_j log Gamma(1 / sigma_j^2) without the constant: it keeps the variances from collapsing.

    Source: Ullrich et al. 2017, arXiv:1702.04008, section 3.
    """
    precision = 1 / mixture.variances
    shape, rate = torch.full_like(precision, GAMMA[0]), torch.full_like(precision, GAMMA[1])
    shape[0], rate[0] = ZERO_GAMMA
    return (rate * precision - (shape - 1) * precision.log()).sum()


def divergence(a: GaussianMixture, i: int, j: int) -> float:
    """Return the symmetric Kullback-Leibler divergence of components i and j, in nats."""
    v, w = a.variances[i], a.variances[j]
    gap = (a.means[i] - a.means[j]).square()
    return float(0.5 * ((v + gap) / w + (w + gap) / v - 2))


def merge_components(mixture: GaussianMixture, below: float) -> GaussianMixture:
    """Join the two nearest components repeatedly while their divergence is below the limit.

    Mean and variance of the whole mixture do not change: the joint variance includes the distance of the two means,
    which the source omits. A component that is joined with the one at zero takes the mean zero.

    Args:
        mixture: is not changed.
        below: limit of the divergence, in nats.
    """
    while len(mixture.means) > 1:
        pairs = [(i, j) for j in range(len(mixture.means)) for i in range(j)]
        i, j = min(pairs, key=lambda pair: divergence(mixture, *pair))
        if divergence(mixture, i, j) >= below:
            break
        mixture = join_components(mixture, i, j)
    return mixture


def join_components(mixture: GaussianMixture, i: int, j: int) -> GaussianMixture:
    """Replace components i < j by one with their joint proportion, mean and variance."""
    pair = torch.tensor([i, j], device=mixture.means.device)
    p, m, v = mixture.proportions[pair], mixture.means[pair], mixture.variances[pair]
    total = p.sum()
    mean = (p * m).sum() / total
    variance = (p * (v + m.square())).sum() / total - mean.square()
    rest = torch.arange(len(mixture.means), device=mixture.means.device) != j

    def put(values: Tensor, value: Tensor) -> Tensor:
        values = values.clone()
        values[i] = value
        return values[rest]

    return GaussianMixture(
        proportions=put(mixture.proportions, total),
        means=put(mixture.means, mean),
        variances=put(mixture.variances, variance),
    )


class Prior(nn.Module):
    """The trained mixture, attached to the network during the training.

    Every number is start + paces * moved, and `moved` is trained: with Adam, whose steps have the size of the learning
    rate, a number is trained `paces` times as fast as the weights.

    Args:
        weights: all weights, shape (n,); they give the range of the initial means.
        components: Gaussians besides the one at zero.
        zero: proportion of the one at zero.
        sigma: initial standard deviation of all components.
        pace: factor on the paces of the source.
    """

    start: Tensor
    paces: Tensor

    def __init__(self, weights: Tensor, components: int, zero: float, sigma: float, pace: float) -> None:
        super().__init__()
        low, high = float(weights.min()), float(weights.max())
        means = torch.linspace(low, high, components)
        self.zero = zero
        spread = torch.full((components + 1,), -2 * math.log(sigma))
        self.register_buffer("start", torch.cat([means, spread, torch.zeros(components)]))
        counts = torch.tensor([components, components + 1, components])
        self.register_buffer("paces", pace * torch.tensor(PACES).repeat_interleave(counts))
        self.moved = nn.Parameter(torch.zeros_like(self.start))

    def mixture(self) -> GaussianMixture:
        """Return the current mixture."""
        values = self.start + self.paces * self.moved
        count = (len(values) - 1) // 3
        means, log_precision, logits = torch.split(values, [count, count + 1, count])
        first = values.new_zeros(1)
        return GaussianMixture(
            proportions=torch.cat([first + self.zero, (1 - self.zero) * logits.softmax(0)]),
            means=torch.cat([first, means]),
            variances=(-log_precision).exp(),
        )


class SoftSharing:
    """A loss term: tau / samples * (-log p(w) - log p(mixture)), added to a loss that is a mean over samples.

    Args:
        model: whose weights have the prior.
        weights: their names.
        prior: the mixture.
        tau: weight of the prior.
        samples: number of training samples.
    """

    task_weight = 1.0

    def __init__(self, model: nn.Module, weights: list[str], prior: Prior, tau: float, samples: int) -> None:
        self.model, self.names, self.prior, self.factor = model, weights, prior, tau / samples

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        mixture = self.prior.mixture()
        values = [operator.attrgetter(name)(self.model).flatten() for name in self.names]
        weights = torch.cat(values).float()
        alive = weights[weights != 0]  # a pruned weight is no evidence
        return self.factor * (negative_log_prior(alive, mixture) + negative_log_hyperprior(mixture))


def assigned(weight: Tensor, mixture: GaussianMixture) -> Codebook:
    """Give every weight the mean of its most probable component; the first component's members and zeros become zero.

    Args:
        weight: any shape.
        mixture: after the training.
    """
    chosen = torch.cat([log_joint(part, mixture).argmax(1) for part in torch.split(weight.detach().flatten(), PIECE)])
    means = mixture.means.detach().to(weight.dtype).clone()
    means[0] = 0
    chosen = torch.where(weight.flatten() == 0, 0, chosen)
    used, indices = torch.unique(torch.cat([chosen, chosen.new_zeros(1)]), return_inverse=True)
    return Codebook(means[used], indices[:-1].view(weight.shape), mean=True)


def settled(
    model: nn.Module, weights: list[str], mixture: GaussianMixture, task: Task
) -> tuple[dict[str, Codebook], float]:
    """Assign all weights so that the loss hardly rises.

    Where the components are still wide at the end of the training (few steps, as with small data sets), nearly every
    weight is most probably one of the component at zero, which has most of the mass. The proportions then count less:
    to a power of less than 1, down to 0, which is the nearest component by the variances alone.

    Args:
        model: after the training.
        weights: names of those with the prior.
        mixture: after the training.
        task: its training data judge.

    Returns:
        The constraints by name, and the power.
    """
    batches = list(itertools.islice(task.train, JUDGED))
    values = {name: effective_weight(model, name) for name in weights}
    limit = ROOM * _loss(model, task, batches) + ROOM - 1
    for power in POWERS:
        proportions = mixture.proportions**power
        tempered = replace(mixture, proportions=proportions / proportions.sum())
        codes = {name: assigned(value, tempered) for name, value in values.items()}
        if power == POWERS[-1] or _loss(constrain(model, codes), task, batches) <= limit:
            break
    return codes, power


@torch.no_grad()
def _loss(model: nn.Module, task: Task, batches: Sequence[Any]) -> float:
    return math.fsum(float(loss_of(task, model, batch)) for batch in batches) / len(batches)


def train_under(
    model: nn.Module, weights: list[str], prior: Prior, tau: float, training: Training, task: Task, context: Context
) -> nn.Module:
    """Train a copy of the model with the mixture attached, and return it without the mixture."""
    model = copy_network(model)
    samples = len(task.train) * len(inputs_and_target(next(iter(task.train)))[0][0])
    loss_terms: list[Any] = [SoftSharing(model, weights, prior, tau, samples)]
    checkpoint = context.folder / "soft.ckpt" if context.folder else None
    with attached(model, [prior]):
        fit(model, task, training, context, loss_terms=loss_terms, checkpoint=checkpoint, label="soft weight-sharing")
    return model


@dataclass(frozen=True, kw_only=True)
class SoftWeightSharing(Trained):
    """Soft weight-sharing (Nowlan & Hinton 1992; Ullrich et al. 2017).

    Args:
        components: Gaussians besides the one at zero, in [1, 4096].
        zero: fixed proportion of the component at zero, in (0, 1). A larger value gives more zeros.
        tau: weight of the prior, against that of the loss, in [0, 1000].
        sigma: initial standard deviation of all components, in (0, 1000].
        merge: components whose divergence is below it (in nats) are joined after the training.
        pace: speed at which the mixture is trained; 1: as in the source.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip: the training; see `Trained`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.share.SoftWeightSharing(components=4, layers=("fc1",), epochs=1, lr=1e-3)
        >>> shared, edits = method(model, task)
        >>> len(shared.fc1.weight.unique()) <= 5
        True
    """

    stage: ClassVar[int | None] = 60
    usual_epochs: ClassVar[int] = 20
    example: ClassVar[Settings] = {"epochs": 1, "components": 8, "tau": 0.0001}

    components: Annotated[int, Range(1, 4096)] = 16
    zero: Annotated[float, Range(0, 1, open_=("low", "high"))] = 0.999
    tau: Annotated[float, Range(0, 1000)] = 0.005
    sigma: Annotated[float, Range(0, 1000, open_=("low",))] = 0.25
    merge: Annotated[float, Range(0, 1000)] = 0.1
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    pace: Annotated[float, Range(0, 1000)] = 1.0
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        names = list(weights_of(model, self.layers, self.ignore))
        every = torch.cat([effective_weight(model, name).flatten() for name in names])
        prior = Prior(every, self.components, self.zero, self.sigma, self.pace)
        training = replace(self.training(task), optimizer="adamw", schedule="constant")
        model = train_under(model, names, prior, self.tau, training, task, context)
        with torch.no_grad():
            mixture = merge_components(prior.mixture(), self.merge)
        constrained, power = settled(model, names, mixture, task)
        note = "" if power == 1 else f"proportions to the power of {power:g}: the components are wide"
        for name in names:
            w = effective_weight(model, name)
            zeros, values = int((constrained[name](w) == 0).sum()), len(torch.unique(constrained[name].indices))
            after = f"{values} values, {zeros:,} zeros"
            self.note(context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=after, note=note)
        return constrain(model, constrained)
