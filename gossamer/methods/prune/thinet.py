"""ThiNet: remove the channels whose contribution to the next layers is smallest together, greedily.

What it does: one group of channels after the other, channels are removed one by one so that what the removed ones gave
to the layers behind, summed, stays small. Then least squares fits the weights of these layers to the outputs of the
uncut network. Nothing is trained; a few hundred samples without labels are enough.
Cost: for each group, runs of both networks on some batches; the greedy choice itself takes no time.
When it fails: the choice does not see what the fit can make up for, as `prune.osscar` does.
Equation: argmin over T of |sum over i in T of X_i W_i|^2, one i at a time; then W = argmin |Y - sum over i not in T of
X_i W_i|^2.
Source: Luo, Wu & Lin 2017, arXiv:1707.06342, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gossamer.calibration.channel_selection import GramSystem, contributions, greedy_channels
from gossamer.methods._base import Settings
from gossamer.methods.prune._selection import ChannelSelection


@dataclass(frozen=True, kw_only=True)
class ThiNet(ChannelSelection):
    """ThiNet (Luo, Wu & Lin 2017). Give one of sparsity, speedup, macs, params and widths.

    Args:
        sparsity, speedup, macs, params, widths, residual, layers, ignore: how far to go, and where; see
            `ChannelSelection`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.ThiNet(sparsity=0.5)(model, task)
        >>> smaller.conv2
        Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    example: ClassVar[Settings] = {"sparsity": 0.5}

    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        return greedy_channels(contributions(systems, count)[0], keep)
