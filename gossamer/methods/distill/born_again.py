"""Learn from a teacher of one's own shape, then teach the next generation.

What it does: trains a student with fresh weights from the teacher, then another one from that student, and so on. Where
the teacher has the student's shape, the generations often end up better than the network they come from.
Cost: one training, with a forward pass of the teacher for each batch, for each generation.
When it fails: after two or three generations little is gained.
Equation: student k + 1: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(z_k / T) || softmax(z / T)).
Source: Furlanello et al. 2018, arXiv:1805.04770, section 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student, fresh


@dataclass(frozen=True, kw_only=True)
class BornAgain(Student):
    """generations: trained one after the other; the last one is kept."""

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    generations: Annotated[int, Range(1, 100)] = 2

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        teacher = self.teacher(context)
        for number in range(1, self.generations + 1):
            student = fresh(model, context.seed + number, method=self.name())
            term = self.distillation(teacher)
            teacher = self.learn([term], student, task, context, part=f" of generation {number}").model
        return teacher
