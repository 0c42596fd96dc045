"""Cheaper blocks in the place of trained layers: what they reproduce exactly, and how they are fitted."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import task, tiny
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import (
    FittedBlock,
    reconstruct_blocks,
    relative_errors,
    solve_last,
    train_blocks,
)
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.restructure._rewrite import Unfit
from gossamer.methods.restructure.grouped import GroupedConvolution, factors, grouped_block
from gossamer.methods.restructure.separable import DepthwiseSeparable, separable_block, separate
from gossamer.modules.inserted import Shuffle


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(weight: Tensor, bias: Tensor | None = None, **options: Any) -> nn.Conv2d:
    groups = options.get("groups", 1)
    layer = nn.Conv2d(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]), bias=bias is not None, **options)
    layer.double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer


def same(block: nn.Module, layer: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(block(x), layer(x), rtol=tolerance, atol=tolerance)


# --- depthwise separable


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": "valid"}, {"dilation": 2}])
def test_a_separable_kernel_becomes_separable_exactly(options: dict[str, Any]) -> None:
    p, d = random(6, 4), random(4, 3, 3, seed=1)
    layer = conv(p[:, :, None, None] * d, random(6, seed=2), **options)
    block = separable_block(layer, 1).module
    assert [m.groups for m in block.modules() if isinstance(m, nn.Conv2d)] == [4, 1]
    same(block, layer, random(2, 4, 7, 7, seed=3))


def test_as_many_filters_as_directions_reproduce_any_kernel_and_fewer_are_the_best_of_their_number() -> None:
    weight = random(5, 3, 9)
    for multiplier in (1, 2, 5):
        p, d = separate(weight, multiplier)
        error = (torch.einsum("ncm,cmk->nck", p, d) - weight).square().sum()
        tails = sum(torch.linalg.svdvals(weight[:, c])[multiplier:].square().sum() for c in range(3))
        torch.testing.assert_close(error, torch.as_tensor(tails, dtype=torch.float64), atol=1e-9, rtol=1e-9)


# --- grouped, with a shuffle


def test_the_shuffle_is_undone_by_the_one_with_the_other_number_of_groups() -> None:
    x = random(2, 12, 2, 2)
    assert torch.equal(Shuffle(4)(Shuffle(3)(x)), x)
    assert Shuffle(3)(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(Shuffle(1)(x), x)


def test_two_grouped_convolutions_with_a_shuffle_are_found_again() -> None:
    first, second = random(8, 3, 3, 3), random(8, 4, 1, 1, seed=1)  # 6 -> 8 -> 8 channels, 2 groups

    def slow(x: Tensor) -> Tensor:
        y = F.conv2d(x, first, groups=2, padding=1)
        shuffled = torch.stack([y[:, b * 4 + a] for a in range(4) for b in range(2)], 1)
        return F.conv2d(shuffled, second, groups=2)

    impulses = slow(torch.eye(6 * 25, dtype=torch.float64).view(-1, 6, 5, 5))[:, :, 2, 2].view(6, 5, 5, 8)
    weight = impulses[:, 1:4, 1:4].permute(3, 0, 1, 2)
    layer = conv(weight, padding=1)
    same(grouped_block(layer, 2).module, layer, random(2, 6, 5, 5, seed=2))


def test_every_block_between_two_groups_gets_its_best_low_rank_form() -> None:
    weight, rank = random(8, 4, 9), 1
    first, second = factors(weight, 2, rank)
    layer = nn.Sequential(conv(first.view(4, 2, 3, 3), groups=2), Shuffle(2), conv(second[..., None, None], groups=2))
    built = layer(torch.eye(36, dtype=torch.float64).view(36, 4, 3, 3)).view(36, 8).T.view(8, 4, 9)
    wanted = torch.zeros_like(weight)
    for j in range(2):
        for b in range(2):
            block = weight[4 * j : 4 * j + 4, 2 * b : 2 * b + 2].reshape(4, 18)
            u, s, v = torch.linalg.svd(block, full_matrices=False)
            wanted[4 * j : 4 * j + 4, 2 * b : 2 * b + 2] = (s[0] * u[:, :1] @ v[:1]).view(4, 2, 9)
    torch.testing.assert_close(built, wanted)


# --- least squares and training


def pair(seed: int = 0) -> tuple[nn.Module, list[Tensor], dict[str, FittedBlock]]:
    """A network of one convolution, data, and a separable block for it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    data = list(random(3, 8, 3, 6, 6, seed=4).float())
    return model, data, {"0": separable_block(model[0], 1)}


def test_least_squares_gives_the_best_last_layer() -> None:
    """The slow reference: all features and outputs in one matrix."""
    model, data, blocks = pair()
    block = blocks["0"].module
    x = torch.cat(data)
    with torch.no_grad():
        features = block[0](x).movedim(1, -1).flatten(0, 2)
        wanted = model[0](x).movedim(1, -1).flatten(0, 2)
    ones = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    best = torch.linalg.lstsq(ones, wanted.double()).solution
    solve_last(model, blocks, data, 3)
    torch.testing.assert_close(block[1].weight.flatten(1).T.double(), best[:-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(block[1].bias.double(), best[-1], rtol=1e-3, atol=1e-4)


def test_least_squares_serves_groups_and_chosen_output_channels() -> None:
    class Halves(nn.Module):
        """Makes channels 1, 3, 5 with one layer and 0, 2, 4 with another."""

        def __init__(self) -> None:
            super().__init__()
            self.odd, self.even = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.even(x), self.odd(x)], 2).flatten(1, 2)

    torch.manual_seed(1)
    model, data, _ = pair()
    block = FittedBlock(Halves(), {"odd": torch.tensor([1, 3, 5]), "even": torch.tensor([0, 2, 4])})
    with torch.no_grad():  # what the odd channels' groups can reproduce
        keep = torch.zeros(6, 3, 1, 1)
        keep[[1, 3, 5], [0, 1, 2]] = keep[[0, 2, 4]] = 1
        model[0].weight *= keep
    solve_last(model, {"0": block}, data, 3)
    assert relative_errors(model, {"0": block}, data, 3)["0"] < 1e-3


def test_training_goes_down_and_nothing_is_made_worse() -> None:
    model, data, blocks = pair()
    before = relative_errors(model, blocks, data, 3)["0"]
    train_blocks(model, blocks, data, 3, steps=30, lr=1e-2)
    assert relative_errors(model, blocks, data, 3)["0"] < before
    assert all(p.grad is None for p in [*model.parameters(), *blocks["0"].module.parameters()])
    wild = pair()[2]
    errors = reconstruct_blocks(model, wild, data, batches=3, steps=3, lr=1.0)["0"]
    assert errors.after_fine_tuning == errors.after_least_squares <= errors.at_init
    assert relative_errors(model, wild, data, 3)["0"] == pytest.approx(errors.after_fine_tuning)


def test_what_is_exact_is_left_to_the_bit() -> None:
    model, data, _ = pair()
    exact = FittedBlock(nn.Sequential(nn.Identity(), copy.deepcopy(model[0])), {"1": None})
    before = {key: value.clone() for key, value in exact.module.state_dict().items()}
    errors = reconstruct_blocks(model, {"0": exact}, data, batches=3, steps=5, lr=0.1)["0"]
    assert errors.at_init == errors.after_fine_tuning == 0
    assert all(torch.equal(value, before[key]) for key, value in exact.module.state_dict().items())


def test_what_works_in_place_behind_a_layer_does_not_change_what_is_learned() -> None:
    conv2d, data = nn.Conv2d(3, 4, 3), list(random(2, 4, 3, 5, 5).float())
    model = nn.Sequential(conv2d, nn.ReLU(inplace=True))
    assert relative_errors(model, {"0": FittedBlock(copy.deepcopy(conv2d))}, data, 2)["0"] == 0


def test_a_layer_that_is_never_called_or_no_data_is_an_error() -> None:
    model, _, blocks = pair()
    with pytest.raises(BadInput, match="saw no input"):
        relative_errors(model, blocks, [], 3)


# --- the methods


def quick(cls: Any, **options: Any) -> Any:
    return cls(**{"steps": 2, "batches": 2, **options})


def test_the_history_tells_errors_and_what_was_left() -> None:
    context = Context()
    model = tiny()
    result = quick(DepthwiseSeparable).apply(model, task(), context)
    edits = {edit.target: edit for edit in context.log.edits}
    assert edits["body.0.conv1"].before == "3x3 8-8"
    assert edits["body.0.conv1"].after == "3x3 8-8 in 8 groups, 1x1 8-8"
    assert "20,736 to 4,896 multiply-adds" in edits["body.0.conv1"].note
    assert (edits["head"].after, edits["head"].note) == ("left alone", "Linear is not a convolution")
    assert isinstance(result.body[0].conv1, nn.Sequential) and isinstance(result.head, nn.Linear)
    assert not result.training and not result.body[0].conv1.training


def test_a_layer_that_would_not_save_is_left_and_if_all_are_it_is_an_error() -> None:
    with pytest.raises(NoEffect, match=r"body\.0\.conv1: the new block would not take fewer multiply-adds"):
        quick(DepthwiseSeparable, multiplier=9, layers=("body.0.conv1",))(tiny(), task(), Context())


def test_a_layer_named_in_full_that_cannot_be_rewritten_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match="'head': Linear is not a convolution"):
        quick(DepthwiseSeparable, layers=("body.0.conv1", "head"))(tiny(), task(), Context())
    with pytest.raises(BadInput, match="its 8 input channels are not a multiple of groups = 3"):
        quick(GroupedConvolution, groups=3, layers=("body.0.conv1",))(tiny(), task(), Context())
    with pytest.raises(Unfit, match="4 groups already"):
        separable_block(nn.Conv2d(4, 4, 3, groups=4), 1)
    with pytest.raises(Unfit, match="one position only"):
        separable_block(nn.Conv2d(4, 4, 1), 1)


def test_unselected_layers_keep_their_bits_and_calls_of_a_shared_layer_are_all_learned_from() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.conv(x).relu())
            return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(2)
    model, data = Twice(), list(random(2, 4, 4, 5, 5).float())
    toy = Task(name="toy", train=[], validation=[], test=[], calibration=data, example_inputs=(data[0],))
    result = quick(DepthwiseSeparable)(model, toy, Context()).model
    assert torch.equal(result.head.weight, model.head.weight)
    assert result(data[0]).shape == (4, 2)
