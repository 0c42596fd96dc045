"""Losses on what layers inside give: shape (N, C, ...) with the positions behind the channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import same_shape, wide


@wide
def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference (Romero et al. 2015, arXiv:1412.6550, equation 3, over the number of elements).

    The student's features go through a regressor first where they have another shape.
    """
    same_shape(student, teacher, "features")
    return F.mse_loss(student, teacher) / 2


@wide
def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """sum over c of |A_c|^p at each position, of norm 1 for each sample, shape (N, positions)."""
    if features.dim() < 3:
        raise BadInput(
            f"attention: features of shape {tuple(features.shape)} have no positions; name a layer that gives "
            "(N, channels, positions...)"
        )
    return F.normalize(features.abs().pow(power).sum(1).flatten(1), dim=1)


@wide
def attention_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of the attention maps; the numbers of channels may differ (Zagoruyko & Komodakis 2017,
    arXiv:1612.03928, section 3.1; the mean square as in their code, where the paper writes the norm)."""
    student_map, teacher_map = attention_map(student, power), attention_map(teacher, power)
    same_shape(student_map, teacher_map, "attention maps")
    return F.mse_loss(student_map, teacher_map)


def input_gradient(loss: Tensor, inputs: Tensor) -> Tensor:
    """dL/dx times the batch size, for a loss that is a mean over samples: the gradient of each sample's own loss.

    inputs must require gradients. What comes out can be differentiated again.
    """
    [gradient] = torch.autograd.grad(loss, [inputs], create_graph=True)
    return gradient * len(inputs)


@wide
def gradient_attention_loss(student_gradient: Tensor, teacher_gradient: Tensor) -> Tensor:
    """|J_S - J_T|^2 / 2 of the `input_gradient` of the task's loss, mean over samples (Zagoruyko & Komodakis 2017,
    arXiv:1612.03928, section 3.2, squared)."""
    same_shape(student_gradient, teacher_gradient, "gradients")
    return (student_gradient - teacher_gradient).flatten(1).pow(2).sum(1).mean() / 2


@wide
def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """How two layers' channels go together: mean over positions of F1_i F2_j, shape (N, C1, C2).

    Where the layers differ in resolution, the larger one is max-pooled to the smaller.
    """
    if first.dim() != 4 or second.dim() != 4:
        raise BadInput(
            f"fsp: features of shapes {tuple(first.shape)} and {tuple(second.shape)}; both must be (N, C, H, W)"
        )
    size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:])]
    a, b = (F.adaptive_max_pool2d(x, size).flatten(2) for x in (first, second))
    return a @ b.mT / a.shape[2]


def fsp_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Squared difference of the `fsp_matrix` of two layers, summed over the matrix, mean over samples (Yim et al. 2017,
    doi:10.1109/CVPR.2017.754, equation 2)."""
    student_matrix, teacher_matrix = fsp_matrix(*student), fsp_matrix(*teacher)
    same_shape(student_matrix, teacher_matrix, "FSP matrices")
    return (student_matrix - teacher_matrix).pow(2).sum((1, 2)).mean()


@wide
def statistics_loss(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """|m - mean| + |s^2 - variance|, norms over channels, m and s^2 those of the features (N, C, ...) over all but the
    channels: how unlike the data that a batch norm saw in training they are (Yin et al. 2020, arXiv:1912.08795,
    equation 4)."""
    rows = features.transpose(0, 1).flatten(1)
    if not rows.shape[:1] == mean.shape == variance.shape:
        raise BadInput(f"statistics: features of {rows.shape[0]} channels, statistics of {tuple(mean.shape)}")
    loss: Tensor = (rows.mean(1) - mean).norm() + (rows.var(1, unbiased=False) - variance).norm()
    return loss


@wide
def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, down and to the right; images (N, C, H, W)."""
    return images.diff(dim=2).pow(2).mean() + images.diff(dim=3).pow(2).mean()
