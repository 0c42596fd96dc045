"""Data-free distillation (DeepInversion): train a student on images that are reconstructed from the teacher.

What it does: turns noise into images to which the teacher gives a chosen class, and whose statistics in all its batch
norms are those of its training data; then trains the student on these images. No training data are used; validation
data still choose the best weights.
Cost: `steps` forward and backward passes of the teacher for every batch of images, then a training.
When it fails: teachers without batch norm hold too little of their data. The student stays behind one that was trained
on real data.
Equation: min over x of CE(y, teacher(x)) + statistics * mean over batch norms (|m - mean| + |s^2 - variance|) +
smoothness * TV(x); then as `distill.kd` on x.
Source: Yin et al. 2020, arXiv:1912.08795, section 3.2 (DeepInversion, without its competition with the student).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import statistics_loss, total_variation
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Samples, Student
from gossamer.train.batches import seed_everything


@contextmanager
def batch_norm_losses(teacher: nn.Module) -> Iterator[list[Tensor]]:
    """Within, `statistics_loss` of the inputs of each batch norm in a run is appended to the list.

    Raises:
        BadInput: the teacher has no batch norm with running statistics.
    """
    losses: list[Tensor] = []

    def note(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        losses.append(statistics_loss(inputs[0], norm.running_mean, norm.running_var))

    norms = [m for m in teacher.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise BadInput("distill.data_free: the teacher has no batch norm with running statistics")
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        yield losses
    finally:
        for hook in hooks:
            hook.remove()


def invert(
    teacher: nn.Module, labels: Tensor, shape: tuple[int, ...], *, steps: int, lr: float, weights: tuple[float, float]
) -> Tensor:
    """Reconstruct images that the teacher takes for given classes, from noise of torch's global generator.

    Args:
        teacher: in eval mode.
        labels: classes, integers (N,).
        shape: of one image.
        steps: of Adam.
        lr: its learning rate at the start; it falls linearly to 0.
        weights: of the batch-norm statistics and of the smoothness.

    Returns:
        Images (N, *shape).
    """
    images = torch.randn(len(labels), *shape, device=labels.device).requires_grad_()
    optimizer = torch.optim.Adam([images], lr, betas=(0.5, 0.9))
    with batch_norm_losses(teacher) as unlike, torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            unlike.clear()
            loss = F.cross_entropy(teacher(images), labels)
            loss = loss + weights[0] * torch.stack(unlike).mean()
            if images.dim() == 4:
                loss = loss + weights[1] * total_variation(images)
            images.grad = torch.autograd.grad(loss, [images])[0]
            optimizer.step()
    return images.detach()


@dataclass(frozen=True, kw_only=True)
class DataFreeDistillation(Student):
    """Train a student on images that are reconstructed from the teacher.

    The other options are those of `Student` and `Retrain`.

    Args:
        samples: number of images, at least 1.
        batch: images that are made at a time, at least 2.
        steps: steps of Adam for each batch of images, at least 1.
        image_lr: learning rate of the images, in (0, 100].
        statistics: weight of the batch-norm statistics, at least 0.
        smoothness: weight of the total variation, at least 0.

    Raises:
        BadInput: there is no teacher, it has no batch norms, or it does not give logits (N, classes).

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.DataFreeDistillation(samples=16, batch=8, steps=3, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "samples": 16, "batch": 8, "steps": 3}

    samples: Annotated[int, Range(1, 10_000_000)] = 2048
    batch: Annotated[int, Range(2, 100_000)] = 128
    steps: Annotated[int, Range(1, 1_000_000)] = 200
    image_lr: Annotated[float, Range(0, 100, open_=("low",))] = 0.1
    statistics: Annotated[float, Range(0, 1e6)] = 1.0
    smoothness: Annotated[float, Range(0, 1e6)] = 0.01

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        teacher = copy_network(self.teacher(context, inside=True)).requires_grad_(False).eval()
        home, example = next(teacher.parameters()).device, task.example_inputs[0]
        outputs = teacher(example.to(home))
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise BadInput(f"{self.name()}: the teacher must give logits (N, classes) for one tensor of inputs")
        images: list[Tensor] = []
        parts = range(-(-self.samples // self.batch))
        with own_randomness():
            seed_everything(context.seed, 0)
            labels = torch.arange(len(parts) * self.batch) % outputs.shape[1]
            for i in context.progress.bar(parts, label=f"{self.name()}: making images", total=len(parts)):
                wanted = labels[i * self.batch : (i + 1) * self.batch].to(home)
                weights = (self.statistics, self.smoothness)
                images.append(
                    invert(teacher, wanted, example.shape[1:], steps=self.steps, lr=self.image_lr, weights=weights)
                )
        count = self.samples
        data = replace(task, train=Samples(torch.cat(images).cpu()[:count], labels[:count], self.batch))
        term = self.distillation(teacher)
        return self.learn([term], copy_network(model), data, context).model
