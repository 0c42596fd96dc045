"""Losses on the outputs of hidden layers (features), shape (N, C, ...): channels first, then positions."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput, unknown
from gossamer.losses.precision import same_shape, wide

AttentionDistance = Literal["mean_square", "norm"]


@wide
def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hint loss of FitNets: half the mean squared difference of two layers.

    Args:
        student: features of the student, any shape. Features of another shape need a regressor first.
        teacher: features of the teacher, of the same shape.

    Returns:
        A scalar: 1/2 mean((student - teacher)^2).

    Raises:
        BadInput: the shapes differ.

    Source:
        Romero et al. 2015, arXiv:1412.6550, equation 3, divided by the number of elements.

    Example:
        >>> import torch
        >>> from gossamer.losses import hint_loss
        >>> float(hint_loss(torch.zeros(2, 4), torch.full((2, 4), 3.0)))
        4.5
    """
    same_shape(student, teacher, "features")
    return F.mse_loss(student, teacher) / 2


@wide
def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """Spatial attention map of a layer: the energy of all channels at each position.

    Args:
        features: shape (N, C, positions...).
        power: exponent p of |A|^p; larger values stress the strongest channels.

    Returns:
        sum over c of |A_c|^p, flattened to (N, positions), each row of Euclidean norm 1.

    Raises:
        BadInput: the features have no positions.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1.

    Example:
        >>> import torch
        >>> from gossamer.losses import attention_map
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])).round(decimals=2)
        tensor([[0.9100, 0.4100]])
    """
    if features.dim() < 3:
        raise BadInput(
            f"attention: features of shape {tuple(features.shape)} have no positions; name a layer that gives "
            "(N, channels, positions...)"
        )
    return F.normalize(features.abs().pow(power).sum(1).flatten(1), dim=1)


@wide
def attention_loss(
    student: Tensor, teacher: Tensor, power: float = 2.0, *, distance: AttentionDistance = "mean_square"
) -> Tensor:
    """Attention transfer loss: how far the `attention_map`s of two layers are apart.

    Args:
        student: features, shape (N, C1, positions...).
        teacher: features, shape (N, C2, positions...); the numbers of channels may differ, the positions may not.
        power: exponent of the attention maps.
        distance: "mean_square": the mean squared difference over samples and positions, as in the source's code;
            "norm": half the Euclidean norm of each sample's difference, as in the paper (equation 2 with p = 2).

    Returns:
        A scalar, the mean over samples (and positions).

    Raises:
        BadInput: features without positions, or with different positions.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1.

    Example:
        >>> import torch
        >>> from gossamer.losses import attention_loss
        >>> features = torch.rand(2, 8, 4, 4)
        >>> float(attention_loss(features, 5 * features)) < 1e-9  # the scale of the features does not matter
        True
    """
    student_map, teacher_map = attention_map(student, power), attention_map(teacher, power)
    same_shape(student_map, teacher_map, "attention maps")
    if distance == "norm":
        lengths: Tensor = torch.linalg.vector_norm(student_map - teacher_map, dim=1)
        return lengths.mean() / 2
    if distance == "mean_square":
        return F.mse_loss(student_map, teacher_map)
    raise unknown("distance", distance, get_args(AttentionDistance))


@wide
def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Channel-wise distillation loss: where in the image each channel is active.

    Args:
        student: features, shape (N, C, positions...).
        teacher: features of the same shape.
        temperature: of the softmax over the positions of a channel, in (0, inf).

    Returns:
        A scalar: T^2 KL(softmax(teacher / T) || softmax(student / T)) over the positions, the mean over samples and
        channels.

    Raises:
        BadInput: features without positions, or of different shapes.

    Source:
        Shu et al. 2021, arXiv:2011.13256, equations 3 and 4.

    Example:
        >>> import torch
        >>> from gossamer.losses import channel_wise_loss
        >>> features = torch.rand(2, 8, 4, 4)
        >>> float(channel_wise_loss(features + 3, features)) < 1e-6  # the level of a channel does not matter
        True
    """
    same_shape(student, teacher, "features")
    if student.dim() < 3:
        raise BadInput(
            f"channel-wise: features of shape {tuple(student.shape)} have no positions; name a layer that gives "
            "(N, channels, positions...)"
        )
    given, wanted = (F.log_softmax(x.flatten(2) / temperature, dim=2) for x in (student, teacher))
    return temperature**2 * F.kl_div(given, wanted, reduction="none", log_target=True).sum(2).mean()


def input_gradient(loss: Tensor, inputs: Tensor) -> Tensor:
    """Gradient of each sample's own loss with respect to the inputs: dL/dx times the batch size.

    Args:
        loss: a scalar that is a mean over samples.
        inputs: shape (N, ...); it must require gradients.

    Returns:
        A tensor of the shape of the inputs. It can be differentiated again.

    Example:
        >>> import torch
        >>> from gossamer.losses import input_gradient
        >>> x = torch.tensor([[1.0], [2.0]], requires_grad=True)
        >>> input_gradient(x.square().sum(1).mean(), x).detach()
        tensor([[2.],
                [4.]])
    """
    [gradient] = torch.autograd.grad(loss, [inputs], create_graph=True)
    return gradient * len(inputs)


@wide
def gradient_attention_loss(student_gradient: Tensor, teacher_gradient: Tensor) -> Tensor:
    """Gradient-based attention loss: half the squared difference of two gradients with respect to the inputs.

    Args:
        student_gradient: `input_gradient` of the student's task loss, shape (N, ...).
        teacher_gradient: that of the teacher, of the same shape.

    Returns:
        A scalar: the mean over samples of |J_S - J_T|^2 / 2.

    Raises:
        BadInput: the shapes differ.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.2, squared.

    Example:
        >>> import torch
        >>> from gossamer.losses import gradient_attention_loss
        >>> float(gradient_attention_loss(torch.ones(2, 4), torch.zeros(2, 4)))
        2.0
    """
    same_shape(student_gradient, teacher_gradient, "gradients")
    return (student_gradient - teacher_gradient).flatten(1).pow(2).sum(1).mean() / 2


@wide
def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """FSP matrix (flow of solution procedure): inner products of the channels of two layers.

    Args:
        first: features of one layer, shape (N, C1, H1, W1).
        second: features of a later layer, shape (N, C2, H2, W2). The larger map is max-pooled to the smaller one.

    Returns:
        The mean over positions of F1_i F2_j, shape (N, C1, C2).

    Raises:
        BadInput: the features are not (N, C, H, W).

    Source:
        Yim et al. 2017, doi:10.1109/CVPR.2017.754, equation 1.

    Example:
        >>> import torch
        >>> from gossamer.losses import fsp_matrix
        >>> fsp_matrix(torch.ones(2, 4, 8, 8), torch.ones(2, 6, 4, 4)).shape
        torch.Size([2, 4, 6])
    """
    if first.dim() != 4 or second.dim() != 4:
        raise BadInput(
            f"fsp: features of shapes {tuple(first.shape)} and {tuple(second.shape)}; both must be (N, C, H, W)"
        )
    size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:])]
    a, b = (F.adaptive_max_pool2d(x, size).flatten(2) for x in (first, second))
    return a @ b.mT / a.shape[2]


def fsp_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """FSP loss: the squared difference of the `fsp_matrix` of two layers.

    Args:
        student: the features of the two layers in the student, each (N, C, H, W).
        teacher: the features of the two layers in the teacher, with the same numbers of channels.

    Returns:
        A scalar: the sum over the matrix, the mean over samples.

    Raises:
        BadInput: the matrices differ in shape.

    Source:
        Yim et al. 2017, doi:10.1109/CVPR.2017.754, equation 2.

    Example:
        >>> import torch
        >>> from gossamer.losses import fsp_loss
        >>> first, second = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)
        >>> float(fsp_loss((first, second), (first, 2 * second)))  # 15 entries, each differs by 1
        15.0
    """
    student_matrix, teacher_matrix = fsp_matrix(*student), fsp_matrix(*teacher)
    same_shape(student_matrix, teacher_matrix, "FSP matrices")
    return (student_matrix - teacher_matrix).pow(2).sum((1, 2)).mean()


@wide
def statistics_loss(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Batch-norm statistics loss of DeepInversion: how far features are from the statistics of a batch norm.

    Args:
        features: the input of the batch norm, shape (N, C, ...).
        mean: its running mean, shape (C,).
        variance: its running variance, shape (C,).

    Returns:
        A scalar: |m - mean| + |s^2 - variance|, Euclidean norms over channels, where m and s^2 are the mean and the
        variance of the features over all dimensions but the channels.

    Raises:
        BadInput: the numbers of channels differ.

    Source:
        Yin et al. 2020, arXiv:1912.08795, equation 4.

    Example:
        >>> import torch
        >>> from gossamer.losses import statistics_loss
        >>> float(statistics_loss(torch.ones(4, 2, 3, 3), mean=torch.ones(2), variance=torch.zeros(2)))
        0.0
    """
    rows = features.transpose(0, 1).flatten(1)
    if not rows.shape[:1] == mean.shape == variance.shape:
        raise BadInput(f"statistics: features of {rows.shape[0]} channels, statistics of {tuple(mean.shape)}")
    loss: Tensor = (rows.mean(1) - mean).norm() + (rows.var(1, unbiased=False) - variance).norm()
    return loss


@wide
def total_variation(images: Tensor) -> Tensor:
    """Total variation of images: the mean squared difference of neighbouring pixels, down and to the right.

    Args:
        images: shape (N, C, H, W).

    Returns:
        A scalar, 0 for images of one colour.

    Example:
        >>> import torch
        >>> from gossamer.losses import total_variation
        >>> image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
        >>> float(total_variation(image))
        1.0
    """
    return images.diff(dim=2).pow(2).mean() + images.diff(dim=3).pow(2).mean()
