"""Give it your trained network; get the same network back, smaller, faster, ready to deploy, with the evidence.

    import gossamer
    result = gossamer.compress(model, task, goal=gossamer.Goal(max_drop=0.5, speedup=4))
    result.model; result.records; result.save("out/")

The public names are imported when they are first used: `import gossamer` itself imports nothing. It only keeps
libraries from reporting what they are used for (`QUIET`).
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.compact.inspection import inspect_file
    from gossamer.compact.reading import load, read_tensor
    from gossamer.compact.writing import save
    from gossamer.core.context import Context
    from gossamer.core.goal import Goal
    from gossamer.core.metric import Metric
    from gossamer.core.record import Record
    from gossamer.core.task import Task
    from gossamer.data import load_task
    from gossamer.errors import BadInput, GossamerError
    from gossamer.jobs.compression import compress
    from gossamer.jobs.distillation import distill
    from gossamer.jobs.job import Artifact
    from gossamer.jobs.recipe import Recipe
    from gossamer.measure import latency
    from gossamer.methods._base import Method
    from gossamer.methods.prune.channels import prune_channels
    from gossamer.models import build, load_weights, pretrained
    from gossamer.modules.cost import analyze
    from gossamer.ptq.fallback import quantize_int8
    from gossamer.report import write_report
    from gossamer.runtime.onnx_export import export_onnx
    from gossamer.runtime.runners import open_runner
    from gossamer.runtime.verification import verify
    from gossamer.search.advise import Advice, advise
    from gossamer.train import Distillation, Training, fit

# Read when the library is loaded, so they stand before any import. What the user has set himself counts.
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

_HOME = {
    "gossamer.jobs.compression": ("compress",),
    "gossamer.data": ("load_task",),
    "gossamer.runtime": ("export_onnx", "export_pt2", "open_runner", "verify"),
    "gossamer.ptq": ("quantize_int8",),
    "gossamer.compact": ("inspect_file", "load", "read_tensor", "save"),
    "gossamer.jobs.distillation": ("distill",),
    "gossamer.jobs.job": ("Artifact",),
    "gossamer.errors": ("BadInput", "GossamerError"),
    "gossamer.core.goal": ("Goal",),
    "gossamer.core.metric": ("Metric",),
    "gossamer.measure": ("latency",),
    "gossamer.methods._base": ("Method",),
    "gossamer.methods.prune.channels": ("prune_channels",),
    "gossamer.models": ("build", "load_weights", "pretrained"),
    "gossamer.modules": ("analyze",),
    "gossamer.jobs.recipe": ("Recipe",),
    "gossamer.core.record": ("Record",),
    "gossamer.report": ("write_report",),
    "gossamer.core.context": ("Context",),
    "gossamer.search.advise": ("Advice", "advise"),
    "gossamer.core.task": ("Task",),
    "gossamer.train": ("Distillation", "Training", "fit"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Advice",
    "Artifact",
    "BadInput",
    "Context",
    "Distillation",
    "Goal",
    "GossamerError",
    "Method",
    "Metric",
    "Recipe",
    "Record",
    "Task",
    "Training",
    "advise",
    "analyze",
    "build",
    "compress",
    "distill",
    "export_onnx",
    "export_pt2",
    "fit",
    "inspect_file",
    "latency",
    "load",
    "load_task",
    "load_weights",
    "open_runner",
    "pretrained",
    "prune_channels",
    "quantize_int8",
    "read_tensor",
    "save",
    "verify",
    "write_report",
]


# Reachable as `gossamer.methods.prune.Magnitude` without another import.
_PACKAGES = (
    *("calibration", "constraints", "data", "edits", "graph", "losses", "measure", "methods", "models", "modules"),
    *("ptq", "report", "runtime", "search", "task", "train"),
)


def _require(module: str) -> Any:
    return importlib.import_module("gossamer.errors").require(module)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("gossamer")
    elif name in _MODULE:
        value = getattr(_require(_MODULE[name]), name)
    elif name in _PACKAGES:
        value = _require(f"gossamer.{name}")
    else:
        near = importlib.import_module("difflib").get_close_matches(name, [*__all__, *_PACKAGES], n=1)
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}{f'; nearest: {near[0]!r}' if near else ''}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES, "__version__"})
