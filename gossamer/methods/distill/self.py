"""Self-distillation (mean teacher): train a student on the predictions of the running mean of its own weights.

What it does: keeps a running mean of the student's weights while it trains, and uses it as the teacher: softer targets
than labels, without another network.
Cost: one forward pass of the mean for each batch.
When it fails: over a few epochs the mean knows nothing that the student does not.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(z' / T) || softmax(z / T)), z' of the network with weights
theta' <- d theta' + (1 - d) theta.
Source: Tarvainen & Valpola 2017, arXiv:1703.01780, section 2 (the mean teacher); Kim et al. 2021, arXiv:2006.12000
(the past self as teacher).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student
from gossamer.train.attached_modules import attached
from gossamer.train.distillation import Soft, soft_loss
from gossamer.train.loop import TrainingStep


class MeanTeacherTerm(Soft):
    """A loss term on the predictions of the running mean, which follows the student after every step."""

    def __init__(self, mean: nn.Module, alpha: float, temperature: float, decay: float, **ends: float | None) -> None:
        super().__init__(temperature, alpha, **ends)
        self.mean, self.decay = mean, decay

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """Return the loss, a scalar."""
        with torch.no_grad():
            expected = self.mean(*inputs)
        return (1 - self.task_weight) * soft_loss(outputs, expected, target, self.temperature)

    @torch.no_grad()
    def follow(self, step: TrainingStep) -> None:
        """Update the mean: faster at first, so that it does not keep the weights of the start."""
        d, now = min(self.decay, step.number / (step.number + 10)), step.model.state_dict()
        for name, mean in self.mean.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(now[name], 1 - d)


@dataclass(frozen=True, kw_only=True)
class SelfDistillation(Student):
    """Train a student on the predictions of the running mean of its own weights.

    The other options are those of `Student` and `Retrain`.

    Args:
        alpha: weight of the task loss, in [0, 1].
        decay: d of the equation, in [0, 1); larger values look further back.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> trained, edits = gossamer.methods.distill.SelfDistillation(epochs=1, lr=0.01)(student, task)
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    alpha: Annotated[float, Range(0, 1)] = 0.5
    decay: Annotated[float, Range(0, 1, open_=("high",))] = 0.99

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        mean = copy_network(model).requires_grad_(False).eval()
        with attached(student, [mean]):
            term = MeanTeacherTerm(mean, decay=self.decay, **self.distillation_options())
            return self.learn([term], student, task, context, after_step=term.follow).model
