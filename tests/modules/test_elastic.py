"""Channels in order, and sub-networks that share the weights of one network."""

import pytest
import torch
from nets import tiny
from torch import Tensor, nn

from gossamer.errors import NoEffect
from gossamer.modules.cost import layer_costs
from gossamer.modules.elastic import ElasticNetwork, elastic_network, sort_channels
from gossamer.modules.widening import output_difference


class Joined(nn.Module):
    """A grouped convolution, a concatenation and a flattened map: positions of a channel in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(1, 4, 3, 1, 1)
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12 * 9, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.grouped(self.first(x_NCHW).relu())
        joined_NCHW = self.norm(torch.cat([y_NCHW, self.second(x_NCHW)], 1)).relu()
        return self.head(nn.functional.max_pool2d(joined_NCHW, 2).flatten(1))  # type: ignore[no-any-return]


def joined(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Joined().to(dtype)
    for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean):
        nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval(), torch.randn(2, 1, 6, 6, dtype=dtype)


def squares(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().square() for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sorted_channels_compute_the_same_and_fall_in_importance(dtype: torch.dtype) -> None:
    model, x = joined(dtype)
    found = sort_channels(model, x, squares(model))
    assert found.left == () and found.difference < 1e-5
    assert not torch.equal(found.model.second.weight, model.second.weight)  # type: ignore[union-attr, arg-type]
    assert output_difference(model, found.model, x) < (1e-5 if dtype is torch.float32 else 1e-12)
    elastic = elastic_network(found.model, x)
    classes = elastic.channels.coupled.classes
    for number, scores in enumerate(elastic.channels.channel_scores(squares(found.model)).values()):
        group = torch.tensor(elastic.channels.coupled.group_of) == number
        for members in classes[number].members:
            own = scores[torch.searchsorted(group.nonzero().flatten(), torch.from_numpy(members))]
            assert bool((own.diff() <= 1e-6).all())


def test_a_sub_network_has_the_first_channels_and_is_proven() -> None:
    model, x = tiny(), torch.randn(2, 1, 6, 6)
    elastic = elastic_network(model, x)
    assert elastic.widths["stem"] == (8, 6, 4, 2) and [block.name for block in elastic.blocks] == [
        f"body.{i}" for i in range(3)
    ]
    found = elastic.subnetwork({"stem": 4, "body.0.conv1": 2}, ["body.1"], prove=True)
    assert found.proof is not None and found.proof.max_relative < 1e-5
    assert torch.equal(found.model.state_dict()["stem.weight"], model.state_dict()["stem.weight"][:4])
    assert isinstance(found.model.body[1], nn.Identity)  # type: ignore[index]
    quick = elastic.subnetwork({"stem": 4, "body.0.conv1": 2}, ["body.1"])
    assert quick.proof is None and torch.equal(quick.model(x), found.model(x))


def test_what_is_left_of_each_layer_is_what_its_multiply_adds_say() -> None:
    def checked(elastic: ElasticNetwork, x: Tensor, widths: dict[str, int], without: list[str]) -> None:
        small = elastic.subnetwork(widths, without).model
        before = {row.name: row.macs for row in layer_costs(elastic.model, (x,))}
        after = {row.name: row.macs for row in layer_costs(small, (x,))}
        shares = elastic.layer_shares(widths, without)
        assert {name: shares[name] * macs for name, macs in before.items()} == pytest.approx(
            {name: after.get(name, 0) for name in before}
        )

    x = torch.randn(2, 1, 6, 6)
    checked(elastic_network(tiny(), x), x, {"stem": 4, "body.0.conv1": 2}, ["body.1"])
    model, x = joined()
    elastic = elastic_network(model, x)
    checked(elastic, x, {name: options[-1] for name, options in elastic.widths.items()}, [])


def test_widths_are_multiples_and_a_network_without_any_is_refused() -> None:
    elastic = elastic_network(tiny(), torch.randn(1, 1, 6, 6), round_to=4)
    assert set(elastic.widths.values()) == {(8, 4)}
    with pytest.raises(NoEffect, match="no sub-networks"):
        elastic_network(nn.Linear(3, 2), torch.zeros(1, 3))
