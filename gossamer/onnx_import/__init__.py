"""ONNX files as networks: read, checked against ONNX Runtime node by node, and from then on like any other module.

Layers with weights become PyTorch's own (`Conv2d`, `Linear`, `BatchNorm`, `LSTM`, ...), so that every method finds
them; all other nodes become modules without weights. Sizes that the file computes stay Python integers, so that
channels can be cut and other batches can be run.
"""

from gossamer.onnx_import.check import NodeDifference, check_import, node_differences
from gossamer.onnx_import.network import OnnxNetwork
from gossamer.onnx_import.norms import put_back_norms
from gossamer.onnx_import.reading import example_inputs, import_onnx

__all__ = [
    "NodeDifference",
    "OnnxNetwork",
    "check_import",
    "example_inputs",
    "import_onnx",
    "node_differences",
    "put_back_norms",
]
