"""Losses on how samples lie to one another: embeddings (N, ...), flattened; student and teacher may differ in width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


@wide
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of all pairs' distances, each network's over its own mean distance; mean over the N^2 ordered
    pairs (Park et al. 2019, arXiv:1904.05068, section 3.2.1)."""
    own, other = _embeddings(student, teacher, 2)
    return F.smooth_l1_loss(_relative_distances(own), _relative_distances(other))


def _relative_distances(x: Tensor) -> Tensor:
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances[distances > 0]
    return distances / apart.mean() if apart.numel() else distances


@wide
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber difference of the cosines of the angles of all triplets, at the middle one; mean over the N^3 ordered
    triplets, which take N^2 (N + width) numbers (Park et al. 2019, arXiv:1904.05068, section 3.2.2)."""
    own, other = _embeddings(student, teacher, 3)
    return F.smooth_l1_loss(_cosines(own), _cosines(other))


def _cosines(x: Tensor) -> Tensor:
    directions = F.normalize(x[None] - x[:, None], dim=2)
    return directions @ directions.mT


@wide
def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE within the batch: each student's embedding is to find its own teacher's among all, and each teacher's its
    student's; the mean of both (Tian et al. 2020, arXiv:1910.10699, without their memory of negatives).

    Embeddings of equal width; they are normalised here. It is not zero where both are equal.
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
