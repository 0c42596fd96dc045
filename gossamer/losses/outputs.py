"""Losses on outputs that are no logits: boxes, embeddings, regressions, also in tuples and dicts."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.core.outputs import plain
from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


def output_loss(student: Any, teacher: Any) -> Tensor:
    """Relative squared error of outputs: the mean squared difference over the teacher's variance.

    Args:
        student: a tensor, or a tuple, list or dict of tensors, nested as deep as needed.
        teacher: outputs of the same structure and shapes.

    Returns:
        A scalar: the mean over all floating-point tensors. 1 is the error of a student that gives the teacher's mean.

    Raises:
        BadInput: structure or shapes differ, or there is no floating-point tensor.

    Example:
        >>> import torch
        >>> from gossamer.losses import output_loss
        >>> boxes, scores = torch.tensor([[0.0, 2.0]]), torch.tensor([1.0, 3.0])
        >>> float(output_loss({"boxes": boxes + 1, "scores": scores}, {"boxes": boxes, "scores": scores}))
        0.5
    """
    pairs = list(_pairs(plain(student), plain(teacher), "outputs"))
    if not pairs:
        raise BadInput("distillation: the teacher's outputs hold no floating-point tensor to learn from")
    return torch.stack([_relative_error(s, t) for s, t in pairs]).mean()


@wide
def gaussian_loss(mean: Tensor, log_variance: Tensor, teacher: Tensor, noise: float = 0.0) -> Tensor:
    """Negative log-likelihood of a normal distribution, for a student that gives mean and log variance.

    With teachers that are draws v from a posterior, the student learns the mean and the variance of the draws.

    Args:
        mean: m, any shape.
        log_variance: log s^2, of the same shape.
        teacher: v, of the same shape.
        noise: variance of the observations, which is added to that of the draws; at least 0.

    Returns:
        A scalar, the mean over all elements: (log s^2 + ((v - m)^2 + noise) / s^2) / 2.

    Raises:
        BadInput: the shapes differ.

    Source:
        Korattikara Balan et al. 2015, arXiv:1506.04416, section 2.2.

    Example:
        >>> import torch
        >>> from gossamer.losses import gaussian_loss
        >>> zeros = torch.zeros(4, 1)
        >>> float(gaussian_loss(zeros, zeros, zeros + 2.0))
        2.0
    """
    same_shape(mean, teacher, "means")
    same_shape(log_variance, teacher, "log variances")
    return (log_variance + ((teacher - mean).pow(2) + noise) * torch.exp(-log_variance)).mean() / 2


@wide
def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher) / teacher.var(unbiased=False).clamp_min(torch.finfo(torch.float32).tiny)


def _pairs(student: Any, teacher: Any, where: str) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        same_shape(student, teacher, where)
        if teacher.is_floating_point():
            yield student, teacher
    elif isinstance(student, Mapping) and isinstance(teacher, Mapping) and student.keys() == teacher.keys():
        for key in teacher:
            yield from _pairs(student[key], teacher[key], f"{where}[{key!r}]")
    elif isinstance(student, tuple | list) and isinstance(teacher, tuple | list) and len(student) == len(teacher):
        for i, (s, t) in enumerate(zip(student, teacher)):
            yield from _pairs(s, t, f"{where}[{i}]")
    elif isinstance(student, Tensor | Mapping | tuple | list) or isinstance(teacher, Tensor | Mapping | tuple | list):
        raise BadInput(
            f"distillation: {where} are a {type(student).__name__}, the teacher's a {type(teacher).__name__}; "
            "they must have the same structure"
        )
