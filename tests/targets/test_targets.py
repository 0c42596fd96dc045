"""Contract of the targets: what is written is run, gives what the network gives, and what is missing is named.

Each target is skipped where its packages are not installed.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, ExportMismatch, MissingExtra
from gossamer.targets import TARGETS, compare_target, open_target, write_target
from gossamer.targets.litert import _decoded, _encoded


class Net(nn.Module):
    """A convolution, a depthwise one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


LOADER = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "onnx-binary"])  # which has its own tests
@pytest.mark.slow
def test_a_written_network_gives_what_the_network_gives(tmp_path: Path, name: str) -> None:
    model, path = Net().eval(), tmp_path / f"net{TARGETS[name].suffix}"
    try:
        write_target(name, model, (LOADER[0],), path, calibration=LOADER)
        found = compare_target(name, model, path, LOADER)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert found.samples == 4 and found.cosine > 0.99
    assert found.relative < (0.3 if TARGETS[name].quantized else TARGETS[name].tolerance)


def test_a_network_that_gives_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().eval()
    opened = staticmethod(lambda path: lambda *x: (model(*x) * 1.1,))
    other = type("Module", (), {"open_executorch": opened, "open_litert": opened})
    monkeypatch.setattr("gossamer.targets.registry.importlib.import_module", lambda _: other)
    with pytest.raises(ExportMismatch, match=r"relative"):
        compare_target("executorch", model, tmp_path / "net.pte", LOADER)
    found = compare_target("litert-int8", model, tmp_path / "net.tflite", LOADER)
    assert found.relative == pytest.approx(0.1, rel=1e-3) and found.top1 == 1 and found.samples == 4


@pytest.mark.parametrize("name", ["executorch", "litert", "ncnn"])
def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for package in ("executorch", "litert_torch", "pnnx"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        for known in [one for one in __import__("sys").modules if one.startswith(f"{package}.")]:
            monkeypatch.delitem(__import__("sys").modules, known)
    with pytest.raises(MissingExtra, match=rf"gossamer\[{name}\]"):
        write_target(name, Net().eval(), (LOADER[0],), tmp_path / f"net{TARGETS[name].suffix}")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"end in \.pte"):
        write_target("executorch", Net(), (LOADER[0],), tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="calibrate"):
        write_target("litert-int8", Net(), (LOADER[0],), tmp_path / "net.tflite")
    with pytest.raises(BadInput, match="unknown target"):
        open_target("litert_int8", tmp_path / "net.tflite")


def test_numbers_come_back_from_eight_bits() -> None:
    import numpy as np

    row = {"dtype": np.int8, "quantization": (0.5, -3)}
    x = np.array([0.0, 1.5, -2.0], np.float32)
    assert _encoded(x, row).tolist() == [-3, 0, -7] and _decoded(_encoded(x, row), row).tolist() == x.tolist()
    assert _encoded(np.array([1e6], np.float32), row).tolist() == [127]
