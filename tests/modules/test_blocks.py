"""Residual blocks: found, removed, equal to the silenced original. Plain layers: found with what belongs to them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.models import build
from gossamer.modules.blocks import find_blocks, find_layers, removable, remove_blocks

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
    blocks = find_blocks(model, (IMAGES,))
    small = remove_blocks(model, blocks)
    assert torch.equal(small(IMAGES), silenced(model, [block.name for block in blocks])(IMAGES))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_model_itself_is_left_alone() -> None:
    model = build("resnet20", in_channels=1).eval()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) for m in model.modules()]
    remove_blocks(model, find_blocks(model, (IMAGES,))[:1])
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


class Plain(nn.Module):
    """A chain with one layer of every kind that must be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.normed = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.leaky = nn.LeakyReLU()
        self.even = nn.Conv2d(4, 4, 2, padding=1, dilation=2)
        self.strided = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.wider = nn.Conv2d(4, 6, 1)
        self.last = nn.Conv2d(6, 6, 1)
        self.relu = nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.even(self.leaky(self.dilated(self.normed(self.stem(x_NCHW)))))
        x_NCHW = self.wider(self.twice(self.twice(self.strided(x_NCHW))))
        return self.relu(self.last(x_NCHW)).mean((2, 3))  # type: ignore[no-any-return]


def test_plain_layers_are_those_that_could_hand_on_their_input() -> None:
    """An even kernel, a stride, other channels or a second call exclude a layer; a norm goes with it, and the ReLU only
    where another ReLU stands before."""
    layers = find_layers(Plain().eval(), (torch.rand(2, 1, 8, 8),))
    assert [layer.parts for layer in layers] == [("normed.0", "normed.1", "normed.2"), ("dilated",), ("last",)]
    assert [layer.params for layer in layers] == [4 * 4 * 9 + 4 + 8, 4 * 2 * 9 + 4, 6 * 6 + 6]


@torch.no_grad()
def test_removing_a_layer_equals_an_identity_kernel() -> None:
    model = Plain().double().eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    layers = find_layers(model, (x,))
    small = remove_blocks(model, layers)
    for conv in (model.normed[0], model.dilated, model.last):
        nn.init.dirac_(conv.weight, groups=conv.groups)
        nn.init.zeros_(conv.bias)
    model.normed[1].eps = 0.0
    assert torch.allclose(small(x), model(x), rtol=1e-12, atol=0)


def test_shared_layers_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    x = torch.rand(1, 4, 6, 6)
    assert [layer.name for layer in find_layers(model, (x,))] == ["0", "2"]
    model[2].weight = model[0].weight
    assert not find_layers(model, (x,))


@pytest.mark.slow
def test_layers_count_only_where_there_are_no_blocks() -> None:
    resnet, vgg = build("resnet20", in_channels=1).eval(), build("vgg16_small", in_channels=1).eval()
    assert removable(resnet, (IMAGES,)) == find_blocks(resnet, (IMAGES,))
    square = [str(i) for i in (3, 10, 17, 20, 27, 30, 34, 37, 40)]
    assert [layer.name for layer in removable(vgg, (IMAGES,))] == [f"features.{i}" for i in square]


def test_bad_names() -> None:
    model = build("resnet20", in_channels=1)
    with pytest.raises(NoEffect, match="no blocks"):
        remove_blocks(model, [])
    with pytest.raises(BadInput, match=r"stage1\.7.*did you mean 'stage1"):
        swap(model, {"stage1.7": nn.Identity()})
