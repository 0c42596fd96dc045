"""Deploying: ONNX files, runtimes, int8, and the check that a deployed network computes what the trained one does."""

from gossamer.deploy.int8 import Quantized, float32_correct, quantize_ladder
from gossamer.deploy.onnx_export import export_onnx
from gossamer.deploy.profile import layer_times
from gossamer.deploy.pt2 import export_pt2, load_pt2
from gossamer.deploy.runner import open_runner
from gossamer.deploy.verify import verify

__all__ = [
    "Quantized",
    "export_onnx",
    "export_pt2",
    "float32_correct",
    "layer_times",
    "load_pt2",
    "open_runner",
    "quantize_ladder",
    "verify",
]
