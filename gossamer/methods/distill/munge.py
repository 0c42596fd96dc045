"""Learn from the teacher on made-up data near the real ones (MUNGE).

What it does: makes new inputs by exchanging attributes between training samples and their nearest neighbours, asks the
teacher about them, and trains the student on these and the real ones. For tables and small images, where the teacher
knows more than the labelled data show.
Cost: distances of `samples` training samples to each other, (1 + copies) * samples inputs in memory, and one forward
pass of the teacher for each batch.
When it fails: where neighbours are not alike attribute by attribute, as in large natural images.
Equation: with probability p, e_a ~ N(e'_a, sd) and e'_a ~ N(e_a, sd), sd = |e_a - e'_a| / s; nominal attributes change
places. The student's loss is that of `distill.kd`, where the label is what the teacher says.
Source: Bucila, Caruana & Niculescu-Mizil 2006, doi:10.1145/1150402.1150464, section 3. Neighbours are those of the
original data, where the paper looks for them anew after every exchange.
"""

import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task, split
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses.synthetic import munge, nearest
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Samples, Student, labelled
from gossamer.train.batches import own_randomness, seed_everything


@dataclass(frozen=True, kw_only=True)
class MUNGE(Student):
    """probability, spread: p and s of the equation. copies: made-up sets, each as large as the real one. samples: of
    the training data, at most. nominal: columns of tables whose values are names, as numbers."""

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
            neighbours = nearest(rows, nominal)
            made = [
                munge(rows, self.probability, self.spread, nominal_D=nominal, neighbours_N=neighbours)
                for _ in context.progress.bar(
                    range(self.copies), label=f"{self.name()}: making data", total=self.copies
                )
            ]
        inputs = torch.cat([rows, *made]).view(-1, *real.shape[1:])
        data = replace(task, train=Samples(inputs, labelled(self.teacher(context), inputs, like, size), size))
        term = self.distillation(self.teacher(context))
        return self.learn([term], copy.deepcopy(model), data, context).model

    def gathered(self, task: Task) -> tuple[Tensor, Any, int]:
        """Training inputs (N, ...), a target, and the size of a batch."""
        found: list[Tensor] = []
        target: Any = None
        for batch in task.train:
            inputs, target = split(batch)
            if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
                raise BadInput(f"{self.name()}: inputs must be one tensor of real numbers, nominal ones included")
            found.append(inputs[0].cpu())
            if sum(map(len, found)) >= self.samples:
                break
        return torch.cat(found)[: self.samples], target, len(found[0])
