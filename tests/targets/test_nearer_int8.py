"""Which of two int8 files stays: the one whose outputs are nearer on calibration samples."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from gossamer.core.progress import Quiet
from gossamer.errors import BadInput
from gossamer.targets.executorch import bounds_as_ranges
from gossamer.targets.int8 import write_nearer

SAMPLES = [(torch.rand(1, 8, generator=torch.Generator().manual_seed(i)),) for i in range(8)]


class Heard(Quiet):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def written(path: Path, noise: dict[str, float], heard: Heard) -> str:
    """What stays where the files of the network as it is and of the rounded one are off by so much."""
    model, offset = network(), dict[Path, float]()

    def write(one: nn.Module, to: Path) -> None:
        kind = "rounded" if isinstance(one, GraphModule) else "plain"
        to.write_text(kind)
        offset[to] = noise[kind]

    def run(file: Path):
        added = offset[file]
        return lambda *x: (model(*x) + added,)

    with torch.no_grad():
        write_nearer(write, run, model, path, SAMPLES, least_step=0.0, progress=heard)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text()


@pytest.mark.parametrize(
    ("noise", "stays"),
    [
        ({"plain": 0.2, "rounded": 0.1}, "rounded"),
        ({"plain": 0.1, "rounded": 0.2}, "plain"),
        ({"plain": float("nan"), "rounded": 0.2}, "rounded"),
        ({"plain": 0.1, "rounded": float("nan")}, "plain"),
    ],
)
def test_the_nearer_file_stays(tmp_path: Path, noise: dict[str, float], stays: str) -> None:
    heard = Heard()
    assert written(tmp_path / "net.pte", noise, heard) == stays
    assert "nearest rounding" in heard.messages[-1] and "GPTQ" in heard.messages[-1]


def test_what_cannot_be_rounded_keeps_the_rounding_of_the_quantizer_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Tensor, **__: float) -> None:
        raise BadInput("an operation that ONNX does not have")

    monkeypatch.setattr("gossamer.ptq.exported.rounded_program", refused)
    heard = Heard()
    assert written(tmp_path / "net.pte", {"plain": 0.1}, heard) == "plain"
    assert "an operation that ONNX does not have" in heard.messages[0]


def test_a_relu6_right_behind_a_layer_becomes_a_relu_whose_range_is_its_bound() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.relu6(self.one(x))
            y = self.two(x)  # read twice: what its ReLU6 does not read must not change
            x = nn.functional.hardtanh(self.three(nn.functional.relu6(y) + y), 0.0, 2.0)
            return nn.functional.relu6(x + y)

    graph = torch.export.export(Net().eval(), SAMPLES[0]).module()
    assert sorted(bounds_as_ranges(graph).values()) == [2.0, 6.0]
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("aten.relu.default") == 2 and targets.count("aten.relu6.default") == 2


def test_a_rounded_network_that_the_quantizer_refuses_leaves_the_other_file(tmp_path: Path) -> None:
    heard = Heard()
    assert written(tmp_path / "net.pte", {"plain": 0.1}, heard) == "plain"  # it knows no rounded network
    assert any("GPTQ: left out: KeyError" in message for message in heard.messages)
    with pytest.raises(KeyError, match="plain"):
        written(tmp_path / "none.pte", {"rounded": 0.1}, heard)
    assert not (tmp_path / "none.pte").exists()
