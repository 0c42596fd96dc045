"""3C: chains of three convolutions, their ranks, and one pass over a network."""

import pytest
import torch
from nets import stripes, tiny
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.methods.lowrank._alternating import along_rows
from gossamer.methods.lowrank._chain import calls_of
from gossamer.methods.lowrank._matrices import best_last_factor, energy_of, principal
from gossamer.methods.prune._factoring import chain_of, chain_options, dense_product, three_factors
from gossamer.methods.prune.lasso import LassoChannels
from gossamer.methods.prune.three_c import ThreeC
from gossamer.modules.cost import total_macs

TASK = stripes()


def wide() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
    last = (nn.Conv2d(16, 24, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    return nn.Sequential(*layers, *last).eval()


def inputs_of(layer: nn.Conv2d, samples: int = 40) -> tuple[Tensor, Tensor]:
    """Random maps, and the second moment of the layer's windows of them, float64."""
    x = torch.rand(samples, layer.in_channels, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    windows = nn.functional.unfold(x, layer.kernel_size)
    rows = windows.transpose(1, 2).flatten(0, 1)
    return x, (rows.T @ rows / samples)[None]


@pytest.mark.parametrize("kernel", [(3, 3), (3, 2), (5, 3)])
def test_a_chain_of_full_rank_is_the_convolution(kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel).double()
    x, gram = inputs_of(layer)
    factors = three_factors(layer.weight.detach(), (15, 5), gram)
    torch.testing.assert_close(dense_product(factors), layer.weight.detach(), rtol=1e-6, atol=1e-8)
    vertical, thin, mix = factors
    y = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, vertical), thin), mix)
    torch.testing.assert_close(y, nn.functional.conv2d(x, layer.weight.detach()), rtol=1e-6, atol=1e-8)


def test_less_is_lost_with_the_inputs_in_view_and_with_more_filters() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).double()
    x, gram = inputs_of(layer)
    weight, same = layer.weight.detach(), torch.eye(36, dtype=torch.double)[None]

    def error(ranks: tuple[int, int], metric: Tensor) -> float:
        change = dense_product(three_factors(weight, ranks, metric)) - weight
        return float(nn.functional.conv2d(x, change).square().sum())

    errors = [error(ranks, gram) for ranks in ((2, 2), (4, 4), (8, 6), (12, 8))]
    assert errors == sorted(errors, reverse=True)
    assert all(error(ranks, gram) < error(ranks, same) for ranks in ((2, 2), (4, 4), (8, 6)))


def test_given_the_vertical_filters_the_rest_is_the_best_of_its_rank() -> None:
    """What is lost is the tail of the singular values in the metric of what the vertical filters give."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).double()
    _, gram = inputs_of(layer)
    weight = layer.weight.detach()
    vertical = three_factors(weight, (6, 8), gram)[0]
    rows = along_rows(vertical.reshape(1, 6, -1), 3)
    _, best = best_last_factor(weight[None].flatten(2), [rows], gram)
    tail = principal(best, rows @ gram @ rows.mT)[1][0, 5:].sum()
    change = best @ rows - dense_product(three_factors(weight, (6, 5), gram)).flatten(1)[None]
    torch.testing.assert_close(energy_of(change, gram)[0], tail, rtol=1e-6, atol=1e-9)


def test_layers_that_keep_all_inputs_are_fitted_too() -> None:
    _, edits = ThreeC(speedup=2.0, channels=0.05)(wide(), TASK)
    assert len([edit for edit in edits if edit.kind == "resize"]) < 3
    assert [edit.target for edit in edits if edit.kind == "assign"] == ["3 layers whose inputs changed"]


def test_options_cost_what_the_chains_cost() -> None:
    model = wide()
    layer = model.get_submodule("5")
    assert isinstance(layer, nn.Conv2d)
    [calls] = calls_of(model, ["5"], TASK.example_inputs).values()
    gram = torch.eye(144, dtype=torch.double)[None]
    options = chain_options(layer, 10, 20, gram, calls)
    pick = int(options.lost.argmin())
    first, second = options.ranks[pick // 2].tolist()
    factors = chain_of(10, 20, (first, second))
    made = nn.Sequential(*(nn.Conv2d(int(f.inputs), int(f.outputs), k, s, bias=False)
                           for f, k, s in zip(factors, ((3, 1), (1, 3), 1), ((2, 1), (1, 2), 1))))  # fmt: skip
    assert int(options.params[pick // 2]) == sum(p.numel() for p in made.parameters())
    assert int(options.macs[pick // 2]) == total_macs(made, (torch.zeros(1, 10, 6, 6),))
    whole = chain_options(layer, 16, 24, gram, calls)
    assert float(whole.lost.min()) == pytest.approx(0, abs=1e-9) and float(options.lost[pick]) > 0
    assert options.dense_params == 10 * 20 * 9


@pytest.mark.parametrize("field", ["speedup", "params"])
def test_it_lands_near_the_target_with_channels_and_ranks(field: str) -> None:
    def costs(model: nn.Module) -> dict[str, int]:
        macs = total_macs(model, TASK.example_inputs)
        return {"speedup": macs, "params": sum(p.numel() for p in model.parameters())}

    before = costs(wide())
    target = {"speedup": 3.0, "params": before["params"] // 3}[field]
    smaller, edits = ThreeC(**{field: target})(wide(), TASK)
    after = costs(smaller)
    assert after[field] / before[field] == pytest.approx(1 / 3, rel=0.06)
    assert {edit.kind for edit in edits} == {"resize", "swap", "assign"}
    assert all(edit.proof is None or edit.proof < 1e-5 for edit in edits)
    chains = [layer for layer in smaller if isinstance(layer, nn.Sequential)]
    assert [[one.kernel_size for one in chain] for chain in chains] == [[(3, 1), (1, 3), (1, 1)]] * len(chains) != []
    assert [conv.in_channels for conv in smaller.modules() if isinstance(conv, nn.Conv2d)][-1] < 24


def test_it_is_nearer_to_the_outputs_than_channels_alone() -> None:
    @torch.no_grad()
    def distance(model: nn.Module) -> float:
        one, other = (torch.cat([net(x) for x, _ in TASK.train]) for net in (model, wide()))
        return float((one - other).norm() / other.norm())

    both, alone = (kind(speedup=3.0)(wide(), TASK).model for kind in (ThreeC, LassoChannels))
    assert 0 < distance(both) < distance(alone)


def test_it_says_what_it_was_given_and_what_it_needs() -> None:
    with pytest.raises(BadInput, match=r"sparsity = 0.5 says nothing of ranks"):
        ThreeC(sparsity=0.5)
    with pytest.raises(BadInput, match="is not less than the network costs now"):
        ThreeC(macs=10**9)(tiny(), TASK)
    with pytest.raises(BadInput, match="no selected convolution has a kernel of two axes"):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
        ThreeC(speedup=2.0)(flat, TASK)
