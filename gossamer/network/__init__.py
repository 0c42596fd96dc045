"""Looking at a network and editing it."""

from gossamer.network.channels import Channels, Group, find_channels
from gossamer.network.constrain import (
    Codebook,
    Constraint,
    Grid,
    Mask,
    bake,
    constrain,
    constraints,
    held_value,
    settle,
    weights_of,
)
from gossamer.network.cost import Analysis, analyze, dense_bytes, layer_costs, total_macs, total_params
from gossamer.network.edit import Cut, resize
from gossamer.network.proof import Proof
from gossamer.network.shrink import Pruned, prove, shrink
from gossamer.network.swap import swap
from gossamer.network.trace import Trace, trace

__all__ = [
    "Analysis",
    "Channels",
    "Codebook",
    "Constraint",
    "Cut",
    "Grid",
    "Group",
    "Mask",
    "Proof",
    "Pruned",
    "Trace",
    "analyze",
    "bake",
    "constrain",
    "constraints",
    "dense_bytes",
    "find_channels",
    "held_value",
    "layer_costs",
    "prove",
    "resize",
    "settle",
    "shrink",
    "swap",
    "total_macs",
    "total_params",
    "trace",
    "weights_of",
]
