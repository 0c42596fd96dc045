"""Constraints: sets in which weights stay while they train.

A constraint is a parametrization of a weight (`base`): a mask, a codebook, a grid of equally spaced values, or a rule
that generates the weight from fewer numbers. Constraints stack, and training goes on under them (`apply`);
`materialize` turns them into plain weights at the end of a job. `serialization` writes a constrained network to disk
and reads it back.
"""

from gossamer.constraints.apply import constrain, constraints, finalize, materialize
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of

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
