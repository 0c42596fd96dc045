"""Losses of margins."""

import torch.nn.functional as F
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import wide


@wide
def square_hinge_loss(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Squared hinge loss of one class against the others (L2-SVM): mean of max(0, 1 - t y)^2, t = 1 or -1.

    Args:
        logits_NK: shape (N, K).
        labels_N: integers in [0, K), shape (N,).

    Returns:
        A scalar.

    Raises:
        BadInput: for other shapes.

    Example:
        >>> import torch
        >>> square_hinge_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor(0.5000)

    Source: Tang 2013, arXiv:1306.0239; the loss of BinaryConnect, BNN and loss-aware binarization on small images.
    """
    if logits_NK.dim() != 2 or labels_N.shape != logits_NK.shape[:1]:
        shapes = f"logits {list(logits_NK.shape)} and labels {list(labels_N.shape)}"
        raise BadInput(f"square_hinge_loss: {shapes} must be (N, K) and (N,)")
    signs_NK = 2 * F.one_hot(labels_N, logits_NK.shape[1]).to(logits_NK.dtype) - 1
    return (1 - signs_NK * logits_NK).clamp_min(0).square().mean()
