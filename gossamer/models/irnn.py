"""Recurrent layers over the pixels of a map: what is left, right, above and below of each (Bell et al. 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def identity_scan(x_NCHW: Tensor, dim: int, *, backwards: bool = False) -> Tensor:
    """The hidden states of a recurrent layer with ReLU whose recurrent weight is the identity.

    h_t = max(h_(t-1) + x_t, 0) with h_0 = 0 has the closed form h_t = S_t - min(0, S_1, ..., S_t), S being the running
    sums of x. So all states of all samples and channels are found at once, and an export has no loop.

    Args:
        x_NCHW: what the states are moved by.
        dim: 2, from the upper row to the lower one; or 3, from the left column to the right one.
        backwards: from the other end.

    Returns:
        The states, of the same shape.

    Source: Lindley 1952 (the closed form, of waiting times in a queue); Bell et al. 2016, arXiv:1512.04143, section
    3.2, with the recurrent weight fixed.
    """
    if backwards:
        return identity_scan(x_NCHW.flip(dim), dim).flip(dim)
    sums = x_NCHW.cumsum(dim)
    length = x_NCHW.shape[dim]
    # The largest of -S up to each place is a max-pool over all places before it, of which the padding is S_0 = 0.
    before, window = ((length, 0), (1, length + 1)) if dim == 3 else ((0, 0, length, 0), (length + 1, 1))
    return sums + F.max_pool2d(F.pad(-sums, before), window, 1)


class IRNN(nn.Module):
    """Four recurrent layers with ReLU over a map, one from each side; their states side by side.

    They share the weights from the input to the hidden states, a 1x1 convolution. The weights from a state to the next
    are the identity, where "IRNN" begins, and stay so: the paper found next to no difference, and needs no loop.

    Args:
        in_channels: of the map.
        hidden: states of each of the four.
    """

    def __init__(self, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(in_channels, hidden, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.inner(x_NCHW)
        ways = ((3, False), (3, True), (2, False), (2, True))
        return torch.cat([identity_scan(x_NCHW, dim, backwards=backwards) for dim, backwards in ways], 1)


def context_layers(in_channels: int, hidden: int) -> nn.Sequential:
    """Two `IRNN` layers and a 1x1 convolution with ReLU: each of its pixels has seen the whole map.

    The weights from the states of the first to its output and those to the states of the second are one convolution.
    """
    return nn.Sequential(
        IRNN(in_channels, hidden), IRNN(4 * hidden, hidden), nn.Conv2d(4 * hidden, hidden, 1), nn.ReLU()
    )
