"""Advice on binary layers: which layers, what they compute, and what is said beside int8."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import Goal, advise
from gossamer.core.signs import sign_of
from gossamer.modules.binary import binary_weight
from gossamer.search import advise as advise_module
from gossamer.search.advise import Advice, Adviser
from gossamer.search.binary_advice import binarized, binary_twin, bits_of


class Mixed(nn.Module):
    """A stem, a wide convolution, a depthwise one, a recurrent layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.depth, self.memory = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.GRU(64, 32, batch_first=True)
        self.fc, self.head = nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.wide(self.stem(x).relu())).flatten(2).transpose(1, 2)
        return self.head(self.fc(self.memory(x)[0].mean(1)))  # type: ignore[no-any-return]


def test_layers_that_cannot_be_binary_say_why() -> None:
    made = binarized(Mixed())
    assert made.layers == ("wide", "fc")
    assert made.left == {
        "stem": "it is the first or the last layer, which lose too much as signs",
        "depth": "an output reads 1 channels, less than the 32 bits of a word",
        "memory": "there is no binary layer for GRU",
        "head": "it is the first or the last layer, which lose too much as signs",
    }


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, 2, 1, 1, 2), nn.Linear(4, 6)])
def test_a_twin_has_the_signs_the_mean_size_and_the_bias(layer: Any) -> None:
    twin: Any = binary_twin(layer)
    split = binary_weight(twin.weight)
    assert split is not None and torch.equal(split[0], layer.weight >= 0)
    torch.testing.assert_close(split[1], layer.weight.detach().flatten(1).abs().mean(1))
    x = torch.randn(2, 4, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4)
    inside = (slice(None), slice(None), slice(1, 2), slice(1, 2)) if x.dim() == 4 else (slice(None),)
    layer.weight.data = twin.weight.data
    torch.testing.assert_close(twin(x)[inside], layer(sign_of(x))[inside])


def test_bits_are_one_for_a_sign_and_those_of_scales_and_the_rest() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2, bias=False))
    assert bits_of(model, ("0",)) == 32 + 32 * 4 + 32 * (4 + 8)


@pytest.mark.parametrize(("int8", "said"), [(2.0, "on the runtime `binary`"), (4.0, "int8 on onnxruntime is faster")])
def test_where_int8_is_faster_advice_says_so(int8: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise_module, "times_on_bits", lambda *given: 3.0)
    adviser = object.__new__(Adviser)
    adviser.unit, adviser.model, adviser.goal = "time", Mixed(), Goal(speedup=2)
    adviser.cost_model = type("Costs", (), {"reference_source": lambda self: None, "inputs": ()})()
    row = Advice(scheme="int8", times=int8, unit="time", tried="", reason="")
    [found] = adviser._binary([row])
    assert said in found.reason and found.times == 3.0 and found.layers == ("wide", "fc")


def test_binary_layers_are_among_the_schemes_for_a_small_file() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    rows: Sequence[Advice] = advise(model, (torch.randn(2, 8),), Goal(compression_ratio=2))
    [found] = [row for row in rows if row.scheme == "binary layers"]
    assert found.layers == ("2",) and 2 < found.times < 6 and "one bit for a weight" in found.reason
