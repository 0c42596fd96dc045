"""LASSO channel pruning: choose channels by LASSO regression on what the next layers compute from them.

What it does: one group of channels after the other, in the order of the network, a LASSO finds the channels from which
the layers behind can compute their outputs, and least squares fits the weights of these layers to the outputs of the
uncut network. So errors of earlier groups are corrected. Nothing is trained; a few hundred samples without labels are
enough.
Cost: for each group, runs of both networks on some batches, and a regularization path by least angle regression.
When it fails: at high ratios only a training recovers the rest. It needs scikit-learn.
Equation: min over b |Y - sum_i b_i X_i W_i|^2 / 2 + lambda |b|_1, lambda falling until enough b_i are not zero; then
W = argmin |Y - sum over kept i of X_i W_i|^2.
Source: He, Zhang & Sun 2017, arXiv:1707.06168, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gossamer.calibration.channel_selection import GramSystem, contributions, lasso_channels
from gossamer.methods._base import Settings
from gossamer.methods.prune._selection import ChannelSelection


@dataclass(frozen=True, kw_only=True)
class LassoChannels(ChannelSelection):
    """LASSO channel pruning (He, Zhang & Sun 2017). Give one of sparsity, speedup, macs, params and widths.

    Args:
        sparsity, speedup, macs, params, widths, residual, layers, ignore: how far to go, and where; see
            `ChannelSelection`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.LassoChannels(sparsity=0.5)(model, task)
        >>> smaller.conv2
        Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    example: ClassVar[Settings] = {"sparsity": 0.5}

    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        return lasso_channels(*contributions(systems, count), keep)
