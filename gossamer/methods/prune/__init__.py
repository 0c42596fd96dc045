"""Pruning: weights, channels and heads that are missed least are removed."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("prune")
