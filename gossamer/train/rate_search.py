"""The learning rate of a training, found by short trials from the weights that it starts with.

Each trial trains for a few dozen steps with a whole schedule of its own, warm-up and fall to zero, and is judged on
validation data (on the loss of its last steps where there are none). What hurts a short training may be right for a
long one, which has the time to correct it: of the rates whose error is within a factor that grows with the length of
the training, the largest is taken.

That holds where the time brings new samples. A training that goes through few samples (at most 10,000, whatever the
batch) again and again, three times or more, does not bring
back what large steps destroy of a network that has learned from other data: there the lowest loss at the end of the
trial decides, which says more than a score on few validation samples. MobileNetV2 from ImageNet, 1,800 images, at half
the resolution, four passes, one run each: trials of 20 steps scored 60.8 % at the rates 0.03 and 0.01. The trainings
ended at 68.2 % and 70.9 % of 368 test images, and 18 passes at 0.05 below both on validation images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gossamer.core.batches import Loader
from gossamer.train.batches import endless, samples_of_pass
from gossamer.train.hyperparameters import OptimizerName, Training, learning_rate
from gossamer.train.state import copied, weights
from gossamer.train.steps import Stepper

HIGHEST: dict[OptimizerName, float] = {"sgd": 0.1, "adamw": 0.003, "adamax": 0.006}
FACTORS = (1.0, 0.3, 0.1, 0.03)  # of the highest, tried in this order
SHARE, FEWEST, MOST = 0.05, 20, 40  # steps of a trial: a share of the training, within these bounds
FEW_SAMPLES, SEVERAL = 10_000, 3  # of few data, at most, whatever the batch; passes over them, at least
PATIENCE = 0.1  # power of how many times longer than a trial the training is, by which its error may be larger


@dataclass(frozen=True)
class RateTrial:
    """What came of a short training. error: how far the score is from a perfect one, or the loss where that says
    nothing; loss: of its last steps; weights: what it left; shown: the score in its unit."""

    lr: float
    score: float | None
    error: float
    loss: float
    weights: dict[str, Tensor]
    shown: str = ""

    @property
    def described(self) -> str:
        """For the log."""
        return self.shown or f"loss {self.error:.4g}"


def trial_steps(total: int) -> int:
    """How long a trial of a training of so many steps is."""
    return min(max(round(SHARE * total), FEWEST), MOST, total)


def has_few_data(loader: Loader, seed: int, total: int) -> bool:
    """Whether a training of so many steps goes through few samples several times."""
    return total >= SEVERAL * len(loader) and samples_of_pass(loader, seed) <= FEW_SAMPLES


def trials(stepper: Stepper, training: Training, loader: Loader, seed: int, total: int) -> list[RateTrial]:
    """Short trainings at falling rates, until one is worse than the one before; the model's weights and the optimizer
    are as before. total: steps of the training whose rate is wanted."""
    start, found = stepper.state.capture(), list[RateTrial]()
    for factor in FACTORS:
        plan = replace(training, lr=factor * HIGHEST[training.optimizer])
        found.append(_trial(stepper, plan, loader, seed, trial_steps(total)))
        stepper.state.restore(start)
        if len(found) > 1 and found[-2].error < found[-1].error:
            break
    return found


def chosen_rate(trials: Sequence[RateTrial], longer: float, *, few_data: bool = False) -> RateTrial:
    """The rate for a training so many times longer than the trials: the largest that is good enough, or of few data,
    which it goes through several times, the one with the lowest loss."""
    best = min(trial.error for trial in trials)
    limit = best * max(longer, 1.0) ** PATIENCE
    if not math.isfinite(best):
        return trials[-1]
    good = [trial for trial in trials if trial.error <= limit]
    if few_data:
        return min(good, key=lambda trial: trial.loss)
    return max(good, key=lambda trial: trial.lr)


def _trial(stepper: Stepper, plan: Training, loader: Loader, seed: int, steps: int) -> RateTrial:
    stepper.state.model.train()
    stepper.objective.at(0.0)
    losses = []
    for step, batch in zip(range(steps), endless(loader, seed)):
        losses.append(stepper.take(batch, learning_rate(plan, step, steps)))
    loss = stepper.mean(torch.stack(losses[-math.ceil(steps / 4) :]).mean())
    finite = math.isfinite(loss) and stepper.mean(stepper.state.finite()) == 1
    score = stepper.score() if finite else None
    metric = stepper.task.metric
    error = metric.error(score) if score is not None else math.inf
    error = error if math.isfinite(error) else loss
    assert plan.lr is not None
    return RateTrial(
        plan.lr,
        score,
        error if finite and not math.isnan(error) else math.inf,
        loss if finite else math.inf,
        copied(weights(stepper.state.model)),
        "" if score is None else metric.text(score),
    )
