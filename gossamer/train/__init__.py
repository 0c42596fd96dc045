"""Training: one readable loop, schedules, distillation, checkpoints."""

from gossamer.losses import kd_loss, output_loss
from gossamer.train.distill import Distillation, Teach
from gossamer.train.loop import AfterStep, Fitted, Step, fit
from gossamer.train.recalibrate import recalibrate
from gossamer.train.state import Epoch
from gossamer.train.training import Training, learning_rate

__all__ = [
    "AfterStep",
    "Distillation",
    "Epoch",
    "Fitted",
    "Step",
    "Teach",
    "Training",
    "fit",
    "kd_loss",
    "learning_rate",
    "output_loss",
    "recalibrate",
]
