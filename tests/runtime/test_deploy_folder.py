"""Contract: the folder to ship runs without gossamer, and its programs see what the network was judged on."""

import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gossamer.core.preprocessing import Preprocessing
from gossamer.data.batches import Normalisation
from gossamer.data.images import decode_image
from gossamer.runtime.deploy_folder import write_deploy_folder
from gossamer.runtime.onnx_export import export_onnx

USUAL: dict[str, Any] = {"size": 8, "channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
FORMS = [
    Preprocessing(**USUAL),
    Preprocessing(**USUAL | {"size": 6, "width": 9, "crop": 0.875, "interpolation": "bicubic", "order": "bgr"}),
    Preprocessing(**USUAL | {"crop": None, "layout": "nhwc", "background": "black"}),
    Preprocessing(size=8, channels=1, mean=(0.0,), std=(1 / 255,)),
]


def made(folder: Path, form: Preprocessing) -> Path:
    (folder / "model.onnx").write_bytes(network(form))
    return write_deploy_folder(
        folder / "model.onnx", folder / "deploy", asdict(form) | {"classes": ["cat", "dog", "owl"]}
    )


@functools.cache
def network(form: Preprocessing) -> bytes:
    """An exported network for such images."""
    last_first = form.layout == "nhwc"
    height, width = form.sides
    shape = (1, height, width, form.channels) if last_first else (1, form.channels, height, width)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(height * width * form.channels, 3)).eval()
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(net, torch.rand(shape), Path(folder) / "model.onnx").read_bytes()


def photo(path: Path, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, len(mode)), np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def loaded(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.slow
def test_the_program_prepares_images_as_the_data_were(tmp_path: Path, form: Preprocessing, mode: str) -> None:
    path = photo(tmp_path / "a.png", mode)
    expected = Normalisation(mean=form.mean, std=form.std)(decode_image(path, form)[None])
    expected = expected.permute(0, 2, 3, 1) if form.layout == "nhwc" else expected
    given = torch.from_numpy(loaded(made(tmp_path, form)).prepared(path))
    # What is transparent is laid on the ground before or after scaling: one step of a pixel apart.
    near = 0.51 / 255 / min(form.std) if mode == "RGB" else 2.1 / 255 / min(form.std)
    assert given.shape == expected.shape and float((given - expected).abs().max()) < near


@pytest.mark.parametrize(("kind", "high"), [("uint16", 65535.0), ("float32", 4.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_program_prepares_deep_images_by_their_range(tmp_path: Path, kind: str, high: float, channels: int) -> None:
    values = np.random.default_rng(0).random((20, 30)) * high
    path = tmp_path / "a.tif"
    Image.fromarray(values.astype(kind)).save(path)
    numbers = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    form = Preprocessing(size=8, channels=channels, range=(0.0, high), **numbers)
    expected = Normalisation(**numbers)(decode_image(path, form)[None])
    folder = made(tmp_path, form)
    given = torch.from_numpy(loaded(folder).prepared(path))
    assert given.shape == expected.shape and torch.allclose(given, expected, atol=1e-5)
    assert [name for name in ("run.mjs", "run.cpp", "Run.kt") if (folder / name).exists()] == []
    shallow = torch.from_numpy(loaded(folder).prepared(photo(tmp_path / "b.png")))
    expected = Normalisation(**numbers)(decode_image(tmp_path / "b.png", form)[None])
    assert float((shallow - expected).abs().max()) < 0.51 / 255 / 0.25


@pytest.mark.slow
def test_the_program_and_the_measurement_run_alone(tmp_path: Path) -> None:
    folder = made(tmp_path, FORMS[0])
    program = [sys.executable, "run.py", str(photo(tmp_path / "a.png"))]
    said = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    assert {one.split("=")[0] for one in said.stdout.split()[1:]} == {"cat", "dog", "owl"}
    command = [sys.executable, "bench_on_device.py", "--repeats", "4", "--threads", "1"]
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    profile = json.loads((folder / "profile.json").read_text())
    [network] = profile["networks"]
    assert network["file"] == "model.onnx" and network["median_ms"] > 0 and profile["threads"] == 1
    assert any(row["op"] in ("Gemm", "MatMul") and row["ms"] >= 0 for row in network["nodes"])
    assert not list(folder.glob("bench_on_device*.json"))  # the runtime's log


@pytest.mark.parametrize("form", FORMS)
def test_no_mark_is_left_in_a_program(tmp_path: Path, form: Preprocessing) -> None:
    folder = made(tmp_path, form)
    for name in ("run.py", "run.mjs", "run.cpp", "Run.kt"):
        text = (folder / name).read_text()
        assert "MODEL_FILE" not in text and "/*" not in text.replace("/**", ""), name
    if node := shutil.which("node"):
        subprocess.run([node, "--check", str(folder / "run.mjs")], check=True, capture_output=True)


def test_a_network_that_takes_no_images_gets_the_measurement_alone(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(2, 2), torch.rand(1, 2), tmp_path / "model.onnx")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "old").write_text("")
    folder = write_deploy_folder(path, tmp_path / "deploy", {})
    assert sorted(one.name for one in folder.iterdir()) == ["bench_on_device.py", "model.onnx"]
