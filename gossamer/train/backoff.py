"""Noticing that a training explodes, and going back."""

import math
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch

from gossamer.core.context import Context
from gossamer.core.copies import state_of
from gossamer.core.metric import Metric
from gossamer.core.record import write_bytes
from gossamer.errors import Diverged
from gossamer.train.state import Numbers, TrainingState

LR_FACTOR = 0.3
MOST_BACK_OFFS = 2
# A loss so many times the first one (or 1, if that is more: a network that was good before may lose that for a while),
# a score so many times below the best, or an error so many times above it, is an explosion.
WORSE_LOSS, WORSE_SCORE, WORSE_ERROR = 10.0, 3.0, 10.0
# Where masks are moved between the steps, the loss rises by that alone, and comes down again.
MOVED = 10.0


class Exploded(Exception):
    """The training cannot go on from here; the message says why."""


def check_loss(mean: float, numbers: Numbers, *, moved: bool = False) -> None:
    """Look at the mean loss of the last steps. The very first one is what later ones are compared with. moved: whether
    something besides the steps changes the network."""
    if not math.isfinite(mean):
        raise Exploded(f"the loss became {mean}")
    if numbers.start_loss is None:
        numbers.start_loss = mean
    limit = WORSE_LOSS * max(numbers.start_loss, 1.0) * (MOVED if moved else 1.0)
    if mean > limit:
        raise Exploded(f"the loss rose to {mean:.4g}, from {numbers.start_loss:.4g} at the start")


def check_weights(finite: float) -> None:
    """Look at the share of processes whose weights are finite: the last step may have spoilt what no loss shows yet."""
    if finite < 1:
        raise Exploded("a weight or a statistic is no longer finite")


def check_score(score: float | None, numbers: Numbers, metric: Metric, *, moved: bool = False) -> None:
    """Look at the metric's value on validation data."""
    if score is None:
        return
    if not math.isfinite(score):
        raise Exploded(f"the score on validation data became {score}")
    if moved or (numbers.best_epoch == 0 and numbers.backed_off == MOST_BACK_OFFS):
        return  # in the second case what it started with is the result
    best = numbers.best_score
    if best is None:
        return
    if metric.higher_is_better and score * WORSE_SCORE < best:
        raise Exploded(f"the score on validation data fell from {best:.4g} to {score:.4g}")
    if not metric.higher_is_better and score > WORSE_ERROR * best > 0:
        raise Exploded(f"the error on validation data rose from {best:.4g} to {score:.4g}")


def back_off(state: TrainingState, good: dict[str, Any], why: Exploded, context: Context, label: str) -> None:
    """Back to the last good state with a lower learning rate; the third time, `Diverged`, with it in a file."""
    numbers = state.numbers
    where, times, scale = f"{label}: epoch {numbers.epoch + 1}", numbers.backed_off, numbers.lr_scale
    state.restore(good)
    if times == MOST_BACK_OFFS:
        path = _save_good(state, context, label)
        raise Diverged(
            f"{where}: {why}, and {times} times lowering the learning rate did not help. The last good weights are in "
            f"{path}; train with less than {scale:.2g} of this learning rate, or set `clip`"
        )
    state.numbers.backed_off = times + 1
    state.numbers.lr_scale = scale * LR_FACTOR
    context.progress.say(f"{where}: {why}; back to the last good state, learning rate times {LR_FACTOR}")


def _save_good(state: TrainingState, context: Context, label: str) -> Path:
    """The weights under the names of the model's own state dict."""
    folder = context.folder or Path(tempfile.mkdtemp(prefix="gossamer-"))
    path = folder / f"{''.join(c if c.isalnum() else '-' for c in label)}-last-good.safetensors"
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in state_of(state.model).items()}
    write_bytes(path, safetensors.torch.save(tensors))
    return path
