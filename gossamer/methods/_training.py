"""What the methods that train share: how long, how fast, and under which teacher."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from torch import nn

from gossamer.core.batches import Loader, sample_count, unaugmented
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs
from gossamer.train.distillation import Distillation, LossTerm
from gossamer.train.hyperparameters import Training, passes
from gossamer.train.loop import AfterStep, TrainingResult, fit
from gossamer.train.train_mode import teacher_terms

LEAST_STEPS = 400  # of a training whose length nobody gave: few data need more passes for as many
AUGMENTED_FROM = 8  # passes over the training data


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """Base of the methods that train the network on labelled data.

    Args:
        epochs: passes over the training data. None: the method's usual number, or as many as make 400 steps where the
            data are few.
        lr: peak learning rate of the schedule, in (0, 10]. None: found by short trials.
        weight_decay: of the optimizer, in [0, 1]; it acts on weights, not on biases and norms.
        clip: largest norm of the gradient; larger ones are scaled down to it. None: no limit. Networks with batch norms
            hardly ever reach the default; without it, others can diverge.
    """

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
    """Base of the methods that train the network on the labels and on a teacher's outputs (Hinton et al. 2015).

    The teacher is the context's `teacher`, else the uncompressed network of the job. Without either, the network is
    trained on the labels alone. The loss is alpha * task loss + (1 - alpha) * distillation loss.

    Args:
        temperature: divides the logits of both networks before the softmax, > 0.
        alpha: weight of the task loss, in [0, 1]. 1: train without a teacher.
        epochs, lr, weight_decay, clip: the training; see `Trained`.
    """

    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 4.0
    alpha: Annotated[float, Range(0, 1)] = 0.1

    def train(
        self,
        model: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        loss_terms: Sequence[LossTerm] = (),
        after_step: AfterStep | None = None,
        **changes: Any,
    ) -> TrainingResult:
        """Train `model` in place, with the teacher's terms if there is a teacher.

        Args:
            model: the network to train.
            task: data, loss and metric.
            context: seed, devices, teacher and folder for checkpoints.
            part: names this training where a method has several.
            loss_terms: loss terms besides those of the teacher.
            after_step: called after every step, for example to move masks.
            changes: fields of `training()` to replace.

        Returns:
            The trained model and its history.
        """
        taught: list[Distillation] = []
        if self.alpha < 1 and context.teacher_or_original is not None:
            taught = teacher_terms(
                context.teacher_or_original, model, task, context, temperature=self.temperature, alpha=self.alpha
            )
        try:
            return self.train_with(
                [*loss_terms, *taught], model, task, context, part=part, after_step=after_step, **changes
            )
        finally:
            for term in taught:
                term.flush()

    def train_with(
        self,
        loss_terms: Sequence[LossTerm],
        model: nn.Module,
        task: Task,
        context: Context,
        *,
        part: str = "",
        after_step: AfterStep | None = None,
        **changes: Any,
    ) -> TrainingResult:
        """Train `model` in place with these loss terms and no others. Arguments as of `train`."""
        name = self.name().replace(".", "-") + part.replace(" ", "-")
        checkpoint = context.folder / f"{name}.ckpt" if context.folder else None
        training, label = replace(self.training(task), **changes), f"{self.name()}{part}"
        return fit(
            model,
            task,
            training,
            context,
            loss_terms=loss_terms,
            after_step=after_step,
            checkpoint=checkpoint,
            label=label,
        )

    def noted(self, fitted: TrainingResult, context: Context, *, part: str = "") -> TrainingResult:
        """The same; what the training did to the loss goes to the history."""
        rows = fitted.history
        before = f"loss {rows[0].loss:.4f} in epoch 1"
        after = f"loss {rows[-1].loss:.4f} in epoch {len(rows)}, lr {fitted.lr:g}{'' if self.lr else ' (found)'}"
        self.note(context, EditKind.TRAIN, f"all weights{part}", before=before, after=after)
        return fitted


class Limited:
    """The first batches of every epoch of a loader, which is told its epochs and where to start, as without one."""

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader, self.batches = loader, min(batches, len(loader))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        return (batch for _, batch in zip(range(self.batches), self.loader))

    @property
    def samples(self) -> int | None:
        """How many there are; None where batches are left out, since nobody knows how many samples these have."""
        return sample_count(self.loader) if self.batches == len(self.loader) else None

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while it is copied
            raise AttributeError(name)
        return getattr(self.loader, name)


@dataclass(frozen=True, kw_only=True)
class LimitedRetrain(Retrain):
    """Base of the methods whose training can be given as a number of steps, and which see gossamer's own images as
    they are in short trainings.

    Args:
        steps: training steps in all, instead of `epochs`, where they follow from a time budget; the passes are of equal
            length. None: as many as the epochs have.

    Raises:
        BadInput: both steps and epochs are given.
    """

    steps: Annotated[int | None, Range(0, 1_000_000_000)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise BadInput(f"{self.name()}: give either steps or epochs")

    def passes(self, task: Task) -> int:
        """Return the number of passes over the training data, of which the last may end early."""
        return super().passes(task) if self.steps is None else math.ceil(self.steps / len(task.train))

    def data(self, task: Task) -> Task:
        """Return the task with as much of its training data in every pass as the steps allow."""
        train = self.repeated(task) or task.train
        if self.steps is not None:
            train = Limited(train, math.ceil(self.steps / self.passes(task)))
        return replace(task, train=train)

    def repeated(self, task: Task) -> Loader | None:
        """Return the training data if the samples are the same in every pass, so that a teacher's outputs can be kept;
        None if they are augmented, or nobody knows."""
        plain = unaugmented(task.train)
        return plain if self.passes(task) < AUGMENTED_FROM or plain is task.train else None
