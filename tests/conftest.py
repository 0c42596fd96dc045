"""What several test files share."""

import functools
import gc
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: its threads sleep while they wait, also in processes that tests start. Left alone they burn
# the time of a core for milliseconds at the end of each operation on two threads, which the other tests then lack.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch.export.decomp_utils
import typer.testing
from hypothesis import HealthCheck, settings
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from gossamer.runtime.onnx_export import export_onnx

pytest_plugins = ["recorder", "pytester"]

# A slow or busy machine is no error.
settings.register_profile("gossamer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gossamer")

# torch parses its 500 translations to ONNX again for each export, which takes longer than a small network's own.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

# And it lists all its operations twice for each export, a fifth of the time; no test adds any.
composite = functools.cache(torch._export.utils._collect_all_valid_cia_ops)
for module in (torch._export.utils, torch.export.exported_program, torch.export.decomp_utils):
    module._collect_all_valid_cia_ops = composite

# typer builds all commands again for each line that is run, which takes longer than most of what is tested of them.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

# Exports make millions of objects that live long; the default looks through all of them after every 700.
gc.set_threshold(50_000, 20, 50)

USER_CODE = """
import torch
from torch import nn
from gossamer import Task

class Net(nn.Sequential):
    def __init__(self, outputs=2):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs),
        )

def one_output():
    return Net(1)

ready = Net()

def task():
    target = torch.arange(64) % 2
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 2 * target.view(-1, 1, 1, 1)
    batches = [(images[i : i + 16], target[i : i + 16]) for i in range(0, 64, 16)]
    return Task(
        name="bright", train=batches, validation=batches, test=batches[:2], calibration=batches,
        example_inputs=(images[:2],), classes=("dark", "bright"),
    )

def unlabelled():
    batches = [x for x, _ in task().validation]
    return Task(
        name="unlabelled", train=batches, validation=batches, calibration=batches, example_inputs=(batches[0][:2],),
    )

def broken():
    raise ValueError("the moon is full")

def needs(something):
    return something

number = 3
"""


@contextmanager
def measured_briefly(*, tried: bool = False) -> Iterator[None]:
    """Jobs without what is tested elsewhere and takes most of a small job's time.

    One runtime, no measured memory, each original exported once. tried: whether the export is tried at the start.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gossamer.jobs.exporting.runtimes", lambda goal: ["onnxruntime"])
        patch.setattr("gossamer.jobs.exporting.peak_memory", lambda *args, **kwargs: 1)
        patch.setattr("gossamer.jobs.exporting.export_onnx", originals_exported_once)
        if not tried:
            patch.setattr("gossamer.jobs.preflight.PreflightCheck.deploy", lambda *args: None)
        yield


EXPORTED: dict[str, bytes] = {}  # files of original networks, by what tells these apart


def originals_exported_once(model: nn.Module, inputs: tuple[Any, ...], path: Path, **options: Any) -> Path:
    """Original networks of these tests differ by nothing but classes, what they print, weights and inputs."""
    if path.name != "original.onnx":
        return export_onnx(model, inputs, path, **options)
    digest = hashlib.sha256(f"{type(model)} {model} {[getattr(x, 'shape', x) for x in inputs]}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    key = digest.hexdigest()
    if key not in EXPORTED:
        EXPORTED[key] = export_onnx(model, inputs, path, **options).read_bytes()
    path.write_bytes(EXPORTED[key])
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on which tests ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture
def quick() -> Iterator[None]:
    with measured_briefly():
        yield


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's own code, as the current one."""
    (tmp_path / "mycode.py").write_text(USER_CODE)
    (tmp_path / "shattered.py").write_text("import gossamer\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mycode", "shattered", "needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def pytest_collection_finish() -> None:
    """What imports and collecting made lives to the end: the collector need not look through it again."""
    gc.collect()
    gc.freeze()
