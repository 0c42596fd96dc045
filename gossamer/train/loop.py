"""The training loop."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic as clock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.core.batches import batch_count
from gossamer.core.conditions import own_conditions, own_randomness
from gossamer.core.context import Context
from gossamer.core.copies import check_network, copy_network
from gossamer.core.kinds import checked_arguments
from gossamer.core.metric import Metric
from gossamer.core.placement import device_of
from gossamer.core.record import Curve
from gossamer.core.task import Task
from gossamer.core.validation import require_kind
from gossamer.errors import BadInput
from gossamer.train.auxiliary import helped
from gossamer.train.backoff import Exploded, back_off, check_loss, check_score, check_weights
from gossamer.train.batches import (
    Placement,
    batches_of_epoch,
    refuse_nan,
    takes_channels_last,
    weights_channels_last,
)
from gossamer.train.distillation import LossTerm
from gossamer.train.hyperparameters import Training, evaluated_every, learning_rate, make_optimizer
from gossamer.train.processes import in_processes, make_fabric
from gossamer.train.rate_search import RateTrial, chosen_rate, has_few_data, trial_steps, trials
from gossamer.train.recalibrate import following_statistics
from gossamer.train.state import (
    Checkpoint,
    Epoch,
    Numbers,
    TrainingState,
    copied,
    fill,
    fingerprint,
    weights,
)
from gossamer.train.steps import Stepper

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The loss is looked at after the first step of an epoch and then every so many steps.
CHECK_STEPS = 20
# A checkpoint is written after every epoch, and within an epoch when the last one is older than this.
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The trained network and how it went.

    Attributes:
        model: the object that was given, in eval mode.
        history: a row for each epoch.
        best_epoch: of the weights that were kept, counted from 1; 0 for those before the first step or after a trial of
            a learning rate.
        score: theirs on validation data, the metric's value; None where it was not evaluated.
        lr: the peak that was given or found.
        backed_off: how often it was lowered.

    Example:
        >>> import torch, gossamer
        >>> batches = [(torch.rand(8, 3), torch.randint(2, (8,)))]
        >>> task = gossamer.Task.from_loaders(batches, batches)
        >>> found = gossamer.fit(torch.nn.Linear(3, 2), task, gossamer.Training(epochs=2, lr=0.01), gossamer.Context())
        >>> len(found.history), found.lr
        (2, 0.01)
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    score: float | None
    lr: float
    backed_off: int


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A step of the optimizer that has just been done. The gradients of the step are still in the parameters.

    Attributes:
        model: in training.
        optimizer: that made the step.
        number: of the step, counted from 1.
        steps: of the whole training.

    Example:
        >>> import torch, gossamer
        >>> batches, steps = [(torch.rand(8, 3), torch.randint(2, (8,)))], []
        >>> task, training = gossamer.Task.from_loaders(batches, batches), gossamer.Training(epochs=2, lr=0.01)
        >>> note = lambda step: steps.append((step.number, step.steps))
        >>> _ = gossamer.fit(torch.nn.Linear(3, 2), task, training, gossamer.Context(), after_step=note)
        >>> steps
        [(1, 2), (2, 2)]
    """

    model: nn.Module
    optimizer: Optimizer
    number: int
    steps: int


AfterStep = Callable[[TrainingStep], None]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The arguments of `fit`."""

    model: nn.Module
    task: Task
    training: Training
    loss_terms: Sequence[LossTerm]
    after_step: AfterStep | None
    checkpoint: Path | None
    label: str
    channels_last: bool


def _check_trainable(model: nn.Module) -> None:
    check_network(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise BadInput(f"{type(model).__name__} has no parameter that is trained; model.requires_grad_(True) frees all")
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise BadInput(
                f"{type(model).__name__}: {name} was made in inference mode and cannot be trained; "
                "train copy.deepcopy(model), taken outside of torch.inference_mode()"
            )


@checked_arguments
@own_conditions()
def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    context: Context,
    *,
    loss_terms: Sequence[LossTerm] = (),
    after_step: AfterStep | None = None,
    checkpoint: Path | None = None,
    label: str = "training",
) -> TrainingResult:
    """Train `model` in place on `task.train`, and keep the weights that are best on `task.validation`.

    The weights before the first step count as well, and where the learning rate is looked for, those after its trials.
    Everything random depends on (context.seed, epoch, batch) only. A loss that is no longer finite, or far above the
    first, takes the training back to the last good epoch with 0.3 of the learning rate, twice at most. With
    `context.devices` > 1 each process computes a part of every batch: a step means the same as with one.

    Args:
        model: comes back on its device, in eval mode.
        task: data, loss and metric.
        training: the hyper-parameters.
        context: seed, device and progress (messages to the logger "gossamer", unless it has its own); the learning
            curve is put into its log.
        loss_terms: terms besides the task's loss, such as `Distillation`.
        after_step: called after every step, in every process alike; it may change tensors of the model in place. What
            it must remember it keeps in buffers of the model, which checkpoints hold.
        checkpoint: a file. The same call after a kill goes on where it stopped (on CPU to the same bits) and, once
            finished, returns the result at once.
        label: names the training in messages.

    Returns:
        The network and its history.

    Raises:
        Diverged: the loss exploded three times.
        BadInput: the data hold NaN, or there are none.
        CorruptFile: the checkpoint is damaged, or of another training.

    Example:
        >>> from gossamer.core.context import Context
        >>> from gossamer.core.progress import Quiet
        >>> from gossamer.data import tiny_network, tiny_task
        >>> result = fit(tiny_network(), tiny_task(), Training(epochs=1, lr=0.05), Context(progress=Quiet()))
        >>> len(result.history), result.model.training
        (1, False)
    """
    require_kind("task", task, Task, "load_task('digits') or Task.from_loaders(train, validation)")
    require_kind("training", training, Training, "Training(epochs=3, lr=0.05)")
    _check_trainable(model)
    batch_count(task.train, f"task {task.name!r}: the train loader")
    context = context.with_progress()
    device = device_of(model)
    with (
        weights_channels_last(model, layout := takes_channels_last(model, task)),
        tempfile.TemporaryDirectory() as scratch,
        helped(model, task, training) as heads,
        following_statistics(model),
    ):
        if context.devices > 1:
            # The processes leave a finished checkpoint, which is all that is left to be read here.
            checkpoint = checkpoint or Path(scratch) / "checkpoint"
        job = TrainingRun(
            model=model,
            task=task,
            training=training,
            loss_terms=[*loss_terms, *heads],
            after_step=after_step,
            checkpoint=checkpoint,
            label=label,
            channels_last=layout,
        )
        try:
            if context.devices > 1:
                in_processes(_train, job, context, training)
            fitted = _train(make_fabric(context, training), job, context)
            context.log.curves.append(training_curve(label, fitted.history, task.metric))
            return fitted
        finally:
            model.zero_grad(set_to_none=True)
            model.to(device).eval()


def _train(fabric: "Fabric", job: TrainingRun, context: Context) -> TrainingResult:
    model, task, training, steps = job.model, job.task, job.training, len(job.task.train)
    rank, world = fabric.global_rank, fabric.world_size
    total, every = training.epochs * steps, evaluated_every(training, steps, len(task.validation))
    about = training, context.seed, steps, job.after_step, job.loss_terms
    file = Checkpoint(job.checkpoint, fingerprint(model, *about) if job.checkpoint else {}, writes=rank == 0)
    place = Placement(fabric.device, rank=rank, world=world, channels_last=job.channels_last)
    optimizer = make_optimizer(model.to(fabric.device).parameters(), training, fabric.device)
    state = TrainingState(model, optimizer, training)
    if saved := file.read():
        state.restore(saved)
    if not state.numbers.finished:
        stepper = Stepper(fabric, state, task, training, job.loss_terms, place)
        if not saved:
            _begin(stepper, job, context)
            file.write(state.capture())
        training = replace(training, lr=state.numbers.lr)
    good = before = state.capture()

    while not (at := state.numbers).finished:
        began, name = clock() - at.seconds, f"{job.label}: epoch {at.epoch + 1} of {training.epochs}"
        batches = batches_of_epoch(task.train, context.seed, at.epoch, at.batch, rank)
        losses: list[Tensor] = []
        model.train()
        try:
            for index, batch in context.progress.bar(batches, label=name, total=steps - at.batch):
                done = at.epoch * steps + index
                lr = at.lr_scale * learning_rate(training, done, total)
                stepper.objective.at(done / total)
                losses.append(stepper.take(batch, lr))
                if job.after_step is not None:
                    job.after_step(TrainingStep(model=model, optimizer=optimizer, number=done + 1, steps=total))
                state.average()
                if index % CHECK_STEPS == 0 or index + 1 == steps:
                    mean = stepper.mean(torch.stack(losses).mean())
                    check_loss(mean, at, moved=job.after_step is not None)
                    at.loss_sum, at.batch, at.seconds = at.loss_sum + mean * len(losses), index + 1, clock() - began
                    losses.clear()
                    if index + 1 < steps and file.due(CHECKPOINT_SECONDS) and state.finite():
                        file.write(state.capture())
            check_weights(stepper.mean(state.finite()))
            looked = (at.epoch + 1) % every == 0 or at.epoch + 1 == training.epochs
            score = _scored(stepper, job, context) if looked else None
            check_score(score, at, task.metric, moved=job.after_step is not None)
        except Exploded as why:
            refuse_nan(task.train, f"task {task.name!r}: the train loader")
            if (at.epoch, at.batch) == (good["numbers"]["epoch"], good["numbers"]["batch"]):
                good = before  # exploded in its own first step: it was spoilt by the last ones of the epoch before
            back_off(state, good, why, context, job.label)
            file.write(state.capture())
            continue
        row = Epoch(epoch=at.epoch + 1, loss=at.loss_sum / steps, score=score, lr=lr, seconds=clock() - began)
        _end_epoch(state, training, row, task.metric)
        before = good
        file.write(good := state.capture())
        shown = "" if score is None else f", {task.metric.name} {task.metric.text(score)}"
        context.progress.say(f"{name}: loss {row.loss:.4f}{shown}, lr {lr:.2g}, {row.seconds:.1f} s")

    fill(weights(model), state.best)
    return _fitted(model, at)


def _begin(stepper: Stepper, job: TrainingRun, context: Context) -> None:
    """Before the first step: the learning rate where it is to be found; and where the best weights are kept, those that
    the training starts with, and those that the trials of rates left, as far as they are better."""
    state, training = stepper.state, job.training
    state.numbers.lr = training.lr
    if training.keep == "best":
        _keep(state, weights(job.model), _scored(stepper, job, context), job.task.metric)
    if training.lr is not None:
        return
    state.numbers.lr, tried = _look_for_rate(stepper, job.task, training, context, job.label)
    for one in tried if training.keep == "best" else ():
        _keep(state, one.weights, one.score, job.task.metric)


def _scored(stepper: Stepper, job: TrainingRun, context: Context) -> float | None:
    with context.progress.busy(f"{job.label}: {job.task.metric.name} on validation data"):
        return stepper.score()


def _look_for_rate(
    stepper: Stepper, task: Task, training: Training, context: Context, label: str
) -> tuple[float, Sequence[RateTrial]]:
    """The learning rate, and the trials that found it."""
    total = training.epochs * len(task.train)
    steps = trial_steps(total)
    with context.progress.busy(f"{label}: looking for a learning rate"):
        tried = trials(stepper, training, task.train, context.seed, total)
    lr = chosen_rate(tried, total / steps, few_data=has_few_data(task.train, context.seed, total)).lr
    results = ", ".join(f"{one.lr:g}: {one.described}" for one in tried)
    context.progress.say(f"{label}: learning rate {lr:g}; after trials of {steps} steps, {results}")
    return lr, tried


def find_rate(
    model: nn.Module,
    task: Task,
    training: Training,
    context: Context,
    *,
    loss_terms: Sequence[LossTerm] = (),
    label: str = "training",
) -> float:
    """The learning rate that `fit` would find for this network, which is left alone.

    Args:
        model: the network, with the weights that the training starts from.
        task: its data.
        training: of which the rate is wanted; its own does not count.
        context: seed, device and progress.
        loss_terms: terms besides the task's loss.
        label: names the search in the log.

    Returns:
        The peak of the schedule.
    """
    model, context = copy_network(model), replace(context, devices=1)
    with (
        own_randomness(),
        weights_channels_last(model, layout := takes_channels_last(model, task)),
        helped(model, task, training) as heads,
        following_statistics(model),
    ):
        fabric = make_fabric(context, training)
        optimizer = make_optimizer(model.to(fabric.device).parameters(), training, fabric.device)
        place = Placement(fabric.device, rank=0, world=1, channels_last=layout)
        state = TrainingState(model, optimizer, training)
        stepper = Stepper(fabric, state, task, training, [*loss_terms, *heads], place)
        return _look_for_rate(stepper, task, training, context, label)[0]


def _keep(state: TrainingState, tensors: dict[str, Tensor], score: float | None, metric: Metric) -> None:
    """Weights from before the first epoch as a result, if there is no better one."""
    at = state.numbers
    if score is not None and (at.best_score is None or metric.better(score, at.best_score)):
        state.best, at.best_score = copied(tensors), score


def _end_epoch(state: TrainingState, training: Training, row: Epoch, metric: Metric) -> None:
    """Note the epoch that has just ended, keep its weights if they are to be kept, decide whether it was the last."""
    at, score = state.numbers, row.score
    at.rows.append(asdict(row))
    at.epoch, at.batch, at.loss_sum, at.seconds = row.epoch, 0, 0.0, 0.0
    if score is not None:
        at.stale = 0 if at.best_score is None or metric.better(score, at.best_score) else at.stale + 1
    at.finished = at.epoch == training.epochs or (training.patience is not None and at.stale >= training.patience)
    best = score is not None and (at.best_score is None or not metric.better(at.best_score, score))
    if best:
        at.best_score = score
    if best if training.keep == "best" and at.best_score is not None else at.finished:
        state.best = copied(state.mean or weights(state.model))
        at.best_epoch, at.best_score = at.epoch, score


def _fitted(model: nn.Module, at: Numbers) -> TrainingResult:
    return TrainingResult(
        model=model,
        history=tuple(Epoch(**row) for row in at.rows),
        best_epoch=at.best_epoch,
        score=at.best_score,
        lr=at.lr or 0.0,
        backed_off=at.backed_off,
    )


def training_curve(name: str, rows: Sequence[Epoch], metric: Metric) -> Curve:
    """A history as it stands in a document."""
    scores = [None if row.score is None else metric.shown(row.score) for row in rows]
    return Curve(name=name, loss=[row.loss for row in rows], score=scores, seconds=[row.seconds for row in rows])
