"""Losses on logits z of the student and v of the teacher, shape (N, classes, ...): summed or correlated over classes,
mean over the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


@wide
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(v/T) || softmax(z/T)) (Hinton et al. 2015, arXiv:1503.02531, section 2).

    T^2 keeps the size of the gradient; for large T the term becomes |z - v|^2 / (2 classes) of the centred logits.
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = F.log_softmax(student_logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean() * temperature**2


@wide
def logit_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """|z - v|^2 / 2: regression on logits, which unlike `kd_loss` sees a shift of all of them (Ba & Caruana 2014,
    arXiv:1312.6184, section 2.2)."""
    same_shape(student_logits, teacher_logits, "logits")
    return (student_logits - teacher_logits).pow(2).sum(1).mean() / 2


@wide
def multi_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL of independent Bernoulli distributions sigmoid(v/T) and sigmoid(z/T), summed over labels: soft targets
    where any number of labels can be true at once."""
    same_shape(student_logits, teacher_logits, "logits")
    z, v = student_logits / temperature, teacher_logits / temperature
    p = v.sigmoid()
    kl = p * (F.logsigmoid(v) - F.logsigmoid(z)) + (1 - p) * (F.logsigmoid(-v) - F.logsigmoid(-z))
    return kl.sum(1).mean() * temperature**2


@wide
def decoupled_kl(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of KL(softmax(v) || softmax(z)) = TCKD + (1 - p_t) NCKD, p_t the teacher's probability of the
    target; each of shape (N, ...).

    TCKD: KL of target against all others; NCKD: KL among the others. target: integers, shape (N, ...).
    """
    same_shape(student_logits, teacher_logits, "logits")
    check_labels(student_logits, target)
    student, teacher = F.log_softmax(student_logits, 1), F.log_softmax(teacher_logits, 1)
    index = target.unsqueeze(1)
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter_(1, index, True)
    lowest = torch.finfo(student.dtype).min

    def others(log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        rest = log_probabilities.masked_fill(is_target, lowest)
        total = rest.logsumexp(1, keepdim=True)
        return total, rest - total

    rest_s, among_s = others(student)
    rest_t, among_t = others(teacher)
    binary_s = torch.cat([student.gather(1, index), rest_s], 1)
    binary_t = torch.cat([teacher.gather(1, index), rest_t], 1)
    tckd = (binary_t.exp() * (binary_t - binary_s)).sum(1)
    nckd = (among_t.exp() * (among_t - among_s)).masked_fill(is_target, 0.0).sum(1)
    return tckd, nckd


@wide
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float,
    target_weight: float = 1.0,
    others_weight: float = 8.0,
) -> Tensor:
    """T^2 (a TCKD + b NCKD): `kd_loss` would weigh NCKD by 1 - p_t, little where the teacher is sure (Zhao et al. 2022,
    arXiv:2203.08679, section 3)."""
    tckd, nckd = decoupled_kl(student_logits / temperature, teacher_logits / temperature, target)
    return (target_weight * tckd + others_weight * nckd).mean() * temperature**2


@wide
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """T^2 (b (1 - correlation over classes) + c (1 - correlation over samples)) of the softened probabilities, so that
    only relations have to agree (Huang et al. 2022, arXiv:2205.10536, section 4)."""
    same_shape(student_logits, teacher_logits, "logits")
    student = F.softmax(student_logits / temperature, 1).movedim(1, -1).flatten(0, -2)
    teacher = F.softmax(teacher_logits / temperature, 1).movedim(1, -1).flatten(0, -2)
    inter, intra = 1 - correlation(student, teacher, 1).mean(), 1 - correlation(student, teacher, 0).mean()
    return (inter_weight * inter + intra_weight * intra) * temperature**2


def correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's, along a dimension; 0 where one of them is constant."""
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim)


@wide
def standardized(logits: Tensor) -> Tensor:
    """(z - mean) / standard deviation over classes, to go into `kd_loss` from both networks: the student need not reach
    the size of the teacher's logits (Sun et al. 2024, arXiv:2403.01733, section 3.3)."""
    spread = logits.std(1, keepdim=True).clamp_min(1e-7)
    return (logits - logits.mean(1, keepdim=True)) / spread


def mutual_loss(own_logits: Tensor, *others_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the other networks of `kd_loss` from them, who get no gradient: the term of one network among
    several that learn together (Zhang et al. 2018, arXiv:1706.00384, section 2)."""
    if not others_logits:
        raise BadInput("mutual_loss: needs the logits of at least one other network")
    return torch.stack([kd_loss(own_logits, other.detach(), temperature) for other in others_logits]).mean()


def check_labels(logits: Tensor, target: Tensor) -> None:
    """Raise `BadInput` where the target is not one class for each prediction."""
    if target.is_floating_point() or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise BadInput(
            f"distillation: logits of shape {tuple(logits.shape)} need integer targets of shape "
            f"{tuple(logits.shape[:1] + logits.shape[2:])}, got {target.dtype} of shape {tuple(target.shape)}"
        )
