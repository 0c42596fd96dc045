"""Binary networks in `.gsr` files: a bit for a sign, and fewer where signs are not even."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.compact.reading import load
from gossamer.compact.writing import save
from gossamer.modules.binary import BinaryConv2d, BinaryLinear

SIGNS = 64 * 64 * 9


def network(share: float) -> nn.Module:
    """One binary convolution with this share of +1, each output with a scale of its own, and a small head."""
    torch.manual_seed(0)
    conv, fc = BinaryConv2d(64, 64, 3, padding=1, bias=False), BinaryLinear(64, 8)
    for layer in (conv, fc):
        signs = (torch.rand_like(layer.weight) < share).float() * 2 - 1
        layer.weight.data = signs * (torch.rand(len(signs)) + 0.5).view(-1, *[1] * (signs.dim() - 1))
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc).eval()


def entropy(share: float) -> float:
    p = torch.tensor([share, 1 - share])
    return float(-(p * p.log2()).sum())


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_signs_take_their_entropy_and_run_without_the_class(share: float, tmp_path: Path) -> None:
    model, x = network(share), torch.randn(2, 64, 5, 5)
    whole = save(model, tmp_path / "signs.gsr", (x,)).stat().st_size
    model[0].weight.data.fill_(1.0)  # type: ignore[index]
    rest = save(model, tmp_path / "rest.gsr", (x,)).stat().st_size
    assert whole - rest < SIGNS / 8 * entropy(share) * 1.03 + 4 * 64 + 40  # scales, and what the coder learns
    found = load(tmp_path / "signs.gsr")
    assert torch.equal(found(x), network(share)(x))
