"""What a student can learn from a teacher, as pure functions of tensors: the student's first, then the teacher's.

    from gossamer.losses import kd_loss
    loss = kd_loss(student(x), teacher(x), temperature=4.0)

Each `..._loss` gives a scalar with a gradient for the student, in float32 also under autocast; others make what
students learn from: samples, draws, what specialists say together, neurons worth learning. Make the teacher's
tensors under `torch.no_grad()`. Shapes that do not match raise `BadInput`.
"""

from gossamer.losses.features import (
    attention_loss,
    attention_map,
    fsp_loss,
    fsp_matrix,
    gradient_attention_loss,
    hint_loss,
    input_gradient,
    statistics_loss,
    total_variation,
)
from gossamer.losses.langevin import langevin_step
from gossamer.losses.logits import (
    decoupled_kl,
    dist_loss,
    dkd_loss,
    kd_loss,
    logit_loss,
    multi_label_loss,
    mutual_loss,
    standardized,
)
from gossamer.losses.neurons import discrimination, keep_probabilities, redundancy, select_neurons, selection_energy
from gossamer.losses.outputs import gaussian_loss, output_loss
from gossamer.losses.relations import contrastive_loss, rkd_angle_loss, rkd_distance_loss
from gossamer.losses.specialists import combined_opinion, dustbin
from gossamer.losses.synthetic import munge

__all__ = [
    "attention_loss",
    "attention_map",
    "combined_opinion",
    "contrastive_loss",
    "decoupled_kl",
    "discrimination",
    "dist_loss",
    "dkd_loss",
    "dustbin",
    "fsp_loss",
    "fsp_matrix",
    "gaussian_loss",
    "gradient_attention_loss",
    "hint_loss",
    "input_gradient",
    "kd_loss",
    "keep_probabilities",
    "langevin_step",
    "logit_loss",
    "multi_label_loss",
    "munge",
    "mutual_loss",
    "output_loss",
    "redundancy",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "select_neurons",
    "selection_energy",
    "standardized",
    "statistics_loss",
    "total_variation",
]
