"""Low-rank factorization: replace a layer by a chain of cheaper ordinary layers."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("lowrank")
