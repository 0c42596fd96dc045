"""torch's table of ONNX operators is built once, and again when there are new operations; without it all goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.runtime import onnx_registry
from gossamer.runtime.onnx_export import export_onnx

NET, X = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.ones(1, 4)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each time that torch builds its table."""
    kind = onnx_registry._module().ONNXRegistry
    own, found = kind.from_torchlib, list[Any]()
    monkeypatch.setattr(kind, "from_torchlib", lambda **options: [found.append(options), own(**options)][1])
    monkeypatch.setattr(onnx_registry, "_TABLES", {})
    return found


def test_it_is_built_once_and_again_for_new_operations(builds: list[Any], tmp_path: Path) -> None:
    before = onnx_registry._module().ONNXRegistry.from_torchlib
    export_onnx(NET, X, tmp_path / "first.onnx")  # the first export of a process registers operations itself
    export_onnx(NET, X, tmp_path / "first.onnx")
    builds.clear()
    first, second = (export_onnx(NET, X, tmp_path / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second and not builds
    library = torch.library.Library("gossamer_test_registry", "DEF")
    library.define("new(Tensor x) -> Tensor")
    export_onnx(NET, X, tmp_path / "c.onnx")
    assert len(builds) == 1
    assert onnx_registry._module().ONNXRegistry.from_torchlib is before


def test_what_an_export_adds_is_not_in_the_next_one(builds: list[Any]) -> None:
    kind = onnx_registry._module().ONNXRegistry
    with onnx_registry.one_registry():
        table = kind().from_torchlib(opset_version=18)
        name = next(iter(table.functions))
        table.functions[name].clear()
        table.functions["of.this.export"] = []
        again = kind().from_torchlib(opset_version=18)
        assert again.functions[name] and "of.this.export" not in again.functions and again.opset_version == 18
        assert len(builds) == 1
        kind().from_torchlib(opset_version=20)
    assert len(builds) == 2


def test_without_torchs_private_class_exports_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_registry, "PRIVATE", "torch.onnx.no_such_module")
    assert export_onnx(NET, X, tmp_path / "net.onnx").stat().st_size > 0
