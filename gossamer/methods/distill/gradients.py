"""Learn to be sensitive where the teacher is.

What it does: adds to soft targets the difference of the gradients of the task's loss with respect to the inputs: where
a small change of the picture would change the teacher's mind it is to change the student's.
Cost: a backward pass of the teacher, and a second differentiation of the student: about three plain steps.
When it fails: gradients of ReLU networks are rough, so that it helps less than `distill.attention`; layers that cannot
be differentiated twice raise an error.
Equation: alpha CE + (1 - alpha) KD + beta |J_S - J_T|^2 / (|J_S|^2 + |J_T|^2), J = dL/dx, norms over the batch, where
what is below the line gets no gradient.
Source: Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.2; there without the line, so that a sure teacher, whose
gradients are tiny, and a student that is not are far apart.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import gradient_attention_loss, input_gradient
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student
from gossamer.train import Distillation


class Sensitivity:
    """A term of `teach`. Hooks make the student's inputs leaves of its graph, and keep its outputs apart from those
    that go into the loss, which Fabric guards against being differentiated by others."""

    def __init__(self, distillation: Distillation, task: Task, weight: float) -> None:
        self.distillation, self.task, self.weight = distillation, task, weight
        self.leaf = torch.zeros(0)
        self.outputs: Any = None

    @property
    def hard_weight(self) -> float:
        """The weight that is left to the task's own loss."""
        return self.distillation.hard_weight

    def at(self, progress: float) -> None:
        """Follow the schedules of the soft loss."""
        self.distillation.at(progress)

    def described(self) -> str:
        """As the soft loss, with the weight of the gradients."""
        return f"{self.weight} gradients, {self.distillation.described()}"

    def begin(self, student: nn.Module, inputs: tuple[Any, ...]) -> Any:
        """A hook before the student's forward, in training."""
        if not student.training:
            return None
        if not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
            raise BadInput("distill.gradients: the first input must be a tensor of real numbers, to be differentiated")
        self.leaf = inputs[0].detach().requires_grad_()
        return (self.leaf, *inputs[1:])

    def end(self, student: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
        """A hook behind the student's forward."""
        self.outputs = outputs
        return tree_map_only(Tensor, Tensor.clone, outputs)

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar."""
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
    """beta: weight of the gradients."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    beta: Annotated[float, Range(0, 1e6, open_=("low",))] = 0.1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy.deepcopy(model)
        term = self.distillation(self.teacher(context, inside=True))
        lesson = Sensitivity(term, task, self.beta)
        hooks = [student.register_forward_pre_hook(lesson.begin), student.register_forward_hook(lesson.end)]
        try:
            return self.learn([lesson], student, task, context).model
        finally:
            for hook in hooks:
                hook.remove()
