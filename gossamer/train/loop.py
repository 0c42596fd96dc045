"""The training loop."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.run import Run
from gossamer.task import Model, Task, cross_entropy, split
from gossamer.train.batches import Placement, batches_of_epoch, own_randomness, weights_channels_last
from gossamer.train.distill import Teach
from gossamer.train.recover import Exploded, back_off, check_loss, check_score
from gossamer.train.state import Checkpoint, Epoch, State, copied, fill, fingerprint, weights
from gossamer.train.training import Training, computes_in_bfloat16, learning_rate, make_optimizer

CHECK_STEPS = 20
"""The loss is looked at every so many steps."""
CHECKPOINT_SECONDS = 30.0
"""A checkpoint is written after every epoch, and within an epoch when the last is older than this."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The trained network (the object that was given, in eval mode) and how it went. best_epoch: of the weights that were
    kept, counted from 1; top1: theirs on validation data, percent; backed_off: how often the learning rate was lowered."""

    model: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    top1: float | None
    backed_off: int


def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    run: Run,
    *,
    teach: Sequence[Teach] = (),
    checkpoint: Path | None = None,
    label: str = "training",
) -> Fitted:
    """Train `model` in place on `task.train` and keep the weights that are best on `task.validation`.

    Everything random depends on (run.seed, epoch, batch) only. With a `checkpoint`, the same call after a kill goes on
    where it stopped (on CPU to the same bits) and, once finished, returns the result at once. A loss that is no longer
    finite, or far above the first, takes the training back to the last good epoch with 0.3 of the learning rate, twice at
    most. Raises Diverged, BadInput, NoEffect, CorruptFile.
    """
    if not len(task.train):
        raise BadInput(f"task {task.name!r}: the train loader has no batches")
    fabric = Fabric(accelerator=run.accelerator, devices=1, precision=_precision(training, run))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with own_randomness(), weights_channels_last(model, _has_images(task)):
        try:
            return _train(fabric, model, task, training, run, teach, checkpoint, label)
        finally:
            model.zero_grad(set_to_none=True)
            model.to(device).eval()


def _train(
    fabric: Fabric,
    model: nn.Module,
    task: Task,
    training: Training,
    run: Run,
    teach: Sequence[Teach],
    checkpoint: Path | None,
    label: str,
) -> Fitted:
    rank, world, steps = fabric.global_rank, fabric.world_size, len(task.train)
    file = Checkpoint(checkpoint, fingerprint(model, training, run.seed, steps), writes=rank == 0)
    place = Placement(fabric.device, rank=rank, world=world, channels_last=_has_images(task))
    model.to(fabric.device)
    module, optimizer = fabric.setup(model, make_optimizer(model.parameters(), training, fabric.device))
    objective = Objective(module, task, training, teach, fabric)
    state = State(model, optimizer.optimizer, training)
    if saved := file.read():
        state.restore(saved)
    good = state.capture()

    while not (at := state.numbers).finished:
        model.train()
        began, at_start = time.monotonic(), at.seconds
        window = torch.zeros((), device=fabric.device)
        batches = batches_of_epoch(task.train, run.seed, at.epoch, at.batch, rank)
        try:
            name = f"{label}: epoch {at.epoch + 1} of {training.epochs}"
            for index, batch in run.progress.bar(batches, label=name, total=steps - at.batch):
                lr = at.lr_scale * learning_rate(training, at.epoch * steps + index, training.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                part, weight = place(batch)
                loss = objective(part) * weight
                optimizer.zero_grad()
                fabric.backward(loss)
                if training.clip is not None:
                    fabric.clip_gradients(module, optimizer, max_norm=training.clip, error_if_nonfinite=False)
                optimizer.step()
                state.average()
                window += loss.detach()
                at.batch = index + 1
                if at.batch % CHECK_STEPS == 0 or at.batch == steps:
                    total = float(fabric.all_reduce(window))
                    check_loss(total / ((index % CHECK_STEPS) + 1), at)
                    at.loss_sum += total
                    window.zero_()
                    at.seconds = at_start + time.monotonic() - began
                    if at.batch < steps and file.due(CHECKPOINT_SECONDS):
                        file.write(state.capture())
            score = _validate(state, task, training, place, fabric)
            check_score(score, at)
        except Exploded as why:
            back_off(state, good, why, run, label)
            continue
        at.seconds = at_start + time.monotonic() - began
        _end_epoch(state, training, score, lr, steps)
        row = at.rows[-1]
        good = state.capture()
        file.write(good)
        shown = "" if score is None else f", {task.measure} {row['top1']:.2f} %"
        run.progress.say(f"{name}: loss {row['loss']:.4f}{shown}, lr {lr:.2g}, {row['seconds']:.1f} s")

    if state.best:
        fill(weights(model), state.best)
    rows = tuple(Epoch(**row) for row in at.rows)
    top1 = None if at.best_score is None else 100 * at.best_score
    return Fitted(model=model, history=rows, best_epoch=at.best_epoch, top1=top1, backed_off=at.backed_off)


def _validate(state: State, task: Task, training: Training, place: Placement, fabric: Fabric) -> float | None:
    """Mean score on validation data, in float32, as the result will run; None where this epoch is not evaluated."""
    epoch = state.numbers.epoch + 1
    if not len(task.validation) or (epoch % training.evaluate_every and epoch < training.epochs):
        return None
    world = min(fabric.world_size, len(task.validation))
    sums = torch.zeros(2, dtype=torch.float64)
    state.model.eval()
    if fabric.global_rank < world:
        part = islice(task.validation, fabric.global_rank, None, world)
        with state.averaged(), torch.no_grad():
            scores = task.metric(state.model, place.all(part))
        sums += torch.stack([scores.double().sum().cpu(), torch.tensor(float(len(scores)), dtype=torch.float64)])
    total, count = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").tolist()
    return float(total / count)


def _end_epoch(state: State, training: Training, score: float | None, lr: float, steps: int) -> None:
    """Note the epoch that has just ended, keep its weights if they are to be kept, decide whether it was the last."""
    at = state.numbers
    at.epoch += 1
    top1 = None if score is None else 100 * score
    row = Epoch(epoch=at.epoch, loss=at.loss_sum / steps, top1=top1, lr=lr, seconds=at.seconds)
    at.rows.append(asdict(row))
    at.batch, at.loss_sum, at.seconds = 0, 0.0, 0.0
    better = score is not None and (at.best_score is None or score >= at.best_score)
    if score is not None:
        at.stale = 0 if at.best_score is None or score > at.best_score else at.stale + 1
    at.finished = at.epoch == training.epochs or (training.patience is not None and at.stale >= training.patience)
    if (better and training.keep == "best") or (at.finished and (training.keep == "last" or at.best_score is None)):
        at.best_score, at.best_epoch = score, at.epoch
        state.best = copied(state.mean or weights(state.model))
    elif better:
        at.best_score = score


class Objective:
    """The task's loss and the terms of `teach`, from one run of the network for each batch."""

    def __init__(self, module: Model, task: Task, training: Training, teach: Sequence[Teach], fabric: Fabric) -> None:
        self.module, self.teach, self.fabric = module, teach, fabric
        self.loss = task.loss
        if training.label_smoothing:
            if task.loss is not cross_entropy:
                raise BadInput(
                    "training: label_smoothing needs the task's loss to be cross_entropy; smooth in your loss"
                )
            self.loss = _Smoothed(training.label_smoothing)
        self.hard_weight = 1.0
        for term in teach:
            self.hard_weight *= term.hard_weight
        self.outputs: list[Any] = []

    def __call__(self, batch: Any) -> Tensor:
        """The total loss of a batch, a scalar."""
        if not self.teach:
            return self.loss(self.module, batch)
        self.outputs.clear()
        total = self.hard_weight * self.loss(self._noted, batch)
        if len(self.outputs) != 1:
            raise BadInput(
                f"training: the task's loss ran the network {len(self.outputs)} times for a batch; with teachers once"
            )
        inputs, target = split(batch)
        with self.fabric.autocast():
            return total + sum(term(inputs, self.outputs[0], target) for term in self.teach)

    def _noted(self, *inputs: Any, **named: Any) -> Any:
        outputs = self.module(*inputs, **named)
        self.outputs.append(outputs)
        return outputs


class _Smoothed:
    """Cross entropy with smoothed labels."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, model: Model, batch: Any) -> Tensor:
        inputs, target = split(batch)
        return F.cross_entropy(model(*inputs), target, label_smoothing=self.smoothing)


def _precision(training: Training, run: Run) -> Any:
    if training.precision != "auto":
        return training.precision
    device = Fabric(accelerator=run.accelerator, devices=1).device
    return "bf16-mixed" if computes_in_bfloat16(device) else "32-true"


def _has_images(task: Task) -> bool:
    return any(isinstance(x, Tensor) and x.dim() == 4 for x in task.example_inputs)
