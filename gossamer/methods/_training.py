"""What the methods that train share: how long, how fast, and under which teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs
from gossamer.train import AfterStep, Training, TrainingResult, fit
from gossamer.train.distillation import LossTerm
from gossamer.train.hyperparameters import passes
from gossamer.train.train_mode import teacher_terms

LEAST_STEPS = 400  # of a training whose length nobody gave: few data need more passes for as many


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """epochs: None for the usual number, or as many as give 400 steps. lr: the peak of the schedule; None: found by
    short trials. clip: largest gradient norm, None for none: what networks with batch norms hardly ever reach, and
    without which others explode."""

    usual_epochs: ClassVar[int] = 12
    needs: ClassVar[Needs] = "labels"

    epochs: Annotated[int | None, Range(1, 10_000)] = None
    lr: Annotated[float | None, Range(0, 10, open_=("low",))] = None
    weight_decay: Annotated[float, Range(0, 1)] = 1e-4
    clip: Annotated[float | None, Range(0, 1e6, open_=("low",))] = 5.0

    def passes(self, task: Task) -> int:
        """Passes over the training data."""
        return self.epochs or passes(LEAST_STEPS, len(task.train), usual=self.usual_epochs)

    def training(self, task: Task) -> Training:
        """The weights of the last epoch are kept: earlier ones are not as far as the method is to go."""
        return Training(
            epochs=self.passes(task), lr=self.lr, weight_decay=self.weight_decay, clip=self.clip, keep="last"
        )


@dataclass(frozen=True, kw_only=True)
class Retrain(Trained):
    """alpha weighs the hard loss; 1 trains without the original. epochs and lr: None for what the data ask for."""

    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 4.0
    alpha: Annotated[float, Range(0, 1)] = 0.1

    def train(
        self,
        model: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        teach: Sequence[LossTerm] = (),
        after_step: AfterStep | None = None,
        **changes: Any,
    ) -> TrainingResult:
        """Train `model` in place. part: names this training where a method has several. teach:
        terms besides the teacher's. changes: of `training()`."""
        terms = [*teach]
        if self.alpha < 1 and context.guide is not None:
            terms += teacher_terms(context.guide, model, task, context, temperature=self.temperature, alpha=self.alpha)
        return self.train_with(terms, model, task, context, part=part, after_step=after_step, **changes)

    def train_with(
        self,
        teach: Sequence[LossTerm],
        model: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        after_step: AfterStep | None = None,
        **changes: Any,
    ) -> TrainingResult:
        """As `train`, with these terms and no others."""
        name = self.name().replace(".", "-") + part.replace(" ", "-")
        checkpoint = context.folder / f"{name}.ckpt" if context.folder else None
        training, label = replace(self.training(task), **changes), f"{self.name()}{part}"
        return fit(
            model, task, training, context, teach=teach, after_step=after_step, checkpoint=checkpoint, label=label
        )

    def noted(self, fitted: TrainingResult, context: Context, *, part: str = "") -> TrainingResult:
        """The same; what the training did to the loss goes to the history."""
        rows = fitted.history
        before = f"loss {rows[0].loss:.4f} in epoch 1"
        after = f"loss {rows[-1].loss:.4f} in epoch {len(rows)}, lr {fitted.lr:g}{'' if self.lr else ' (found)'}"
        self.note(context, "teach", f"all weights{part}", before=before, after=after)
        return fitted
