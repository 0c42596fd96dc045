"""Configuration reset: another structure in the place of blocks, layers or heads."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("restructure")
