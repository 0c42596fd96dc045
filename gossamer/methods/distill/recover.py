"""Train the changed network to behave like the original again.

What it does: trains all weights on the task's own loss and on the original network's softened outputs, from the weights
that the cut left, with batch-norm statistics estimated anew first.
Cost: one forward pass of the original and one training step of the small network per batch.
When it fails: too few epochs or too small a network leave a gap, which the record shows.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)), v the original's logits.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
"""

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import nn

from gossamer.methods.base import Method
from gossamer.ranges import Range
from gossamer.record import Edit
from gossamer.run import Run
from gossamer.task import Task
from gossamer.train import Distillation, Training, fit, recalibrate


@dataclass(frozen=True, kw_only=True)
class Recover(Method):
    """alpha weighs the hard loss; 1 trains without the original. lr: the peak of a cosine schedule."""

    stage: ClassVar[int | None] = None  # may stand anywhere

    epochs: Annotated[int, Range(1, 10_000)] = 12
    lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.1
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 4.0
    alpha: Annotated[float, Range(0, 1)] = 0.1

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        model = copy.deepcopy(model)
        recalibrate(model, task.calibration)
        teach = (
            []
            if self.alpha == 1 or run.guide is None
            else [Distillation(run.guide, temperature=self.temperature, alpha=self.alpha)]
        )
        training = Training(epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay)
        checkpoint = run.folder / "recover.ckpt" if run.folder else None
        fitted = fit(model, task, training, run, teach=teach, checkpoint=checkpoint, label="recover")
        rows = fitted.history
        run.history.append(
            Edit(
                method=self.name(),
                kind="teach",
                target="all weights",
                before=f"loss {rows[0].loss:.4f} in epoch 1",
                after=f"loss {rows[-1].loss:.4f} in epoch {len(rows)}",
            )
        )
        return fitted.model
