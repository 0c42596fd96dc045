"""Groups of elements: norms, zeros that can be cut, what is left to pay for, and layers that gather their inputs."""

import pytest
import torch
import torch.nn.functional as F
from nets import tiny
from torch import Tensor, nn

from gossamer.data import tiny_network
from gossamer.errors import NoEffect
from gossamer.modules.cost import layer_costs
from gossamer.modules.dead_units import remove_dead
from gossamer.modules.element_groups import block_groups, channel_groups, column_groups, kernel_groups
from gossamer.modules.gathering import as_gathered, gather_columns
from gossamer.modules.group_cost import group_cost

IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


X = torch.randn(3, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sides", ["made", "read", "both"])
def test_the_norm_of_a_neuron_is_that_of_its_weights_and_its_bias(sides: str) -> None:
    model = mlp()
    groups = channel_groups(model, X, sides=sides)  # type: ignore[arg-type]
    first, bias, second = model[0].weight, model[0].bias, model[2].weight
    made = torch.cat([first, bias[:, None]], 1).norm(dim=1)
    read = second.norm(dim=0)
    wanted = {"made": made, "read": read, "both": (made**2 + read**2).sqrt()}[sides]
    torch.testing.assert_close(groups.norms(parameters(model))[:5], wanted.detach(), rtol=1e-12, atol=0)
    assert groups.names == ("0",) * 5 + ("2",) * 4
    size = {"made": 7, "read": 4, "both": 11}[sides]
    assert groups.sizes(parameters(model))[:5].tolist() == [size] * 5


def test_batch_norms_carry_the_norm_of_the_channels_in_front_of_them() -> None:
    model = tiny_network()
    groups = channel_groups(model, torch.zeros(1, 1, 8, 8))
    assert "conv1.weight" not in groups.carried and "conv1.weight" in groups.cleared
    norms = groups.norms(parameters(model))
    bn = model.get_submodule("bn1")
    torch.testing.assert_close(norms[:8], torch.stack([bn.weight, bn.bias]).detach().norm(dim=0))


@pytest.mark.parametrize("gone", [[0, 3], [1, 9, 12, 20]])
def test_zero_groups_are_cut_and_outputs_stay(gone: list[int]) -> None:
    """Behind batch norms, and on a shortcut where all that is added must be zero."""
    model = tiny()
    groups = channel_groups(model, IMAGES)
    alive = torch.ones(len(groups), dtype=torch.bool)
    alive[gone] = False
    groups.clear(parameters(model), alive)
    assert (groups.norms(parameters(model)) == 0).nonzero().flatten().tolist() == gone
    cleared = remove_dead(model, (IMAGES,))
    torch.testing.assert_close(cleared.model(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
    assert sum(before - after for before, after in cleared.widths.values()) == len(gone)


def test_a_cleared_channel_is_the_masked_one() -> None:
    """What a network computes without a channel is what it computes where the channel is zero."""
    model, masked = tiny(), tiny()
    groups = channel_groups(model, IMAGES)
    alive = torch.ones(len(groups), dtype=torch.bool)
    alive[groups.names.index("body.0.conv1")] = False
    groups.clear(parameters(model), alive)
    keep = torch.ones(8)
    keep[0] = 0
    masked.get_submodule("body.0.bn1").register_forward_hook(lambda _, __, out: out * keep[:, None, None])
    torch.testing.assert_close(model(IMAGES), masked(IMAGES))


@pytest.mark.parametrize("what", ["macs", "params"])
def test_the_cost_of_what_is_alive_is_that_of_the_network_that_is_cut(what: str) -> None:
    model = tiny()
    groups = channel_groups(model, IMAGES)
    alive = torch.ones(len(groups), dtype=torch.bool)
    alive[[0, 1, 9, 13, 14, 25]] = False
    cost = group_cost(model, IMAGES, [groups], what)  # type: ignore[arg-type]
    groups.clear(parameters(model), alive)
    small = remove_dead(model, (IMAGES,)).model
    true = {
        "macs": sum(row.macs for row in layer_costs(small, IMAGES)),
        "params": sum(p.numel() for p in small.parameters()),
    }
    assert cost(alive) == pytest.approx(true[what], rel=1e-12)


def test_the_cost_knows_of_channels_whose_columns_are_all_empty() -> None:
    model = mlp()
    columns, read = column_groups(model), channel_groups(model, X, sides="read")
    alive = torch.ones(len(columns), dtype=torch.bool)
    alive[[6, 8]] = False  # the columns of the second layer that read units 0 and 2
    macs = group_cost(model, X, [columns], "macs", [read])
    assert macs(alive) == 6 * 3 + 3 * 4 + 4 * 3
    assert group_cost(model, X, [columns], "macs")(alive) == 6 * 5 + 3 * 4 + 4 * 3


def test_the_emptied_layer_is_named_and_a_block_may_go_as_a_whole() -> None:
    model = tiny()
    channels, blocks = channel_groups(model, IMAGES), block_groups(model, IMAGES)
    cost = group_cost(model, IMAGES, [channels, blocks], "macs")
    alive = torch.ones(len(channels) + len(blocks), dtype=torch.bool)
    assert cost.emptied(alive) is None
    alive[[i for i, name in enumerate(channels.names) if name == "body.1.conv1"]] = False
    assert cost.emptied(alive) == "body.1.conv1.weight"
    alive[len(channels) + 1] = False
    assert cost.emptied(alive) is None


def test_a_block_without_its_parameters_hands_on_its_input() -> None:
    model = tiny()
    groups = block_groups(model, IMAGES)
    assert groups.names == ("body.0", "body.1", "body.2")
    groups.clear(parameters(model), torch.tensor([True, False, True]))
    x = F.relu(torch.randn(2, 8, 6, 6))
    assert torch.equal(model.get_submodule("body.1")(x), x)
    assert not torch.equal(model.get_submodule("body.0")(x), x)


def test_columns_and_kernels_are_slices_of_the_weight() -> None:
    conv = nn.Conv2d(3, 4, (2, 5))
    columns, kernels = column_groups(conv), kernel_groups(conv)
    torch.testing.assert_close(columns.norms(parameters(conv)).view(3, 2, 5), conv.weight.detach().norm(dim=0))
    torch.testing.assert_close(kernels.norms(parameters(conv)).view(4, 3), conv.weight.detach().flatten(2).norm(dim=2))


def test_what_has_no_groups_is_refused() -> None:
    with pytest.raises(NoEffect, match="no channel of the selected layers"):
        channel_groups(mlp(), X, layers=["4"])
    with pytest.raises(NoEffect, match="kernels"):
        kernel_groups(mlp())
    with pytest.raises(NoEffect, match="no residual block"):
        block_groups(mlp(), X)


def test_without_carriers_groups_are_left_out() -> None:
    model = tiny()
    groups = channel_groups(model, IMAGES)
    only = groups.only({"body.0.bn1.weight", "body.2.bn1.weight"})
    assert set(only.names) == {"body.0.conv1", "body.2.conv1"} and len(only) == 16
    norms = only.norms(parameters(model))
    torch.testing.assert_close(norms[8:], parameters(model)["body.2.bn1.weight"].abs())


CONVS = [
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
    nn.Conv2d(3, 2, 3, dilation=2, padding=2, stride=2),
]


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_convolution_of_gathered_columns_is_the_masked_one(conv: nn.Conv2d, dtype: torch.dtype) -> None:
    conv = conv.to(dtype)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(conv.weight.shape[1:], generator=draw) < 0.4)
    thin = as_gathered(conv)
    assert thin is not None
    x = torch.randn(2, conv.in_channels, 9, 8, generator=draw, dtype=dtype)
    torch.testing.assert_close(thin(x), conv(x))
    assert thin.conv.in_channels == int((conv.weight != 0).any(0).sum()) < conv.weight[0].numel()


def test_what_has_no_empty_columns_is_left_as_it_is() -> None:
    assert as_gathered(nn.Conv2d(3, 5, 3)) is None and as_gathered(nn.ReLU()) is None
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    nn.init.zeros_(grouped.weight[:, 0])
    assert as_gathered(grouped) is None


def test_networks_gather_and_compute_the_same() -> None:
    model = tiny()
    with torch.no_grad():
        parameters(model)["body.1.conv1.weight"][:, :, 0] = 0
        parameters(model)["head.weight"][:, 2:5] = 0
    thin, found = gather_columns(model, (IMAGES,))
    assert sorted(found) == ["body.1.conv1", "head"]
    torch.testing.assert_close(thin(IMAGES), model(IMAGES))
    costs = [{row.name: row.macs for row in layer_costs(m, IMAGES)} for m in (model, thin)]
    assert costs[1]["body.1.conv1.conv"] * 3 == costs[0]["body.1.conv1"] * 2
