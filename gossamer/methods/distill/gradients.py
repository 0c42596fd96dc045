"""Gradient-based attention transfer: train a student to have the teacher's gradients with respect to the inputs.

What it does: adds to knowledge distillation the difference of the gradients of the task's loss with respect to the
inputs. Where a small change of the image changes the teacher's prediction, it is to change the student's.
Cost: a backward pass of the teacher, and a second differentiation of the student: about three plain steps.
When it fails: gradients of ReLU networks are rough, so it helps less than `distill.attention`. Layers that cannot be
differentiated twice raise an error.
Equation: alpha CE + (1 - alpha) KD + beta |J_S - J_T|^2 / (|J_S|^2 + |J_T|^2), J = dL/dx, norms over the batch; the
denominator gets no gradient.
Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.2. There the difference is not divided: a confident
teacher has tiny gradients, and the loss of a less confident student is large.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import gradient_attention_loss, input_gradient
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student
from gossamer.train.distillation import Distillation


class GradientTerm:
    """A loss term on the gradients with respect to the inputs.

    Hooks make the student's inputs leaves of its graph. They also separate its outputs from those that go into the
    loss, since Fabric does not let others differentiate those.
    """

    def __init__(self, distillation: Distillation, task: Task, weight: float) -> None:
        self.distillation, self.task, self.weight = distillation, task, weight
        self.leaf = torch.zeros(0)
        self.outputs: Any = None

    @property
    def task_weight(self) -> float:
        """The weight that is left to the task's own loss."""
        return self.distillation.task_weight

    def at(self, progress: float) -> None:
        """Follow the schedules of the loss on the outputs."""
        self.distillation.at(progress)

    def described(self) -> str:
        """Return the description of the loss on the outputs, with the weight of the gradients."""
        return f"{self.weight} gradients, {self.distillation.described()}"

    def begin(self, student: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """Hook before the student's forward pass, in training."""
        if not student.training:
            return None
        if not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
            raise BadInput("distill.gradients: the first input must be a tensor of real numbers, to be differentiated")
        self.leaf = inputs[0].detach().requires_grad_()
        return (self.leaf, *inputs[1:])

    def end(self, student: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
        """Hook behind the student's forward pass."""
        self.outputs = outputs
        return tree_map_only(Tensor, Tensor.clone, outputs)

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """Return the loss, a scalar."""
        own = input_gradient(self.task.loss(lambda *_: self.outputs, (inputs, target)), self.leaf)
        x = inputs[0].detach().requires_grad_()
        expected = self.distillation.teacher(x, *inputs[1:])
        other = input_gradient(self.task.loss(lambda *_: expected, (inputs, target)), x).detach()
        zero = torch.zeros_like(other)
        size = gradient_attention_loss(own.detach(), zero) + gradient_attention_loss(zero, other)
        loss = gradient_attention_loss(own, other) / size.clamp_min(torch.finfo(size.dtype).tiny)
        return self.weight * loss + self.distillation.soft(outputs, expected.detach(), target)


@dataclass(frozen=True, kw_only=True)
class GradientAttention(Student):
    """Train a student on the teacher's outputs and on its gradients with respect to the inputs.

    The other options are those of `Student` and `Retrain`.

    Args:
        beta: weight of the gradients, in (0, 1e6].

    Raises:
        BadInput: there is no teacher, it gives only outputs, or the first input is no tensor of real numbers.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.GradientAttention(epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    beta: Annotated[float, Range(0, 1e6, open_=("low",))] = 0.1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        term = self.distillation(self.teacher(context, inside=True))
        gradients = GradientTerm(term, task, self.beta)
        hooks = [
            student.register_forward_pre_hook(gradients.begin),
            student.register_forward_hook(gradients.end),
        ]
        try:
            return self.learn([gradients], student, task, context).model
        finally:
            for hook in hooks:
                hook.remove()
