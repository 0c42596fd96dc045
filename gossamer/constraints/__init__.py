"""Constraints: sets that weights are held to while they train.

A constraint is a parametrization of a weight: a mask, a codebook, a grid of equally spaced values, or a rule that
generates the weight from fewer numbers. Constraints stack; training goes on under them; `materialize` turns them into
plain weights at the end of a job. `serialization` writes a constrained network to disk and back.
"""

from gossamer.constraints.base import (
    Codebook,
    Constraint,
    Grid,
    Mask,
    constrain,
    constraints,
    effective_weight,
    finalize,
    materialize,
    weights_of,
)

__all__ = [
    "Codebook",
    "Constraint",
    "Grid",
    "Mask",
    "constrain",
    "constraints",
    "effective_weight",
    "finalize",
    "materialize",
    "weights_of",
]
