"""Best of N random masks, and convolutions with thinner matrices."""

import itertools

import pytest
import torch
from nets import stripes, tiny
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.core.task import loss_of
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.prune.brain_damage import BrainDamage
from gossamer.methods.prune.coarse import CoarsePruning, best_masks
from gossamer.modules.cost import total_macs
from gossamer.modules.element_groups import channel_groups, kernel_groups

TASK = stripes()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).eval()


def loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(loss_of(TASK, model, TASK.train[0]))


def lost(most: int, seed: int = 0) -> float:
    model = small()
    best_masks(model, channel_groups(model, TASK.example_inputs), 0.4, most, loss, seed=seed)
    return loss(model)


def test_more_candidates_are_never_worse() -> None:
    losses = [lost(most) for most in (1, 2, 4, 7, 9)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_with_as_many_candidates_as_there_are_masks_it_is_exhaustive_search() -> None:
    model = small()
    groups = channel_groups(model, TASK.example_inputs)
    every = []
    for gone in itertools.combinations(range(5), 2):
        trial, alive = small(), torch.ones(5, dtype=torch.bool)
        alive[list(gone)] = False
        groups.clear({name: p.detach() for name, p in trial.named_parameters()}, alive)
        every.append(loss(trial))
    assert lost(10, seed=3) == min(every)


def test_what_is_chosen_is_cut_and_kernels_are_masked() -> None:
    result, edits = CoarsePruning(sparsity=0.5, kernels=0.5, candidates=2, layers=("body.*",))(tiny(), TASK)
    assert result.get_submodule("body.0.conv1").out_channels == 4
    assert {edit.kind for edit in edits} == {"resize", "constrain"}
    assert sorted(constraints(result))[0] == "body.0.conv1.weight"
    weight = materialize(result).get_parameter("body.1.conv2.weight")
    kernels = kernel_groups(materialize(result), layers=("body.1.conv2",))
    norms = kernels.norms({"body.1.conv2.weight": weight.detach()})
    assert int((norms == 0).sum()) == len(norms) // 2


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(BadInput, match="give sparsity, kernels or both"):
        CoarsePruning()
    with pytest.raises(NoEffect, match="less than one"):
        CoarsePruning(sparsity=0.01)(tiny(), TASK)


@pytest.mark.slow
def test_only_columns_of_convolutions_go_and_what_is_left_is_gathered() -> None:
    method = BrainDamage(speedup=2.0, layers=("body.1.*", "body.2.*"), epochs=4, lr=0.02)
    thin, edits = method(tiny(), TASK)
    assert total_macs(thin, TASK.example_inputs) * 2 == pytest.approx(total_macs(tiny(), TASK.example_inputs), rel=0.02)
    assert any(edit.kind == "swap" and "gathered by a GatheredConv" in edit.after for edit in edits)
    kept, _ = BrainDamage(speedup=2.0, layers=("body.1.*", "body.2.*"), epochs=4, lr=0.02, gather=False)(tiny(), TASK)
    x = TASK.example_inputs[0]
    torch.testing.assert_close(thin(x), kept(x), rtol=1e-4, atol=1e-5)


def test_networks_without_convolutions_have_no_columns_to_damage() -> None:
    with pytest.raises(NoEffect, match="columns"):
        BrainDamage(speedup=2.0)(nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)), TASK)
