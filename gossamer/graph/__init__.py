"""The structured-pruning engine: which channels belong together, and smaller copies of networks, with proof.

1. One run of the network is recorded at PyTorch's dispatcher (`tracer`).
2. Every element of every tensor is given the indices of the channels that it goes with (`channel_index`). These are
   sent through all operations (`propagation`, `rules`), which state what is coupled, equal in number, or fixed.
3. Coupled channels become groups (`coupling`, `groups`), with the counts that each can keep (`counts`).
4. Wanted fractions become a plan that runs (`solver`): counts (`widths`), a run on shapes (`shape_run`), and what to do
   where it fails (`repair`, `patches`).
5. The plan becomes a smaller network (`slicing`, `pruner`), and a proof that it computes what the original computes
   with the removed channels set to zero (`proof`).
"""

from gossamer.graph.groups import ChannelGroups, Group, find_groups
from gossamer.graph.proof import Proof
from gossamer.graph.pruner import PruningResult, prove, prune
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.graph.tracer import Trace, trace

__all__ = [
    "ChannelGroups",
    "Group",
    "Proof",
    "PruningPlan",
    "PruningResult",
    "Trace",
    "find_groups",
    "prove",
    "prune",
    "resize",
    "trace",
]
