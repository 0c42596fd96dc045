"""MUNGE: train a student on the teacher's outputs for synthetic data near the real ones.

What it does: makes new inputs by exchanging attributes between training samples and their nearest neighbours, computes
the teacher's outputs for them, and trains the student on these and the real ones. For tables and small images, where
the teacher knows more than the labelled data show.
Cost: distances of `samples` training samples to each other, (1 + copies) * samples inputs in memory, and one forward
pass of the teacher for each batch.
When it fails: where neighbours are not similar attribute by attribute, as in large natural images.
Equation: with probability p, e_a ~ N(e'_a, sd) and e'_a ~ N(e_a, sd), sd = |e_a - e'_a| / s; nominal attributes are
exchanged. The student's loss is that of `distill.kd`, with the teacher's outputs as labels.
Source: Bucila, Caruana & Niculescu-Mizil 2006, doi:10.1145/1150402.1150464, section 3. Neighbours are those of the
original data; the paper looks for them again after every exchange.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses.synthetic import munge, nearest_samples
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Samples, Student, teacher_labels
from gossamer.train.batches import seed_everything


@dataclass(frozen=True, kw_only=True)
class MUNGE(Student):
    """Train a student on real and synthetic data that the teacher labels.

    The other options are those of `Student` and `Retrain`.

    Args:
        probability: p of the equation, that an attribute is exchanged, in [0, 1].
        spread: s of the equation, above 0; larger values add less noise.
        copies: number of synthetic sets, each as large as the real one, at least 1.
        samples: largest number of training samples that are used, at least 2.
        nominal: columns of tables whose values are names, given as numbers.

    Raises:
        BadInput: there is no teacher, or the inputs are not one tensor of real numbers.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.MUNGE(copies=1, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "copies": 1}

    probability: Annotated[float, Range(0, 1)] = 0.2
    spread: Annotated[float, Range(0, 1e6, open_=("low",))] = 5.0
    copies: Annotated[int, Range(1, 1000)] = 3
    samples: Annotated[int, Range(2, 1_000_000)] = 10_000
    nominal: tuple[int, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        with own_randomness():
            seed_everything(context.seed, 0)
            real, like, size = self.gathered(task)
            rows = real.flatten(1)
            nominal = torch.zeros(rows.shape[1], dtype=torch.bool)
            if self.nominal and not 0 <= min(self.nominal) <= max(self.nominal) < len(nominal):
                raise BadInput(f"{self.name()}: nominal = {self.nominal} must be columns in [0, {len(nominal)})")
            nominal[list(self.nominal)] = True
            neighbours = nearest_samples(rows, nominal)
            made = [
                munge(rows, self.probability, self.spread, nominal_D=nominal, neighbours_N=neighbours)
                for _ in context.progress.bar(
                    range(self.copies), label=f"{self.name()}: making data", total=self.copies
                )
            ]
        inputs = torch.cat([rows, *made]).view(-1, *real.shape[1:])
        data = replace(task, train=Samples(inputs, teacher_labels(self.teacher(context), inputs, like, size), size))
        term = self.distillation(self.teacher(context))
        return self.learn([term], copy_network(model), data, context).model

    def gathered(self, task: Task) -> tuple[Tensor, Any, int]:
        """Return training inputs (N, ...), a target, and the size of a batch."""
        found: list[Tensor] = []
        target: Any = None
        for batch in task.train:
            inputs, target = inputs_and_target(batch)
            if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
                raise BadInput(f"{self.name()}: inputs must be one tensor of real numbers, nominal ones included")
            found.append(inputs[0].cpu())
            if sum(map(len, found)) >= self.samples:
                break
        return torch.cat(found)[: self.samples], target, len(found[0])
