"""Stacks, bottlenecks and flattened convolutions: what they reproduce exactly, and what they refuse."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import task
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.restructure._rewrite import Unfit
from gossamer.methods.restructure.bottleneck import bottleneck, squeezed
from gossamer.methods.restructure.flattened import flattened_block, rank_one
from gossamer.methods.restructure.stack import (
    KernelStacking,
    composed,
    composition,
    one_by_n,
    row_and_column,
    three_by_three,
)

GEOMETRIES: list[dict[str, Any]] = [
    {"padding": 1},
    {"stride": 2, "padding": "valid"},
    {"dilation": 2, "padding": "same"},
    {"padding": (2, 0), "stride": (1, 2), "padding_mode": "reflect"},
]
geometries = pytest.mark.parametrize("options", GEOMETRIES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(weight: Tensor, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], len(weight), tuple(weight.shape[2:]), dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def same(block: nn.Module, layer: nn.Module, tolerance: float = 1e-10) -> None:
    x = random(2, layer.in_channels, 9, 10, seed=9)  # type: ignore[arg-type]
    torch.testing.assert_close(block(x), layer(x), rtol=tolerance, atol=tolerance)


# --- stacks


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_the_composed_kernel_is_the_convolution_of_the_convolution(a: int, b: int, c: int, d: int) -> None:
    first, second = random(4, 3, a, b), random(5, 4, c, d, seed=1)
    x = random(2, 3, 7, 7, seed=2)
    slow = F.conv2d(F.conv2d(x, first), second)
    torch.testing.assert_close(F.conv2d(x, composed(first, second)), slow)


@pytest.mark.parametrize(("options", "size"), [(GEOMETRIES[0], 5), (GEOMETRIES[2], 5), (GEOMETRIES[3], 7)])
def test_a_kernel_that_is_a_stack_of_3x3_is_reproduced(options: dict[str, Any], size: int) -> None:
    widths = [2, 4, 4, 4][: (size + 1) // 2]
    kernels = [random(o, i, 3, 3, seed=n) for n, (i, o) in enumerate(pairwise(widths))]
    layer = conv(composition(kernels), **options)
    assert tuple(layer.kernel_size) == (size, size)
    block = three_by_three(layer, 8, 400, torch.Generator().manual_seed(0)).module
    same(block, layer, 1e-3)


@geometries
def test_1xn_and_nx1_with_enough_channels_are_any_kernel(options: dict[str, Any]) -> None:
    layer = conv(random(3, 4, 3, 5), **options)
    same(one_by_n(layer, 100).module, layer)


def test_1xn_and_nx1_with_fewer_channels_are_the_best_of_their_number() -> None:
    weight = random(3, 4, 3, 3)
    values = torch.linalg.svdvals(weight.permute(0, 2, 1, 3).reshape(9, 12))
    for channels in (1, 2, 5, 9):
        error = (composed(*row_and_column(weight, channels)) - weight).square().sum()
        torch.testing.assert_close(error, values[channels:].square().sum(), atol=1e-10, rtol=1e-10)


def test_stacks_take_the_shares_of_multiply_adds_that_they_should() -> None:
    layer = nn.Conv2d(4, 4, 7)
    for block, share in ((three_by_three(layer, None, 1, torch.Generator()), 27 / 49), (one_by_n(layer, None), 2 / 7)):
        weights = sum(p.numel() for p in block.module.parameters() if p.dim() > 1)
        assert weights == pytest.approx(share * 4 * 4 * 49)


def test_kernels_that_no_stack_makes_are_refused() -> None:
    for size in (3, 4, (5, 3)):
        with pytest.raises(Unfit, match="a stack of 3x3 makes 5x5"):
            three_by_three(nn.Conv2d(2, 2, size), None, 1, torch.Generator())
    with pytest.raises(Unfit, match="its kernel is 1x3 already"):
        one_by_n(nn.Conv2d(2, 2, (1, 3)), None)
    with pytest.raises(BadInput, match=r"unknown restructure\.stack form"):
        KernelStacking(form="5x5")  # type: ignore[arg-type]


# --- bottlenecks


@geometries
def test_a_kernel_of_low_multilinear_rank_becomes_a_bottleneck_exactly(options: dict[str, Any]) -> None:
    weight = torch.einsum("oikl,no,ci->nckl", random(2, 2, 3, 3), random(6, 2, seed=1), random(4, 2, seed=2))
    layer = conv(weight, **options)
    block = bottleneck(layer, 2).module
    assert [tuple(m.weight.shape[:2]) for m in block.children()] == [(2, 4), (3, 2), (6, 3)]  # type: ignore[union-attr]
    same(block, layer)


def test_directions_are_orthonormal_and_improve_on_the_leading_ones() -> None:
    weight = random(5, 4, 9)
    u, core, v = squeezed(weight, 2, 3)
    torch.testing.assert_close(u.T @ u, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(v.T @ v, torch.eye(3, dtype=torch.float64))
    first_u = torch.linalg.svd(weight.transpose(0, 1).flatten(1)).U[:, :2]
    first_v = torch.linalg.svd(weight.flatten(1)).U[:, :3]
    start = torch.einsum("nck,ci,no->oik", weight, first_u, first_v)
    assert core.square().sum() >= start.square().sum() - 1e-9


# --- flattened


@geometries
def test_filters_of_rank_one_become_flattened_exactly(options: dict[str, Any]) -> None:
    a, b, g = random(5, 4), random(5, 3, seed=1), random(5, 3, seed=2)
    layer = conv(torch.einsum("nc,ny,nx->ncyx", a, b, g), **options)
    block = flattened_block(layer).module
    assert [m.groups for m in block.children()] == [1, 5, 5]
    same(block, layer)


def test_the_best_outer_product_cannot_be_improved_along_any_of_its_vectors() -> None:
    weight = random(4, 3, 3, 3)
    a, b, g = rank_one(weight)
    for vector in (a, b, g):
        vector.requires_grad_()
    (weight - torch.einsum("nc,ny,nx->ncyx", a, b, g)).square().sum().backward()  # type: ignore[no-untyped-call]
    for vector in (a, b, g):
        assert vector.grad is not None and float(vector.grad.abs().max()) < 1e-3


def test_stack_runs_on_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    context = Context()
    result = KernelStacking(layers=("0",), channels=1, steps=2, batches=2, iterations=5).apply(model, task(), context)
    assert context.log.edits[0].after == "3x3 1-1, 3x3 1-4"
    assert result(task().example_inputs[0]).shape == (8, 3)
