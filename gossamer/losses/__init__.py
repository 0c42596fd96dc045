"""Distillation losses: pure functions of tensors, those of the student first, then those of the teacher.

Each `..._loss` returns a scalar with a gradient for the student. Compute the teacher's tensors under
`torch.no_grad()`. Losses are computed in float32 or wider, also under autocast. Other functions make the data of a
distillation: synthetic samples (`munge`), draws from a posterior (`langevin_step`), the combined prediction of
specialists (`combined_opinion`), and a selection of neurons (`select_neurons`).

Shapes that do not match raise `BadInput`. In all shapes N is the number of samples of the batch.

Example:
    >>> import torch
    >>> from gossamer.losses import kd_loss
    >>> student, teacher = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
    >>> x = torch.randn(16, 8)
    >>> with torch.no_grad():
    ...     expected = teacher(x)
    >>> kd_loss(student(x), expected, temperature=4.0).backward()
    >>> student.weight.grad.shape
    torch.Size([3, 8])
"""

from gossamer.losses.features import (
    attention_loss,
    attention_map,
    channel_wise_loss,
    fsp_loss,
    fsp_matrix,
    gradient_attention_loss,
    hint_loss,
    input_gradient,
    statistics_loss,
    total_variation,
)
from gossamer.losses.hinge import square_hinge_loss
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
    "channel_wise_loss",
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
    "square_hinge_loss",
    "standardized",
    "statistics_loss",
    "total_variation",
]
