"""OSSCAR (one-shot structured pruning by combinatorial optimization): the channels on which a refit loses least.

What it does: one group of channels after the other, channels leave one by one, each time the one whose absence the
weights of the other channels make up for best. Then pairs of channels are exchanged as long as that lowers the error.
Least squares fits the weights of the layers behind to the outputs of the uncut network. Nothing is trained; a few
hundred samples without labels are enough.
Cost: for each group, runs of both networks on some batches, an inverse of the Gram matrix of each layer behind, and a
linear system for each exchange that is tried.
When it fails: the error is that of the layers behind, not of the loss: a channel that matters little to them can matter
to the classes.
Equation: min over S, W of |Y - X_S W|^2; the error without i rises by W_i^T ([H^-1]_ii)^-1 W_i, H = X_S^T X_S.
Source: Meng et al. 2024, arXiv:2403.12983, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from gossamer.calibration.channel_selection import GramSystem, best_channels, contributions, greedy_channels
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods.prune._selection import ChannelSelection


@dataclass(frozen=True, kw_only=True)
class Osscar(ChannelSelection):
    """OSSCAR (Meng et al. 2024). Give one of sparsity, speedup, macs, params and widths.

    Args:
        swaps: exchanges of pairs in each group at most.
        sparsity, speedup, macs, params, widths, residual, layers, ignore: how far to go, and where; see
            `ChannelSelection`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.Osscar(sparsity=0.5)(model, task)
        >>> smaller.conv2
        Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    example: ClassVar[Settings] = {"sparsity": 0.5}

    swaps: Annotated[int, Range(0, 10_000)] = 10

    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        greedy = greedy_channels(contributions(systems, count)[0], keep)
        return best_channels(systems, count, keep, starts=[greedy], swaps=self.swaps)
