"""Every method of the survey and beyond, one file each: `gossamer.methods.prune.Magnitude(sparsity=0.5)`.

A method is a frozen value of hyper-parameters. The folders are the schemes: `prune`, `share`, `quantize`, `binarize`,
`lowrank`, `restructure`, `distill`. Files whose names begin with an underscore are what several methods share.
"""

from gossamer.methods import binarize, distill, lowrank, prune, quantize, restructure, share
from gossamer.methods._base import Method
from gossamer.methods._catalogue import catalogue

__all__ = ["Method", "binarize", "catalogue", "distill", "lowrank", "prune", "quantize", "restructure", "share"]
