"""The runtimes that users deploy on: export, running, verification, profiles, memory."""

from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.profiling import layer_times
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify

__all__ = ["export_onnx", "export_pt2", "layer_times", "load_pt2", "open_runner", "verify"]
