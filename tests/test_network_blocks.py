"""Residual blocks: found, removed, equal to the silenced original."""

import copy

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, NoEffect
from gossamer.models import build
from gossamer.network.blocks import find_blocks, remove_blocks
from gossamer.network.swap import swap

IMAGES = torch.rand(2, 1, 28, 28)


def silenced(model: nn.Module, names: list[str]) -> nn.Module:
    """The slow way: the original with the branches' weights at zero."""
    model = copy.deepcopy(model)
    for name in names:
        for p in model.get_submodule(name).parameters():
            nn.init.zeros_(p)
    return model


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet20", ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"]),
        ("resnet20a", ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"]),
        ("wrn16_1", ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]),
        ("lenet5", []),
    ],
)
def test_the_blocks_with_an_identity_shortcut_are_found(name: str, blocks: list[str]) -> None:
    model = build(name, in_channels=1).eval()
    assert [block.name for block in find_blocks(model, (IMAGES,))] == blocks


@pytest.mark.parametrize("name", ["resnet20", "wrn16_1"])
def test_removing_equals_silencing(name: str) -> None:
    model = build(name, in_channels=1).eval()
    names = [block.name for block in find_blocks(model, (IMAGES,))]
    small = remove_blocks(model, names)
    assert torch.equal(small(IMAGES), silenced(model, names)(IMAGES))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_model_itself_is_left_alone() -> None:
    model = build("resnet20", in_channels=1).eval()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) for m in model.modules()]
    remove_blocks(model, [find_blocks(model, (IMAGES,))[0].name])
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Attention(nn.Module):
    """A transformer layer: two branches, one identity."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0)
        self.plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU())  # same shape, but no shortcut

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.plain(self.layer(x_BTC))  # type: ignore[no-any-return]


def test_transformer_layers_count_and_plain_layers_of_equal_shape_do_not() -> None:
    model = Attention().eval()
    torch.nn.init.ones_(model.plain[0].weight)
    assert [block.name for block in find_blocks(model, (torch.randn(2, 3, 8),))] == ["layer"]


def test_bad_names() -> None:
    model = build("resnet20", in_channels=1)
    with pytest.raises(NoEffect, match="no blocks"):
        remove_blocks(model, [])
    with pytest.raises(BadInput, match=r"stage1\.7.*did you mean 'stage1"):
        swap(model, {"stage1.7": nn.Identity()})
