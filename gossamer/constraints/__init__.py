"""Constraints: sets that weights are held to while they train.

A constraint is a parametrization of a weight: a mask, a codebook, a grid of equally spaced values, or a rule that
generates the weight from fewer numbers. Constraints stack; training goes on under them; `bake` turns them into plain
weights at the end of a job. `serialization` writes a constrained network to disk and back.
"""

from gossamer.constraints.base import (
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

__all__ = [
    "Codebook",
    "Constraint",
    "Grid",
    "Mask",
    "bake",
    "constrain",
    "constraints",
    "held_value",
    "settle",
    "weights_of",
]
