"""Bayesian dark knowledge: train a student on the mean prediction of networks drawn from the teacher's posterior.

What it does: samples the teacher's weights from their posterior by Langevin dynamics, one step for each batch, and
trains the student on the outputs of each sample, near the training data. The student becomes the average of the whole
ensemble, which is better calibrated than a single network, at the cost of one network. No sample is stored. For
regressions the student learns the average; one with twice the teacher's outputs learns mean and log variance.
Cost: one training step and one forward pass of the teacher for each batch, after `burn_in` epochs of the teacher alone.
When it fails: too large a `sampler_lr` samples from a wider distribution than the posterior; with too small a one the
samples hardly differ. Batch norms of the teacher stay as they are.
Equation: theta += (h / 2) grad log p(theta | data) + N(0, h), h = 2 sampler_lr / N; the student's loss:
KL(teacher(x') || student(x')), x' = x + N(0, spread^2), or (log s^2 + ((v - m)^2 + 1 / precision) / s^2) / 2.
Source: Korattikara Balan et al. 2015, arXiv:1506.04416, section 2; Welling & Teh 2011 (Langevin dynamics).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gossamer.core.batches import Model, inputs_and_target
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.metric import Evidence, Metric
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import gaussian_loss, langevin_step
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student
from gossamer.train.attached_modules import attached
from gossamer.train.batches import batch_size, batches_of_epoch
from gossamer.train.distillation import Soft, soft_loss


@dataclass
class Posterior:
    """A network whose weights are sampled from their posterior.

    Attributes:
        network: the current sample; its weights are changed in place.
        samples: number of labelled training samples.
        lr: learning rate on the mean loss.
        prior: precision of the weights (of a normal prior with mean 0).
        precision: of the observations, where the targets are real numbers.
    """

    network: nn.Module
    samples: int
    lr: float
    prior: float
    precision: float

    def step(self, inputs: tuple[Any, ...], target: Tensor) -> None:
        """Take one step of Langevin dynamics, on one batch."""
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in self.network.named_parameters()}
            outputs = functional_call(self.network, leaves, inputs)
            energy = self.samples * self.surprise(outputs, target)
            energy = energy + self.prior / 2 * torch.stack([p.pow(2).sum() for p in leaves.values()]).sum()
            gradients = torch.autograd.grad(energy, list(leaves.values()), allow_unused=True, materialize_grads=True)
        langevin_step(list(self.network.parameters()), [-g for g in gradients], 2 * self.lr / self.samples)

    def surprise(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target | outputs) without constants, the mean over samples."""
        if target.is_floating_point():
            return self.precision / 2 * (outputs - target.view_as(outputs)).pow(2).flatten(1).sum(1).mean()
        return F.cross_entropy(outputs, target)


class PosteriorTerm(Soft):
    """A loss term: one step of the posterior, then its outputs near the batch."""

    def __init__(self, posterior: Posterior, alpha: float, spread: float, alpha_end: float | None = None) -> None:
        super().__init__(1.0, alpha, alpha_end=alpha_end)
        self.posterior, self.spread = posterior, spread
        self.near: tuple[Any, ...] = ()

    def perturb(self, student: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Hook before the student's forward pass: in training, replace the inputs by inputs near them."""
        if not student.training:
            return None
        noisy = self.spread > 0
        self.near = tuple(
            x + self.spread * torch.randn_like(x) if noisy and isinstance(x, Tensor) and x.is_floating_point() else x
            for x in inputs
        )
        return self.near

    def __call__(self, inputs: tuple[Any, ...], outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        self.posterior.step(inputs, target)
        with torch.no_grad():
            expected = self.posterior.network(*self.near)
        if has_variance(outputs, expected):
            mean, log_variance = outputs.chunk(2, 1)
            soft = gaussian_loss(mean, log_variance, expected, 1 / self.posterior.precision)
        else:
            soft = soft_loss(outputs, expected, target, self.temperature)
        return (1 - self.task_weight) * soft


def has_variance(outputs: Tensor, expected: Tensor) -> bool:
    """Return whether the student gives mean and log variance of what the teacher gives."""
    return outputs.dim() == 2 and outputs.shape[1] == 2 * expected.shape[1]


class OnMeans(Metric):
    """A metric, of the first half of the outputs."""

    def __init__(self, whole: Metric) -> None:
        self.whole, self.name, self.unit, self.points = whole, whole.name, whole.unit, whole.points
        self.higher_is_better, self.perfect = whole.higher_is_better, whole.perfect

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        return self.whole.evidence(means(model), loader)

    def value(self, evidence: Evidence) -> float:
        return self.whole.value(evidence)

    def per_sample(self, evidence: Evidence) -> Tensor | None:
        return self.whole.per_sample(evidence)

    def resampled(self, evidence: Evidence, counts: Tensor) -> Tensor:
        return self.whole.resampled(evidence, counts)


def means(model: Model) -> Model:
    """The first half of the outputs."""
    return lambda *inputs: model(*inputs).chunk(2, 1)[0]


def on_means(task: Task) -> Task:
    """Return the task for the first half of the outputs, the means."""

    loss = task.loss
    return replace(task, loss=lambda model, batch: loss(means(model), batch), metric=OnMeans(task.metric))


@dataclass(frozen=True, kw_only=True)
class BayesianDarkKnowledge(Student):
    """Train a student on the outputs of samples from the teacher's posterior.

    `temperature` has no effect. The other options are those of `Student` and `Retrain`.

    Args:
        alpha: weight of the task loss, in [0, 1]; 0 trains on the posterior alone.
        burn_in: epochs of the teacher alone, before the student trains; at least 0.
        sampler_lr: learning rate of the sampler on the mean loss, in (0, 10].
        spread: standard deviation of the noise that is added to the inputs; 0 adds none.
        prior: precision of the weights.
        precision: of the observations, for regressions.

    Raises:
        BadInput: there is no teacher, or the targets are not one tensor.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.BayesianDarkKnowledge(epochs=1, lr=0.01, burn_in=1)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "burn_in": 1, "sampler_lr": 0.001}

    alpha: Annotated[float, Range(0, 1)] = 0.0
    burn_in: Annotated[int, Range(0, 10_000)] = 2
    sampler_lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.02
    spread: Annotated[float, Range(0, 1000)] = 0.001
    prior: Annotated[float, Range(0, 1e9)] = 10.0
    precision: Annotated[float, Range(0, 1e9, open_=("low",))] = 1.0

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        posterior = self.posterior(task, context)
        student = copy_network(model)
        term = PosteriorTerm(posterior, self.alpha, self.spread, self.alpha_end)
        with torch.no_grad(), evaluating(student):
            ours, theirs = (net(*place(net, (task.example_inputs, None))) for net in (student, posterior.network))
        if has_variance(ours, theirs):
            task = on_means(task)
        hook = student.register_forward_pre_hook(term.perturb)
        try:
            with attached(student, [posterior.network]):
                return self.learn([term], student, task, context).model
        finally:
            hook.remove()

    def posterior(self, task: Task, context: Context) -> Posterior:
        """Return the teacher after its burn-in."""
        network = copy_network(self.teacher(context, inside=True)).requires_grad_(False).eval()
        samples = len(task.train) * batch_size(next(iter(task.train)))
        result = Posterior(network, samples, self.sampler_lr, self.prior, self.precision)
        with own_randomness():
            for epoch in range(self.burn_in):
                # Of another seed than the student's training, which would draw the same numbers again.
                batches = batches_of_epoch(task.train, context.seed + 1, epoch, 0, 0)
                name = f"{self.name()}: epoch {epoch + 1} of {self.burn_in} of the burn-in"
                for _, batch in context.progress.bar(batches, label=name, total=len(task.train)):
                    target = inputs_and_target(batch)[1]
                    if not isinstance(target, Tensor):
                        raise BadInput(f"{self.name()}: targets are a {type(target).__name__}, they must be one tensor")
                    result.step(place(network, batch), target.to(next(network.parameters()).device))
        return result
