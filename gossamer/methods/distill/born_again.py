"""Born-again networks (BAN): train a student of the teacher's own shape, then the next one from it.

What it does: trains a student with new random weights from the teacher, then another one from that student, and so on.
Where the teacher has the student's shape, later generations often become more accurate than the first network.
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
from gossamer.methods.distill._student import Student, reinitialized


@dataclass(frozen=True, kw_only=True)
class BornAgain(Student):
    """Train several generations of students, each on the outputs of the one before.

    The other options are those of `Student` and `Retrain`.

    Args:
        generations: number of students, trained one after the other, at least 1; the last one is returned.

    Raises:
        BadInput: there is no teacher, or the weights cannot be drawn again.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.BornAgain(generations=2, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [edit.target for edit in edits]
        ['all weights of generation 1', 'all weights of generation 2']
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    generations: Annotated[int, Range(1, 100)] = 2

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        teacher = self.teacher(context)
        for number in range(1, self.generations + 1):
            student = reinitialized(model, context.seed + number, method=self.name())
            term = self.distillation(teacher)
            teacher = self.learn([term], student, task, context, part=f" of generation {number}").model
        return teacher
