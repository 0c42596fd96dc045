"""Batch norms that an exporter has folded are put back, and change nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.onnx_import import OnnxNetwork, import_onnx, put_back_norms


class Folded(nn.Module):
    """What is left of a network after an export: convolutions with biases, one norm that stayed, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.third, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.head(self.third(x).clamp(0, 6)).mean((2, 3)) * 10


@pytest.fixture
def folded(tmp_path: Path) -> tuple[OnnxNetwork, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 9, 9)
    return import_onnx(gossamer.export_onnx(Folded().eval(), (x,), tmp_path / "folded.onnx")), x


def batches(x: Tensor) -> list[tuple[Tensor, None]]:
    return [(x + i / 10, None) for i in range(3)]


def test_they_undo_themselves_and_leave_the_output_layer_alone(folded: tuple[OnnxNetwork, Tensor]) -> None:
    network, x = folded
    before = network(x)
    assert put_back_norms(network, batches(x)) == 3
    assert torch.allclose(network(x), before, atol=1e-5) and not network.training
    kinds = [type(module).__name__ for module in network.children()]
    assert kinds.count("Sequential") == 3 and kinds.count("Conv2d") == 1
    assert put_back_norms(network, batches(x)) == 0  # once is enough


def test_their_statistics_are_those_of_the_convolution(folded: tuple[OnnxNetwork, Tensor]) -> None:
    network, x = folded
    put_back_norms(network, batches(x))
    convolution, norm = next(module for module in network.children() if isinstance(module, nn.Sequential))
    outputs = torch.cat([convolution(one) for one, _ in batches(x)]).movedim(1, 0).flatten(1)
    assert torch.allclose(norm.running_mean, outputs.mean(1), atol=1e-5)
    assert torch.allclose(norm.running_var, outputs.var(1, correction=0), atol=1e-4)


def test_a_channel_with_too_few_values_gets_none(folded: tuple[OnnxNetwork, Tensor]) -> None:
    network, x = folded
    assert put_back_norms(network, [(x[:1, :, :3, :3], None)]) == 0


@pytest.mark.slow
def test_they_are_folded_away_again_in_an_export(folded: tuple[OnnxNetwork, Tensor], tmp_path: Path) -> None:
    network, x = folded
    before = network(x)
    put_back_norms(network, batches(x))
    again = import_onnx(gossamer.export_onnx(network, (x,), tmp_path / "again.onnx"))
    assert not [m for m in again.modules() if "Norm" in type(m).__name__]
    assert torch.allclose(again(x), before, atol=1e-4)
