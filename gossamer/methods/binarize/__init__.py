"""Binarization: weights, and with some methods the inputs of layers, take two or three values."""

from gossamer.methods._catalogue import offered

__getattr__, __dir__ = offered("binarize")
