"""Networks out of `.gsr` files on bits: what the network computes, whatever stands between its binary layers."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.compact.writing import save
from gossamer.errors import BadInput
from gossamer.modules.binary import BinaryConv2d, BinaryLinear, ShiftedPReLU
from gossamer.runtime.binary import runner as runner_module
from gossamer.runtime.binary.plan import FromNumbers, FromProducts
from gossamer.runtime.binary.runner import BinaryRunner
from gossamer.runtime.runners import open_runner


def ready(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with binary weights and batch norms that do something, some of them turned."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for parameter in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(parameter)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        if isinstance(module, BinaryConv2d | BinaryLinear | ZeroPadded):
            signs = torch.randn_like(module.weight).sign()
            scale = torch.rand(len(signs)).add(0.5).view(-1, *[1] * (signs.dim() - 1))
            module.weight.data = signs * scale
    return network.eval()


class ZeroPadded(nn.Conv2d):
    """A user's own binary convolution: padded by zeros, its sign of another make."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x >= 0, 1.0, -1.0))


class Residual(nn.Module):
    """A block whose numbers are read twice, as Bi-Real networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = BinaryConv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = ShiftedPReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.norm(self.conv(x)))  # type: ignore[no-any-return]


def conv(inputs: int, outputs: int, kernel: int = 3, **more: Any) -> BinaryConv2d:
    return BinaryConv2d(inputs, outputs, kernel, **{"padding": kernel // 2, "norm": "batch", **more})


NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {  # layers, on bits, written by products
    "a chain": (lambda: [conv(3, 8), conv(8, 40, shift=True), ShiftedPReLU(40), conv(40, 8, 1)], 3, 2),
    "pools": (
        lambda: [conv(3, 8), nn.MaxPool2d(2), conv(8, 8), nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv(8, 9)],
        3,
        2,
    ),
    "norm before a pool": (lambda: [conv(3, 9), nn.BatchNorm2d(9), nn.MaxPool2d(2), conv(9, 8)], 2, 1),
    "groups": (lambda: [conv(4, 64, groups=2), conv(64, 64, groups=2, stride=2), conv(64, 6, dilation=2)], 3, 2),
    "odd groups": (lambda: [conv(6, 9, groups=3), conv(9, 6, groups=3), conv(6, 8)], 3, 0),
    "zeros": (lambda: [ZeroPadded(3, 16, 3, padding=1), nn.BatchNorm2d(16), ZeroPadded(16, 8, 3, padding=1)], 2, 1),
    "scales of inputs": (lambda: [conv(3, 8), conv(8, 8, input_scale=True), conv(8, 4)], 3, 0),
    "twice": (lambda: [nn.Conv2d(3, 8, 1), Residual(), Residual()], 2, 0),
    "linear": (lambda: [nn.Flatten(), BinaryLinear(108, 20, norm="batch"), BinaryLinear(20, 7, norm="batch")], 2, 1),
    "flat": (lambda: [conv(3, 8), nn.Flatten(), BinaryLinear(288, 9, norm="batch"), nn.Linear(9, 2)], 2, 0),
}


def opened(network: nn.Module, x: Tensor, folder: Path, threads: int = 2) -> BinaryRunner:
    runner = open_runner("binary", save(network, folder / "net.gsr", (x,), effort="fast"), threads=threads)
    assert isinstance(runner, BinaryRunner)
    runner.prepare((x,))
    return runner


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_network_on_bits_computes_what_it_is(name: str, tmp_path: Path) -> None:
    layers, on_bits, written = NETWORKS[name]
    network = ready(nn.Sequential(*layers()))
    channels = 4 if name == "groups" else 6 if name == "odd groups" else 3
    x = torch.randn(4, channels, 6, 6)
    runner = opened(network, x, tmp_path)
    sources = list(runner.execution((x,)).plan.sources.values())
    assert len(runner.layers) == on_bits and sum(isinstance(one, FromProducts) for one in sources) == written
    with torch.no_grad():
        for some in (x, torch.randn(3, channels, 6, 6)):
            torch.testing.assert_close(runner(some), network(some), rtol=1e-4, atol=1e-5)


class Many(nn.Module):
    """Signs that several layers and the output read, with other paddings and groups; outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = BinaryConv2d(8, 8, 1, bias=False), BinaryConv2d(8, 8, 3, padding=1, groups=2, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        s = torch.where(x - 0.25 >= 0, 1.0, -1.0)
        padded = F.pad(s, (1, 1, 1, 1), value=1.0)
        other = F.conv2d(padded, self.other.weight, None, 1, 0, 1, 2)
        return {"both": F.conv2d(s, self.one.weight) + other, "signs": s}


def test_signs_with_several_readers(tmp_path: Path) -> None:
    network, x = ready(Many()), torch.randn(3, 8, 5, 5)
    runner = opened(network, x, tmp_path)
    assert len(runner.layers) == 2
    found, wanted = runner(x), network(x)
    assert torch.equal(found["signs"], wanted["signs"])
    torch.testing.assert_close(found["both"], wanted["both"])


class PooledSigns(nn.Module):
    """A pool of signs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = BinaryConv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.max_pool2d(torch.where(x < 0.5, -1.0, 1.0), 2), self.conv.weight)


def test_pooled_signs_of_numbers(tmp_path: Path) -> None:
    network, x = ready(PooledSigns()), torch.randn(3, 8, 10, 10)
    runner = opened(network, x, tmp_path)
    [source] = runner.execution((x,)).plan.sources.values()
    assert isinstance(source, FromNumbers) and source.pool is not None
    torch.testing.assert_close(runner(x), network(x))


class Unlike(nn.Module):
    """Layers that only look binary: inputs that are no signs, sign(0) = 0, weights with a zero, other padding."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.three = BinaryConv2d(4, 4, 1, bias=False), BinaryConv2d(4, 4, 1, bias=False)
        self.sparse, self.padded = BinaryConv2d(4, 4, 1, bias=False), BinaryConv2d(4, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.where(x >= 0, 1.0, -1.0)
        reflected = F.pad(s, (1, 1, 1, 1), mode="reflect")
        y = F.conv2d(x, self.real.weight) + F.conv2d(x.sign(), self.three.weight)
        return y + F.conv2d(s, self.sparse.weight) + F.conv2d(reflected, self.padded.weight)


def test_what_is_not_binary_is_left_to_torch_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = ready(Unlike())
    network.get_submodule("sparse").weight.data[0, 0] = 0  # type: ignore[operator]
    x = torch.randn(2, 4, 5, 5)
    with caplog.at_level(logging.INFO, "gossamer"):
        runner = opened(network, x, tmp_path)
    assert runner.layers == ()
    assert runner.left == {
        "real.weight": "its inputs are not signs",
        "three.weight": "its inputs are not signs",
        "padded.weight": "its padding holds other numbers than -1, 0 and 1",
    }
    assert "no layer runs on bits; torch runs the network in float32" in caplog.text
    torch.testing.assert_close(runner(x), network(x))


def test_without_an_instruction_that_counts_bits_torch_runs_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner_module, "counts_bits", lambda: False)
    network, x = ready(nn.Sequential(conv(3, 8))), torch.randn(2, 3, 5, 5)
    runner = opened(network, x, tmp_path)
    assert runner.layers == () and "no instruction that counts bits" in caplog.text
    torch.testing.assert_close(runner(x), network(x))


def test_a_sum_that_is_not_monotone_is_no_limit(tmp_path: Path) -> None:
    """A slope below zero turns the order: the numbers are written, and packed behind."""
    network = ready(nn.Sequential(conv(3, 8), ShiftedPReLU(8, slope=-1.0), conv(8, 8)))
    x = torch.randn(2, 3, 6, 6)
    runner = opened(network, x, tmp_path)
    kinds = [type(one) for one in runner.execution((x,)).plan.sources.values()]
    assert kinds == [FromNumbers, FromNumbers]
    torch.testing.assert_close(runner(x), network(x), rtol=1e-4, atol=1e-5)


def test_large_layers_write_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying all integers of a layer would take too much memory."""
    monkeypatch.setattr("gossamer.runtime.binary.plan.MOST_TRIED", 2 * 8 * 27)
    network, x = ready(nn.Sequential(conv(3, 8), conv(8, 4))), torch.randn(2, 3, 6, 6)
    runner = opened(network, x, tmp_path)
    assert [type(one) for one in runner.execution((x,)).plan.sources.values()] == [FromNumbers, FromNumbers]
    torch.testing.assert_close(runner(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_file_is_planned_only_after_its_first_run_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = ready(nn.Sequential(conv(3, 8))), torch.randn(2, 3, 6, 6)
    file = save(network, tmp_path / "net.gsr", (x,), effort="fast")
    monkeypatch.setattr("gossamer.compact.watch.MOST_RESULT", 100)
    monkeypatch.setattr(runner_module, "binary_plan", lambda *given: pytest.fail("planned"))
    with pytest.raises(BadInput, match="the network would make"):
        open_runner("binary", file)(x)


def test_a_module_is_captured_on_its_first_inputs(tmp_path: Path) -> None:
    network = ready(nn.Sequential(conv(3, 8), conv(8, 4)))
    runner = open_runner("binary", network, threads=1)
    for shape in ((1, 3, 6, 6), (5, 3, 6, 6), (2, 3, 9, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(runner(x), network(x), rtol=1e-4, atol=1e-5)
    assert isinstance(runner, BinaryRunner) and runner.layers == ("0.weight", "1.weight")


def test_other_files_and_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"runs a \.gsr file or a module, got net.onnx"):
        open_runner("binary", "net.onnx")
    with pytest.raises(BadInput, match="no such file"):
        open_runner("binary", tmp_path / "none.gsr")
    with pytest.raises(BadInput, match="it has float32"):
        open_runner("binary", tmp_path / "none.gsr", precision="int8")
