"""What the survey's schemes cost and see, by its formulas and by what is really built."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gossamer.methods.lowrank._chain import chain_macs, chain_params, dense_factor
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank.biclustered import BiclusteredFactors
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.cp import CP
from gossamer.methods.lowrank.monochromatic import MonochromaticFactors
from gossamer.methods.lowrank.separable import SeparableFilters
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tensor_train import TensorTrain
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.methods.restructure.bottleneck import bottleneck
from gossamer.methods.restructure.flattened import flattened_block
from gossamer.methods.restructure.grouped import grouped_block
from gossamer.methods.restructure.separable import separable_block
from gossamer.methods.restructure.stack import one_by_n, three_by_three
from gossamer.models import build
from gossamer.modules.cost import layer_costs

N, C, D, SIDE = 64, 48, 5, 14

# Weights of the factors of an N x C x D x D kernel; at stride 1 the multiply-adds are so many for each position.
FORMULAS: list[tuple[LowRank, tuple[int, ...], int]] = [
    (ChannelDecomposition(), (12,), 12 * (C * D * D + N)),
    (ChannelDecomposition(across="inputs"), (12,), 12 * (C + D * D * N)),
    (SpatialDecomposition(), (10,), 10 * D * (C + N)),
    (CP(), (20,), 20 * (C + 2 * D + N)),
    (CP(apart=False), (20,), 20 * (C + D * D + N)),
    (Tucker(), (16, 12), C * 12 + D * D * 12 * 16 + 16 * N),
    (TensorTrain(), (8, 10, 6), C * 8 + 8 * D * 10 + 10 * D * 6 + 6 * N),
    (SeparableFilters(), (3,), 3 * C * (2 * D + N)),
    (MonochromaticFactors(), (8,), 8 * C + N * D * D),
    (BiclusteredFactors(inputs=2, outputs=4), (5, 3), 2 * 4 * (C // 2 * 3 + D * D * 3 * 5 + 5 * N // 4)),
    (BiclusteredFactors(form="outer", inputs=2, outputs=4), (5,), 2 * 4 * 5 * (C // 2 + D * D + N // 4)),
]


@pytest.mark.parametrize(("scheme", "rank", "weights"), FORMULAS, ids=lambda v: v.name() if hasattr(v, "name") else "")
def test_compression_and_speed_up_are_those_of_the_formula(
    scheme: LowRank, rank: tuple[int, ...], weights: int
) -> None:
    layer, calls = nn.Conv2d(C, N, D, padding=D // 2), [((SIDE, SIDE), (SIDE, SIDE))]
    chain, dense = scheme.chain(layer, rank), [dense_factor(layer)]
    assert chain_params(dense, (D, D)) / chain_params(chain, (D, D)) == N * C * D * D / weights
    assert chain_macs(dense, (D, D), calls) / chain_macs(chain, (D, D), calls) == N * C * D * D / weights


def test_a_pair_of_linear_layers_pays_below_the_harmonic_rank() -> None:
    """r (m + n) for m n: VGG's first, fully connected, at a tenth of its rank."""
    layer = nn.Linear(25_088, 4096, device="meta")
    chain = SVD().chain(layer, (409,))
    assert chain_params(chain, ()) == 409 * (25_088 + 4096)
    assert chain_params([dense_factor(layer)], ()) / chain_params(chain, ()) == pytest.approx(8.61, abs=0.01)
    even = 25_088 * 4096 // (25_088 + 4096)
    costs = [chain_params(SVD().chain(layer, (rank,)), ()) for rank in (even, even + 1)]
    assert costs[0] <= 25_088 * 4096 < costs[1]


@pytest.mark.parametrize(
    ("build_block", "weights"),
    [
        (lambda one: separable_block(one, 1), C * D * D + C * N),
        (flattened_block, N * (C + 2 * D)),
        (lambda one: bottleneck(one, 4), C * 12 + D * D * 12 * 16 + 16 * N),
        (lambda one: grouped_block(one, 4), C * D * D * N // 4 + N * N // 4),
        (lambda one: one_by_n(one, 20), 20 * D * (C + N)),
    ],
    ids=["separable", "flattened", "bottleneck", "grouped", "1xn"],
)
@torch.no_grad()
def test_rewrites_cost_what_their_papers_say(build_block: Any, weights: int) -> None:
    block = build_block(nn.Conv2d(C, N, D, padding=D // 2)).module
    rows = layer_costs(block, (torch.zeros(1, C, SIDE, SIDE),))
    assert sum(row.macs for row in rows) == weights * SIDE * SIDE


def seen_by_one(network: nn.Module, side: int, channels: int) -> tuple[int, int]:
    """Height and width of what the middle output depends on."""
    x = torch.rand(1, channels, side, side, dtype=torch.float64, requires_grad=True)
    y = network.double()(x)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    assert x.grad is not None
    used = x.grad[0].abs().sum(0) > 0
    return int(used.any(1).sum()), int(used.any(0).sum())


def formula(layers: list[tuple[int, int]]) -> int:
    """r = 1 + sum of (k_l - 1) times the strides of the layers before."""
    return 1 + sum((size - 1) * math.prod(step for _, step in layers[:n]) for n, (size, _) in enumerate(layers))


@pytest.mark.parametrize("size", [5, 7, 9])
def test_a_stack_sees_as_far_as_the_kernel_in_its_place(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(2, 2, size, padding=size // 2)
    small = three_by_three(layer, None, 3, generator).module
    depth = (size - 1) // 2
    assert len(list(small.children())) == depth and formula([(3, 1)] * depth) == size
    for network in (layer, small, one_by_n(layer, None).module):
        assert seen_by_one(network, 21, 2) == (size, size)


def test_strides_widen_what_later_layers_see() -> None:
    layers = [(3, 1), (3, 2), (5, 1), (3, 2), (1, 1)]
    network = nn.Sequential(*(nn.Conv2d(1, 1, size, step, size // 2) for size, step in layers))
    for conv in network.parameters():
        nn.init.constant_(conv, 0.1)
    assert seen_by_one(network, 65, 1) == (formula(layers),) * 2 == (17, 17)


def test_the_convolutions_of_vgg_see_almost_the_whole_image() -> None:
    """196 pixels behind the last one, 212 behind its pool."""
    layers = [(3, 1) if isinstance(m, nn.Conv2d) else (2, 2) for m in vgg_layers()]
    assert (formula(layers[:-1]), formula(layers)) == (196, 212)


def vgg_layers() -> list[nn.Module]:
    with torch.device("meta"):
        model = build("vgg16", classes=10)
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]


@torch.no_grad()
def test_a_pooled_head_gives_the_mean_of_the_logits_of_all_places() -> None:
    maps, linear = torch.randn(3, 6, 4, 5), nn.Linear(6, 10)
    everywhere = F.conv2d(maps, linear.weight[:, :, None, None], linear.bias)
    torch.testing.assert_close(linear(maps.mean((2, 3))), everywhere.mean((2, 3)))
    nin: Any = build("nin", classes=10, in_channels=1).eval()
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(nin(x), nin.features(x).flatten(2).mean(2))
