"""Losses on logits, shape (N, classes, ...): z of the student and v of the teacher.

They are summed or correlated over classes, and averaged over everything else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


@wide
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation loss on soft targets: T^2 KL(softmax(v/T) || softmax(z/T)).

    The factor T^2 keeps the size of the gradient when the temperature changes. For large T the loss approaches
    |z - v|^2 / (2 classes) of the centred logits.

    Args:
        student_logits: z, shape (N, classes, ...).
        teacher_logits: v, of the same shape.
        temperature: T > 0; 1 compares the probabilities themselves, larger values soften them.

    Returns:
        A scalar in nats: the sum over classes, the mean over the rest.

    Raises:
        BadInput: the shapes differ.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 2.

    Example:
        >>> import torch
        >>> from gossamer.losses import kd_loss
        >>> logits = torch.tensor([[2.0, 0.0, -2.0]])
        >>> float(kd_loss(logits, logits, temperature=4.0))
        0.0
        >>> round(float(kd_loss(torch.zeros(1, 3), logits, temperature=4.0)), 3)
        1.255
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = F.log_softmax(student_logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean() * temperature**2


@wide
def logit_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Logit regression: half the squared distance of the logits, |z - v|^2 / 2.

    Unlike `kd_loss` it is not zero where all logits of a sample are shifted by the same number.

    Args:
        student_logits: z, shape (N, classes, ...).
        teacher_logits: v, of the same shape.

    Returns:
        A scalar: the sum over classes, the mean over the rest.

    Raises:
        BadInput: the shapes differ.

    Source:
        Ba & Caruana 2014, arXiv:1312.6184, section 2.2.

    Example:
        >>> import torch
        >>> from gossamer.losses import logit_loss
        >>> float(logit_loss(torch.zeros(5, 4), torch.ones(5, 4)))
        2.0
    """
    same_shape(student_logits, teacher_logits, "logits")
    return (student_logits - teacher_logits).pow(2).sum(1).mean() / 2


@wide
def multi_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation loss for several labels at once: T^2 KL of independent Bernoulli distributions.

    It compares sigmoid(v/T) with sigmoid(z/T), label by label, for tasks where any number of labels can be true.

    Args:
        student_logits: z, shape (N, labels, ...).
        teacher_logits: v, of the same shape.
        temperature: T > 0.

    Returns:
        A scalar in nats: the sum over labels, the mean over the rest.

    Raises:
        BadInput: the shapes differ.

    Example:
        >>> import torch
        >>> from gossamer.losses import multi_label_loss
        >>> logits = torch.tensor([[3.0, -1.0]])
        >>> round(float(multi_label_loss(-logits, logits, temperature=1.0)), 2)
        3.18
    """
    same_shape(student_logits, teacher_logits, "logits")
    z, v = student_logits / temperature, teacher_logits / temperature
    p = v.sigmoid()
    kl = p * (F.logsigmoid(v) - F.logsigmoid(z)) + (1 - p) * (F.logsigmoid(-v) - F.logsigmoid(-z))
    return kl.sum(1).mean() * temperature**2


@wide
def decoupled_kl(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of KL(softmax(v) || softmax(z)) = TCKD + (1 - p_t) NCKD.

    TCKD (target class) compares the target with all other classes together; NCKD (non-target classes) compares the
    other classes among themselves. p_t is the teacher's probability of the target.

    Args:
        student_logits: z, shape (N, classes, ...).
        teacher_logits: v, of the same shape.
        target: class numbers, integers of shape (N, ...).

    Returns:
        TCKD and NCKD in nats, each of shape (N, ...).

    Raises:
        BadInput: the shapes differ, or the target does not hold one class for each prediction.

    Source:
        Zhao et al. 2022, arXiv:2203.08679, section 3.1.

    Example:
        >>> import torch
        >>> from gossamer.losses import decoupled_kl, kd_loss
        >>> z, v, target = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1])
        >>> tckd, nckd = decoupled_kl(z, v, target)
        >>> whole = tckd + (1 - v.softmax(1)[0, 1]) * nckd
        >>> torch.allclose(whole, kd_loss(z, v, temperature=1.0))
        True
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
    """Decoupled knowledge distillation (DKD) loss: T^2 (a TCKD + b NCKD).

    `kd_loss` weighs NCKD by 1 - p_t, which is small where the teacher is confident. Here both weights are free.

    Args:
        student_logits: z, shape (N, classes, ...).
        teacher_logits: v, of the same shape.
        target: class numbers, integers of shape (N, ...).
        temperature: T > 0.
        target_weight: a, the weight of the target class against the rest.
        others_weight: b, the weight of the other classes among themselves.

    Returns:
        A scalar in nats, the mean over predictions.

    Raises:
        BadInput: the shapes differ, or the target does not hold one class for each prediction.

    Source:
        Zhao et al. 2022, arXiv:2203.08679, section 3.

    Example:
        >>> import torch
        >>> from gossamer.losses import dkd_loss
        >>> logits, target = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1])
        >>> float(dkd_loss(logits, logits, target, temperature=4.0))
        0.0
    """
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
    """DIST loss: one minus the correlation of the softened probabilities, over classes and over samples.

    Only the relations have to agree, not the probabilities themselves.

    Args:
        student_logits: shape (N, classes, ...).
        teacher_logits: of the same shape.
        temperature: T > 0; the loss is multiplied by T^2.
        inter_weight: b, the weight of the correlation over the classes of each sample.
        intra_weight: c, the weight of the correlation over the samples, for each class.

    Returns:
        A scalar, at least 0: T^2 (b (1 - corr over classes) + c (1 - corr over samples)).

    Raises:
        BadInput: the shapes differ.

    Source:
        Huang et al. 2022, arXiv:2205.10536, section 4.

    Example:
        >>> import torch
        >>> from gossamer.losses import dist_loss
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> abs(float(dist_loss(logits, logits))) < 1e-6
        True
    """
    same_shape(student_logits, teacher_logits, "logits")
    student = F.softmax(student_logits / temperature, 1).movedim(1, -1).flatten(0, -2)
    teacher = F.softmax(teacher_logits / temperature, 1).movedim(1, -1).flatten(0, -2)
    inter, intra = 1 - correlation(student, teacher, 1).mean(), 1 - correlation(student, teacher, 0).mean()
    return (inter_weight * inter + intra_weight * intra) * temperature**2


def correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson correlation along a dimension; 0 where one of the two is constant.

    Args:
        a: any shape.
        b: of the same shape.
        dim: the dimension over which the correlation is taken; it is removed.

    Returns:
        Values in [-1, 1].
    """
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim)


@wide
def standardized(logits: Tensor) -> Tensor:
    """Logits standardized over classes: (z - mean) / standard deviation.

    Give the standardized logits of both networks to `kd_loss`: the student then need not reach the scale of the
    teacher's logits.

    Args:
        logits: shape (N, classes, ...).

    Returns:
        The same shape, with mean 0 and standard deviation 1 over classes.

    Source:
        Sun et al. 2024, arXiv:2403.01733, section 3.3.

    Example:
        >>> import torch
        >>> from gossamer.losses import standardized
        >>> standardized(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """
    spread = logits.std(1, keepdim=True).clamp_min(1e-7)
    return (logits - logits.mean(1, keepdim=True)) / spread


def mutual_loss(own_logits: Tensor, *others_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Deep mutual learning loss: the mean of `kd_loss` from several other networks that train at the same time.

    Args:
        own_logits: of the network that gets the gradient, shape (N, classes, ...).
        others_logits: of the other networks, at least one, in the same shape; they get no gradient.
        temperature: T > 0.

    Returns:
        A scalar in nats.

    Raises:
        BadInput: there is no other network, or the shapes differ.

    Source:
        Zhang et al. 2018, arXiv:1706.00384, section 2.

    Example:
        >>> import torch
        >>> from gossamer.losses import kd_loss, mutual_loss
        >>> own, first, second = torch.randn(3, 8, 5).unbind(0)
        >>> loss = mutual_loss(own, first, second)
        >>> expected = (kd_loss(own, first, 1.0) + kd_loss(own, second, 1.0)) / 2
        >>> torch.allclose(loss, expected)
        True
    """
    if not others_logits:
        raise BadInput("mutual_loss: needs the logits of at least one other network")
    return torch.stack([kd_loss(own_logits, other.detach(), temperature) for other in others_logits]).mean()


def check_labels(logits: Tensor, target: Tensor) -> None:
    """Check that a target holds one class for each prediction.

    Args:
        logits: shape (N, classes, ...).
        target: must hold integers of shape (N, ...).

    Raises:
        BadInput: it does not.
    """
    if target.is_floating_point() or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise BadInput(
            f"distillation: logits of shape {tuple(logits.shape)} need integer targets of shape "
            f"{tuple(logits.shape[:1] + logits.shape[2:])}, got {target.dtype} of shape {tuple(target.shape)}"
        )
