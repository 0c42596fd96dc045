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
    from gossamer.data import load_task
    from gossamer.deploy import export_onnx, open_runner, quantize_ladder
    from gossamer.deploy.gsr import inspect_file, load, read_tensor, save
    from gossamer.deploy.verify import verify
    from gossamer.distillation import distill
    from gossamer.errors import BadInput, GossamerError
    from gossamer.goal import Goal
    from gossamer.job import Artifact, compress
    from gossamer.measure import latency
    from gossamer.methods.base import Method
    from gossamer.methods.prune.channels import prune_channels
    from gossamer.models import build, load_weights, pretrained
    from gossamer.network import analyze
    from gossamer.recipe import Recipe
    from gossamer.record import Record
    from gossamer.report import write_report
    from gossamer.run import Run
    from gossamer.search.advise import Advice, advise
    from gossamer.task import Task
    from gossamer.train import Distillation, Training, fit

# Read when the library is loaded, so they stand before any import. What the user has set himself counts.
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

_HOME = {
    "gossamer.job": ("Artifact", "compress"),
    "gossamer.data": ("load_task",),
    "gossamer.deploy": ("export_onnx", "open_runner", "quantize_ladder", "verify"),
    "gossamer.deploy.gsr": ("inspect_file", "load", "read_tensor", "save"),
    "gossamer.distillation": ("distill",),
    "gossamer.errors": ("BadInput", "GossamerError"),
    "gossamer.goal": ("Goal",),
    "gossamer.measure": ("latency",),
    "gossamer.methods.base": ("Method",),
    "gossamer.methods.prune.channels": ("prune_channels",),
    "gossamer.models": ("build", "load_weights", "pretrained"),
    "gossamer.network": ("analyze",),
    "gossamer.recipe": ("Recipe",),
    "gossamer.record": ("Record",),
    "gossamer.report": ("write_report",),
    "gossamer.run": ("Run",),
    "gossamer.search.advise": ("Advice", "advise"),
    "gossamer.task": ("Task",),
    "gossamer.train": ("Distillation", "Training", "fit"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Advice",
    "Artifact",
    "BadInput",
    "Distillation",
    "Goal",
    "GossamerError",
    "Method",
    "Recipe",
    "Record",
    "Run",
    "Task",
    "Training",
    "advise",
    "analyze",
    "build",
    "compress",
    "distill",
    "export_onnx",
    "fit",
    "inspect_file",
    "latency",
    "load",
    "load_task",
    "load_weights",
    "open_runner",
    "pretrained",
    "prune_channels",
    "quantize_ladder",
    "read_tensor",
    "save",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
