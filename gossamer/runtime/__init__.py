"""The runtimes that users deploy on: export, running, verification, profiles.

The names are imported when they are first used: `.onnx` files and their runtimes come with the extra `deploy`.
"""

from typing import TYPE_CHECKING

from gossamer.core.lazy import lazily

if TYPE_CHECKING:
    from gossamer.runtime.onnx_export import export_onnx
    from gossamer.runtime.profiling import layer_times
    from gossamer.runtime.pt2.file import export_pt2, load_pt2
    from gossamer.runtime.runners import open_runner
    from gossamer.runtime.verification import verify

__all__ = ["export_onnx", "export_pt2", "layer_times", "load_pt2", "open_runner", "verify"]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "onnx_export": ("export_onnx",),
        "profiling": ("layer_times",),
        "pt2.file": ("export_pt2", "load_pt2"),
        "runners": ("open_runner",),
        "verification": ("verify",),
    },
)
