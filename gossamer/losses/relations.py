"""Losses on the relations between samples: embeddings (N, ...), flattened; student and teacher may differ in width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


@wide
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D, the distance loss of relational knowledge distillation: compare the distances of all pairs of samples.

    Each network's distances are divided by their own mean, so that only ratios count.

    Args:
        student: embeddings, shape (N, ...), at least 2 samples.
        teacher: embeddings of the same samples, shape (N, ...); the width may differ.

    Returns:
        A scalar: the Huber difference of the relative distances, the mean over the N^2 ordered pairs.

    Raises:
        BadInput: different numbers of samples, or fewer than 2.

    Source:
        Park et al. 2019, arXiv:1904.05068, section 3.2.1.

    Example:
        >>> import torch
        >>> from gossamer.losses import rkd_distance_loss
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> float(rkd_distance_loss(3 * corners, corners)) < 1e-9  # the scale does not matter
        True
    """
    own, other = _embeddings(student, teacher, 2)
    return F.smooth_l1_loss(_relative_distances(own), _relative_distances(other))


def _relative_distances(x: Tensor) -> Tensor:
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[distances > 0]
    return distances / apart.mean() if apart.numel() else distances


@wide
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A, the angle loss of relational knowledge distillation: compare the angles of all triplets of samples.

    It takes N^2 (N + width) numbers of memory.

    Args:
        student: embeddings, shape (N, ...), at least 3 samples.
        teacher: embeddings of the same samples, shape (N, ...); the width may differ.

    Returns:
        A scalar: the Huber difference of the cosines at the middle sample, the mean over the N^3 ordered triplets.

    Raises:
        BadInput: different numbers of samples, or fewer than 3.

    Source:
        Park et al. 2019, arXiv:1904.05068, section 3.2.2.

    Example:
        >>> import torch
        >>> from gossamer.losses import rkd_angle_loss
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> turned = corners @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> float(rkd_angle_loss(turned, corners)) < 1e-9  # a rotation changes no angle
        True
    """
    own, other = _embeddings(student, teacher, 3)
    return F.smooth_l1_loss(_cosines(own), _cosines(other))


def _cosines(x: Tensor) -> Tensor:
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.mT


@wide
def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrastive representation distillation (CRD) loss within the batch: InfoNCE in both directions.

    Each embedding of the student has to find the embedding of its own sample among all of the teacher's, and the other
    way round. It is not zero where both are equal. The paper's memory of negatives is not used.

    Args:
        student: embeddings, shape (N, ...), at least 2 samples; they are normalized here.
        teacher: embeddings of the same samples, of the same width.
        temperature: divides the cosine similarities; smaller values stress the nearest negatives.

    Returns:
        A scalar in nats, the mean of both directions.

    Raises:
        BadInput: different numbers of samples or widths, or fewer than 2 samples.

    Source:
        Tian et al. 2020, arXiv:1910.10699, section 3; van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE).

    Example:
        >>> import torch
        >>> from gossamer.losses import contrastive_loss
        >>> embeddings = torch.eye(4)
        >>> wrong = embeddings.roll(1, 0)
        >>> bool(contrastive_loss(embeddings, embeddings) < contrastive_loss(wrong, embeddings))
        True
    """
    own, other = _embeddings(student, teacher, 2)
    same_shape(own, other, "embeddings")
    similarities = F.normalize(own, dim=1) @ F.normalize(other, dim=1).T / temperature
    index = torch.arange(len(own), device=own.device)
    return (F.cross_entropy(similarities, index) + F.cross_entropy(similarities.T, index)) / 2


def _embeddings(student: Tensor, teacher: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if len(student) != len(teacher) or len(student) < least:
        raise BadInput(
            f"distillation: relations need the same samples from both networks, at least {least}; "
            f"got {len(student)} and {len(teacher)}"
        )
    return student.flatten(1), teacher.flatten(1)
