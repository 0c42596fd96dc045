"""Networks that grow and at first compute the same."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.graph.groups import find_groups
from gossamer.methods.distill.deeper import Net2Deeper, identity_stage, output_statistics
from gossamer.methods.distill.wider import Net2Wider
from gossamer.models.densenet import densenet_cifar
from gossamer.models.googlenet import InceptionModule
from gossamer.models.resnet import ResNet
from gossamer.modules.widening import repeated_indices, widen


def settled(model: nn.Module) -> nn.Module:
    """In float64, with nothing left at its initial constant."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict(keep_vars=True).values():
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double().eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return settled(ResNet(3))


def densenet() -> nn.Module:
    torch.manual_seed(0)
    return settled(densenet_cifar(16, 4, compact=True))


def inception() -> nn.Module:
    torch.manual_seed(0)
    blocks = InceptionModule(8, (4, 3, 6, 2, 4, 3)), nn.BatchNorm2d(17), InceptionModule(17, (4, 3, 6, 2, 4, 3))
    head = nn.Flatten(), nn.Linear(17 * 64, 3)  # reads every position of every channel
    return settled(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *blocks, *head))


def double_task(size: int = 16) -> Task:
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return replace(task(), example_inputs=(images,), calibration=[images])


NETWORKS = {"resnet20": resnet, "densenet": densenet, "inception": inception}
BEHIND = {"resnet20": ("stage1.0", "stage3.2"), "densenet": ("blocks.1.1",), "inception": ("1", "4.branch3")}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wider_network_computes_the_same_in_float64(name: str) -> None:
    model, data, context = NETWORKS[name](), double_task(), Context(seed=3)
    wider = Net2Wider(factor=1.5).apply(model, data, context)
    torch.testing.assert_close(wider(*data.example_inputs), model(*data.example_inputs), rtol=1e-10, atol=1e-10)
    groups = find_groups(model, data.example_inputs).prunable()
    assert {edit.target: edit.after for edit in context.log.edits} == {
        g.name: f"{round(1.5 * g.size)} channels" for g in groups
    }
    after = {g.name: g.size for g in find_groups(wider, data.example_inputs).prunable()}
    assert after == {g.name: round(1.5 * g.size) for g in groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_deeper_network_computes_the_same_in_float64(name: str) -> None:
    model, data, context = NETWORKS[name](), double_task(), Context()
    deeper = Net2Deeper(names=BEHIND[name]).apply(model, data, context)
    torch.testing.assert_close(deeper(*data.example_inputs), model(*data.example_inputs), rtol=1e-10, atol=1e-10)
    assert [edit.target for edit in context.log.edits] == list(BEHIND[name])
    assert all(edit.proof is not None and edit.proof < 1e-12 for edit in context.log.edits)
    assert len(list(deeper.parameters())) == len(list(model.parameters())) + 3 * len(BEHIND[name])


def test_in_training_mode_too() -> None:
    """Batch norm sees equal statistics in copies."""
    model, data = resnet(), double_task()
    wider = Net2Wider(factor=2)(model, data, Context()).model
    expected = model.train()(*data.example_inputs)
    torch.testing.assert_close(wider.train()(*data.example_inputs), expected, rtol=1e-9, atol=1e-9)


def test_copies_do_not_stay_copies() -> None:
    """They get unequal gradients, while the outgoing weights of a unit's copies add up to the unit's."""
    data = double_task()
    model: Any = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 3)).double()
    wider: Any = Net2Wider(widths={"0": 6})(model, data, Context()).model
    rows = wider[0].weight.detach().flatten(1)
    heads = wider[3].weight.detach().view(3, 6, 196)
    for unit in range(2):
        same = (rows == model[0].weight.detach().flatten(1)[unit]).all(1)
        assert same.any()
        torch.testing.assert_close(heads[:, same].sum(1), model[3].weight.detach().view(3, 2, 196)[:, unit])
    wider(*data.example_inputs).pow(2).sum().backward()
    gradients = wider[0].weight.grad.flatten(1)
    assert len(rows.unique(dim=0)) == 2 and len(gradients.unique(dim=0)) == 6


def test_indices_are_repeated_in_runs_and_shares_are_the_units() -> None:
    shares = [np.ones(1), np.array([0.25, 0.75])]
    indices, parts = repeated_indices(np.array([1, 1, 0, -1, -1, 1]), shares)
    assert indices == [0, 1, 0, 1, 2, 3, 4, 5, 5]
    assert parts.tolist() == [0.25, 0.25, 0.75, 0.75, 1, 1, 1, 0.25, 0.75]


class Normed(nn.Module):
    """Layer norm over channels, of which one group can grow and the other cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(36, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.middle = nn.Linear(4, 5)
        self.back = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.last(self.norm(x + self.back(F.relu(self.middle(x)))))  # type: ignore[no-any-return]


def test_groups_that_cannot_grow_are_left_and_say_why() -> None:
    torch.manual_seed(0)
    context = Context()
    wider: Any = Net2Wider(factor=1.5).apply(Normed(), task(), context)
    assert wider.middle.out_features == 8 and wider.first.out_features == 4
    [left] = [edit for edit in context.log.edits if edit.after == "left alone"]
    assert left.target == "first" and "would change the outputs" in left.note
    with pytest.raises(BadInput, match=r"first: copies would change the outputs"):
        Net2Wider(widths={"first": 6})(Normed(), task(), Context())
    with pytest.raises(NoEffect, match="no group of channels got wider"):
        Net2Wider(factor=1.05)(Normed(), task(), Context())


def test_grouped_convolutions_are_left_and_depthwise_ones_grow() -> None:
    data = double_task()
    grouped = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1), nn.Flatten()).double()
    with pytest.raises(NoEffect, match="groups of a convolution"):
        Net2Wider(factor=2)(grouped, data, Context())
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 3, 1), nn.Flatten())
    wider: Any = Net2Wider(factor=2)(depthwise.double(), data, Context()).model
    assert wider[1].groups == 16
    torch.testing.assert_close(wider(*data.example_inputs), depthwise(*data.example_inputs), rtol=1e-10, atol=1e-10)


def test_options_that_make_no_sense_are_named() -> None:
    with pytest.raises(BadInput, match="either factor or widths"):
        Net2Wider()
    with pytest.raises(BadInput, match=r"stem = 5 must be at least 8"):
        widen(find_groups(tiny(), task().example_inputs), {"stem": 5})
    with pytest.raises(BadInput, match="names is empty"):
        Net2Deeper(names=())
    with pytest.raises(BadInput, match="'body' contains another"):
        Net2Deeper(names=("body", "body.0"))(tiny(), task(), Context())


def test_vectors_have_a_linear_layer_and_all_new_weights_train() -> None:
    data = double_task(6)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    deeper: Any = Net2Deeper(names=("2",))(model, data, Context()).model
    torch.testing.assert_close(deeper(*data.example_inputs), model(*data.example_inputs), rtol=1e-10, atol=1e-10)
    deeper(*data.example_inputs).pow(2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in deeper[2].parameters())


@pytest.mark.parametrize("images", [True, False])
def test_in_training_mode_a_new_stage_is_the_identity_for_batches_of_these_statistics(images: bool) -> None:
    x = torch.rand(16, 3, 4, 4, dtype=torch.float64) if images else torch.rand(64, 3, dtype=torch.float64)
    flat = x.transpose(0, 1).flatten(1)
    stage = identity_stage(flat.mean(1), flat.var(1, correction=0), images=images)
    for mode in (False, True):  # training moves the statistics
        torch.testing.assert_close(stage.train(mode)(x), x, rtol=1e-9, atol=1e-9)


def test_statistics_are_those_of_all_batches() -> None:
    batches, network = list[Any](task().calibration), tiny()
    mean, variance, least, images = output_statistics(network, ["stem"], batches)["stem"]
    y: Tensor = network.get_submodule("stem")(torch.cat(batches)).detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, y.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, y.var(1, correction=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(least, y.amin(1).clamp_max(0))
    assert images


class Aside(nn.Module):
    """Layers that cannot be followed by others."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.unused, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x.flatten(2)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("head",), "'head' gives negative outputs"),
        (("rows",), r"'rows' gives shape \(8, 1, 36\)"),
        (("unused",), "'unused' did not run"),
        (("heed",), "unknown module in distill.deeper 'heed'; did you mean 'head'"),
    ],
)
def test_modules_behind_which_nothing_can_be_inserted_say_why(names: tuple[str, ...], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(BadInput, match=message):
        Net2Deeper(names=names)(Aside(), task(), Context())
