"""Trains a supernet: weights on training data, the weights of its operations on validation data.

Of the cures of DARTS that are known, these go together and are here: a part of the channels and weights of edges
(PC-DARTS, in `supernet`), a start in which the weights alone are trained (PC-DARTS), an end where the curvature of the
validation loss rises (RobustDARTS), and few skip connections (DARTS+, in `searchers.darts`).

Source: Liu et al. 2019, arXiv:1806.09055, section 3.1; Xu et al. 2020, arXiv:1907.05737, section 4.1; Zela et al. 2020,
arXiv:1909.09656, section 4.3.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gossamer.core.batches import batch_count
from gossamer.core.conditions import own_conditions, own_randomness
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import Diverged
from gossamer.nas.bilevel import architecture_gradient, largest_eigenvalue
from gossamer.nas.cells import CellSpace
from gossamer.nas.supernet import Supernet
from gossamer.train.batches import Placement, endless, seed_everything
from gossamer.train.hyperparameters import Training
from gossamer.train.processes import make_fabric

FILTERS = 8  # of the supernet, at most: it ranks operations, and is not what is trained in the end
RATE_SHARE, LOWEST, MOMENTUM, DECAY, CLIP = 0.25, 0.04, 0.9, 3e-4, 5.0  # of the weights: 0.025 at the usual 0.1
BETAS, ARCHITECTURE_DECAY = (0.5, 0.999), 1e-3  # of Adam for the architecture
TRAVEL, HIGHEST = 5.85, 0.05  # rate times steps of the paper (3e-4 times 19,500); highest rate of short trainings
WARM_UP = 0.3  # of the steps, in which the weights alone are trained
LOOKS, BETWEEN = 50, 20  # at the curvature, at most; least steps between two
WINDOW, RISE, PRODUCTS = 5, 0.75, 10  # looks in a mean and back; ratio at which it ends; products with the Hessian
TIMED, SHARE = 3, 0.5  # steps that are timed; of a budget of time that the supernet takes at most


class Relaxed(Protocol):
    """A network with weights of its choices."""

    def architecture(self) -> list[nn.Parameter]:
        """Trained on validation data."""

    def weights(self) -> list[nn.Parameter]:
        """Trained on training data."""


class Substituted(nn.Module):
    """A network with other tensors in the place of some of its parameters.

    Args:
        model: the network.
        tensors: by the name of a parameter.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.held = (model, dict(tensors))  # in a tuple: they are no modules and parameters of this one

    def forward(self, *inputs: Any) -> Any:
        model, tensors = self.held
        return torch.func.functional_call(model, tensors, inputs)


@dataclass
class Looks:
    """The curvature of the validation loss, and the architecture, at every look.

    Attributes:
        eigenvalues: the largest of the Hessian, look by look.
        seen: the architecture at every look.
    """

    eigenvalues: list[float] = field(default_factory=list)
    seen: list[list[Tensor]] = field(default_factory=list)

    def add(self, eigenvalue: float, architecture: Sequence[Tensor]) -> None:
        """One look."""
        self.eigenvalues.append(eigenvalue)
        self.seen.append([one.detach().clone() for one in architecture])

    @property
    def before_the_rise(self) -> list[Tensor] | None:
        """The architecture some looks ago, where the mean curvature has risen too much since then; else None."""
        if len(self.eigenvalues) < 2 * WINDOW:
            return None
        now, earlier = fmean(self.eigenvalues[-WINDOW:]), fmean(self.eigenvalues[-2 * WINDOW : -WINDOW])
        return self.seen[-1 - WINDOW] if 0 < earlier < RISE * now else None


def pairs_of_batches(task: Task, seed: int, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """A training batch and a validation batch, without end."""
    place = Placement(device)
    return zip(place.whole(endless(task.train, seed)), place.whole(endless(task.validation, seed + 1)))


class RelaxedTraining:
    """Trains a relaxed network in alternating steps.

    Args:
        model: it is changed, and must be a `Relaxed`.
        task: data and loss.
        steps: of the weights.
        lr: peak of the learning rate of the weights.
        order: 1: the architecture is trained as if the weights stayed as they are; 2: as if they followed by one step.
        seed: of the batches.
    """

    def __init__(self, model: Any, task: Task, *, steps: int, lr: float, order: int = 1, seed: int = 0) -> None:
        self.model, self.task, self.steps, self.lr, self.order = model, task, steps, lr, order
        relaxed: Relaxed = model
        self.weights, self.architecture = relaxed.weights(), relaxed.architecture()
        known = {id(tensor): name for name, tensor in model.named_parameters()}
        self.names = [known[id(tensor)] for tensor in self.weights]
        self.inner = torch.optim.SGD(self.weights, lr, MOMENTUM, weight_decay=DECAY)
        self.outer = torch.optim.Adam(
            self.architecture, min(TRAVEL / steps, HIGHEST), BETAS, weight_decay=ARCHITECTURE_DECAY
        )
        self.looks, self.done = Looks(), 0
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, train_batch: Any, validation_batch: Any) -> None:
        """One step of the architecture, after the start, and one of the weights.

        Raises:
            Diverged: the training loss is no number.
        """
        rate = self.lr * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * self.done / self.steps)) / 2)
        self.model.train()
        if self.done >= WARM_UP * self.steps:
            self._set(self.architecture, self.gradient(train_batch, validation_batch, rate))
            self.outer.step()
        loss = self.task.loss(self.model, train_batch)
        if not math.isfinite(value := float(loss.detach())):
            raise Diverged(f"the supernet's loss is {value} at step {self.done}; lower the learning rate")
        self._set(self.weights, torch.autograd.grad(loss, self.weights, materialize_grads=True))
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()
        self.done += 1

    def gradient(self, train_batch: Any, validation_batch: Any, rate: float) -> list[Tensor]:
        """Of the validation loss, by the architecture."""

        def loss_on(batch: Any) -> Callable[[Sequence[Tensor]], Tensor]:
            def loss(weights: Sequence[Tensor]) -> Tensor:
                return self.task.loss(Substituted(self.model, dict(zip(self.names, weights))), batch)

            return loss

        ahead = rate if self.order == 2 else 0.0
        losses = loss_on(train_batch), loss_on(validation_batch)
        return architecture_gradient(*losses, self.weights, self.architecture, ahead)

    def overfits(self, validation_batch: Any) -> bool:
        """Look at the curvature; whether it has risen so much that the training ends, with the architecture before."""
        if self.done <= WARM_UP * self.steps or self.done % max(BETWEEN, self.steps // LOOKS):
            return False
        loss = self.task.loss(self.model, validation_batch)
        self.looks.add(largest_eigenvalue(loss, self.architecture, self.generator, PRODUCTS), self.architecture)
        if (before := self.looks.before_the_rise) is None:
            return False
        with torch.no_grad():
            for tensor, value in zip(self.architecture, before):
                tensor.copy_(value)
        return True

    @staticmethod
    def _set(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = gradient


@own_conditions()
def train_supernet(
    space: CellSpace,
    task: Task,
    *,
    epochs: int,
    lr: float,
    context: Context,
    order: int = 1,
    minutes: float | None = None,
    after_step: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Train the supernet of a space of cells.

    Args:
        space: of cells.
        task: weights learn from its training data, operations and edges from its validation data.
        epochs: of the training data.
        lr: peak of the learning rate of usual trainings; the supernet takes a quarter.
        context: seed, device and progress.
        order: 1 or 2, as in `RelaxedTraining`.
        minutes: of which the training takes at most half, by the time of its first steps; None: no limit.
        after_step: called after every step.

    Returns:
        As JSON values: `architecture` (operations and edges of the normal, then of the reduction cell, before the
        softmax), `steps`, `eigenvalues`, and whether it `ended_early`.

    Raises:
        Diverged: the loss is no number.

    Example:
        >>> import gossamer
        >>> images = [(torch.rand(4, 1, 8, 8), torch.randint(2, (4,))) for _ in range(2)]
        >>> task = gossamer.Task.from_loaders(images, images)
        >>> space = CellSpace(channels=1, classes=2, blocks=1, filters=4, stages=1)
        >>> found = train_supernet(space, task, epochs=1, lr=0.1, context=gossamer.Context())
        >>> found["steps"], len(found["architecture"])
        (2, 4)
    """
    device = make_fabric(context, Training(epochs=1)).device
    steps = epochs * batch_count(task.train, f"task {task.name!r}: the train loader")
    batch_count(task.validation, f"task {task.name!r}: the validation loader")
    with own_randomness():
        seed_everything(context.seed)
        model = Supernet(replace(space, filters=min(space.filters, FILTERS))).to(device)
        if minutes is not None:
            trial = RelaxedTraining(model, task, steps=TIMED, lr=RATE_SHARE * lr, order=order)
            seconds = _timed(trial, pairs_of_batches(task, context.seed, device))
            steps = max(TIMED, min(steps, int(60 * SHARE * minutes / seconds)))
            seed_everything(context.seed)
            model = Supernet(model.space).to(device)
        training = RelaxedTraining(model, task, steps=steps, lr=RATE_SHARE * lr, order=order, seed=context.seed)
        early = False
        batches = zip(range(steps), pairs_of_batches(task, context.seed, device))
        for _, (train_batch, validation_batch) in context.progress.bar(batches, label="supernet", total=steps):
            training.step(train_batch, validation_batch)
            if after_step is not None:
                after_step()
            if early := training.overfits(validation_batch):
                break
    return {
        "architecture": [tensor.detach().cpu().tolist() for tensor in training.architecture],
        "steps": training.done,
        "eigenvalues": training.looks.eigenvalues,
        "ended_early": early,
    }


def _timed(training: RelaxedTraining, batches: Iterator[tuple[Any, Any]]) -> float:
    """Seconds of a step of both levels, the median of a few."""
    seconds = []
    for _ in range(TIMED):
        began = time.monotonic()
        training.done = training.steps - 1  # both levels
        training.step(*next(batches))
        seconds.append(time.monotonic() - began)
    return sorted(seconds)[TIMED // 2]
