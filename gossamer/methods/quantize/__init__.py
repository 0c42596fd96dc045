"""Quantization: weights take few equally spaced values."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("quantize")
