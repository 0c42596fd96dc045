"""The zoo: the survey's architectures by name, and trained checkpoints."""

from gossamer.models.shipped import ShippedWeights, checkpoints, pretrained
from gossamer.models.weights import load_weights, save_weights
from gossamer.models.zoo import ENTRIES, build, build_for

__all__ = [
    "ENTRIES",
    "ShippedWeights",
    "build",
    "build_for",
    "checkpoints",
    "load_weights",
    "pretrained",
    "save_weights",
]
