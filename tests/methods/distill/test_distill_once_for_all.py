"""Once-for-all training: what it leaves of the network, and what its sub-networks learn."""

import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.batches import inputs_and_target
from gossamer.methods.distill import OnceForAll
from gossamer.methods.prune import ChannelPruning
from gossamer.modules.elastic import elastic_network
from gossamer.modules.widening import output_difference
from gossamer.train import recalibrate


def task() -> gossamer.Task:
    """Two classes that are told apart by the mean of the image."""
    target = torch.arange(32) % 2
    images = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + 2 * target.view(-1, 1, 1, 1)
    batches = [(images[i : i + 8], target[i : i + 8]) for i in range(0, 32, 8)]
    return gossamer.Task.from_loaders(batches, batches)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def test_without_steps_the_channels_are_sorted_and_nothing_else_changes() -> None:
    model = network().eval()
    found, edits = OnceForAll(steps=0)(model, task())
    norms = found[0].weight.detach().square().flatten(1).sum(1)
    norms = norms + found[5].weight.detach().square().sum(0)
    assert bool((norms.diff() <= 1e-6).all())
    assert output_difference(model, found, task().example_inputs) < 1e-5
    assert [edit.kind.value for edit in edits] == ["assign"] and edits[0].proof is not None


def test_sub_networks_learn_what_nothing_else_teaches_them() -> None:
    """The smallest sub-network of one that was trained with it, against one of the same network trained alone."""
    data, loss = task(), nn.functional.cross_entropy

    def smallest(model: nn.Module) -> float:
        small = elastic_network(model, data.example_inputs).subnetwork({"0": 2}).model
        recalibrate(small, data.calibration)
        [x], y = inputs_and_target(next(iter(data.train)))
        return float(loss(small.eval()(x), y).detach())

    options = {"epochs": 8, "lr": 0.1, "alpha": 1.0}
    together, _ = OnceForAll(**options)(network(), data)
    alone, _ = OnceForAll(steps=0)(
        gossamer.methods.distill.RecoveryDistillation(**options)(network(), data).model, data
    )
    assert smallest(together) < smallest(alone)


def test_the_cut_by_order_is_the_sub_network() -> None:
    found, _ = OnceForAll(epochs=1, lr=0.05)(network(), task())
    cut, _ = ChannelPruning(widths={"0": 4}, criterion="order", reconstruct=False)(found, task())
    sub = elastic_network(found, task().example_inputs).subnetwork({"0": 4}).model
    assert all(torch.equal(one, other) for one, other in zip(cut.parameters(), sub.parameters(), strict=True))


def test_a_network_without_sub_networks_is_refused() -> None:
    batches = [(torch.rand(8, 3), torch.arange(8) % 2)]
    with pytest.raises(gossamer.errors.NoEffect, match="no sub-networks"):
        OnceForAll(epochs=1, lr=0.1)(nn.Linear(3, 2), gossamer.Task.from_loaders(batches, batches))
