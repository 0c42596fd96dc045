"""Deploying: ONNX files, runtimes, int8, and the check that a deployed network computes what the trained one does."""

from gossamer.deploy.onnx_export import export_onnx
from gossamer.deploy.runner import open_runner

__all__ = ["export_onnx", "open_runner"]
