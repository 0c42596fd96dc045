"""The structured-pruning engine: which channels belong together, and smaller copies of networks, with proof.

One run of the network is recorded at PyTorch's dispatcher (`tracer`). Every element of every tensor is given the
indices of the channels that it goes with (`channel_index`), and these are sent through all operations (`propagation`,
`rules`). What is coupled becomes groups (`coupling`, `groups`). A wanted width of each group becomes a plan that can
run (`solver`), a smaller network (`slicing`, `pruner`), and a proof that it computes what the original computes with
the removed channels set to zero (`proof`).
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
