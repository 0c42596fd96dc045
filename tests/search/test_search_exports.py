"""Graphs that are exported once for many networks."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer import Context
from gossamer.core.task import Task
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.search import exports
from gossamer.search.exports import Exports


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that went through the exporter."""
    found = list[nn.Module]()
    full = exports.export_onnx

    def noted(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> Path:
        found.append(model)
        return full(model, example, path)

    monkeypatch.setattr(exports, "export_onnx", noted)
    return found


def gives(path: Path, model: nn.Module, x: Tensor) -> None:
    """The file computes what the network does, for another number of samples as well."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.cat([x, x])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model.eval()(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_networks_of_other_widths_and_weights_take_the_graph_that_is_there(
    exported: list[nn.Module], tmp_path: Path
) -> None:
    model, task, known = learned(), stripes(), Exports(stripes())
    narrow = ChannelPruning(sparsity=0.5, reconstruct=False)(model, task, Context()).model
    for number, one in enumerate((model, narrow, tiny().eval())):
        gives(known.write(one, tmp_path / f"{number}.onnx"), one, task.example_inputs[0])
    assert exported == [model]


@pytest.mark.slow
def test_networks_without_some_blocks_take_the_graph_that_is_there(exported: list[nn.Module], tmp_path: Path) -> None:
    model, task, known = learned(), stripes(), Exports(stripes())
    short = BlockRemoval(names=("body.1",))(model, task, Context()).model
    shorter = BlockRemoval(names=("body.0", "body.2"))(model, task, Context()).model
    narrow = ChannelPruning(sparsity=0.5, reconstruct=False)(short, task, Context()).model
    for number, one in enumerate((model, short, shorter, narrow)):
        gives(known.write(one, tmp_path / f"{number}.onnx"), one, task.example_inputs[0])
    assert exported == [model]


@pytest.mark.slow
def test_networks_of_other_layers_are_exported(exported: list[nn.Module], tmp_path: Path) -> None:
    model, task, known = learned(), stripes(), Exports(stripes())
    gated, wider = learned(), learned()
    gated.body[1] = nn.Sigmoid()  # type: ignore[index]  # no block that gives what it is given
    wider.body.append(nn.ReLU())  # type: ignore[operator, union-attr]
    for number, one in enumerate((model, gated, wider)):
        gives(known.write(one, tmp_path / f"{number}.onnx"), one, task.example_inputs[0])
    assert exported == [model, gated, wider]


class Pooled(nn.Module):
    """The same layers, whatever the size of its windows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.conv, self.head = size, nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.conv(x), self.size).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_where_the_graph_computes_something_else_the_network_is_exported(
    exported: list[nn.Module], tmp_path: Path
) -> None:
    task: Task = stripes()
    known, networks = Exports(task), [Pooled(2).eval(), Pooled(3).eval()]
    for number, one in enumerate(networks):
        gives(known.write(one, tmp_path / f"{number}.onnx"), one, task.example_inputs[0])
    assert exported == networks
