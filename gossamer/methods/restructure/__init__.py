"""Configuration reset: replace blocks, layers or heads of a trained network by cheaper structures."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("restructure")
