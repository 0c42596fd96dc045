"""Training: one readable loop, schedules, distillation, checkpoints."""

from gossamer.losses import kd_loss, output_loss
from gossamer.train.distillation import Distillation, LossTerm
from gossamer.train.hyperparameters import Training, learning_rate
from gossamer.train.loop import AfterStep, TrainingResult, TrainingStep, fit
from gossamer.train.recalibrate import recalibrate
from gossamer.train.state import Epoch

__all__ = [
    "AfterStep",
    "Distillation",
    "Epoch",
    "LossTerm",
    "Training",
    "TrainingResult",
    "TrainingStep",
    "fit",
    "kd_loss",
    "learning_rate",
    "output_loss",
    "recalibrate",
]
