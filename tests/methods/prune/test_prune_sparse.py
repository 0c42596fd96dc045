"""Sparse training: targets, refusals, exact resume, and the path of what was emptied."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import learned, stripes, tiny
from torch import nn
from train_toy import Ending, Stop, checkpoint_every_step, on_cpu, same

from gossamer.core.record import Edit, to_json
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method
from gossamer.methods.prune._sparse import Penalized
from gossamer.methods.prune.biased_decay import BiasedDecay
from gossamer.methods.prune.group_lasso import NeuronCount
from gossamer.methods.prune.growing import GrowingRegularization
from gossamer.methods.prune.half_space import HalfSpaceProjection
from gossamer.methods.prune.l0 import L0Gates
from gossamer.methods.prune.less_is_more import LessIsMore
from gossamer.methods.prune.slimming import Slimming
from gossamer.methods.prune.ssl import StructuredSparsity
from gossamer.modules.cost import layer_costs
from gossamer.modules.element_groups import channel_groups
from gossamer.modules.group_cost import group_cost
from gossamer.train.loop import TrainingStep
from gossamer.train.sparsity import Shrinking, Sparsify, SparsityTarget

TASK = stripes()
SHORT: dict[str, Any] = {"epochs": 4, "lr": 0.02}


def macs(model: nn.Module) -> int:
    return sum(row.macs for row in layer_costs(model, TASK.example_inputs))


def wide() -> nn.Module:
    """Wide enough that one channel is less than 2 % of it."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, 100), nn.ReLU(), nn.Linear(100, 3)).eval()


def many() -> list[Method]:
    target = {"speedup": 3.0, **SHORT}
    return [
        NeuronCount(**target),
        NeuronCount(sparse=0.5, proximal="epoch", **target),
        BiasedDecay(**target),
        BiasedDecay(bias="exponential", **target),
        GrowingRegularization(**target),
        HalfSpaceProjection(**target),
        L0Gates(**target),
        StructuredSparsity(**target),
        StructuredSparsity(groups=("shapes",), **target),
        StructuredSparsity(groups=("filters", "shapes"), **target),
    ]


@pytest.mark.parametrize("method", many(), ids=lambda method: f"{method.name()}")
@pytest.mark.slow
def test_it_lands_within_two_per_cent_of_the_target(method: Method) -> None:
    smaller, _ = method(wide(), TASK)
    assert macs(smaller) / macs(wide()) == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("method", many()[:3], ids=lambda method: f"{method.name()}")
@pytest.mark.slow
def test_the_penalty_empties_the_groups_and_not_the_cut_at_the_end(method: Method) -> None:
    """However seldom it acts: steps that were once an epoch had a strength for steps that are all the time."""
    _, edits = method(wide(), TASK)
    [counted] = [edit for edit in edits if edit.target == "groups of weights"]
    assert counted.note == ""


@pytest.mark.parametrize("field", ["macs", "params"])
@pytest.mark.slow
def test_counts_are_targets_too(field: str) -> None:
    before = {"macs": macs(wide()), "params": sum(p.numel() for p in wide().parameters())}
    smaller, _ = NeuronCount(**{field: before[field] // 5}, **SHORT)(wide(), TASK)
    after = {"macs": macs(smaller), "params": sum(p.numel() for p in smaller.parameters())}
    assert after[field] / before[field] == pytest.approx(1 / 5, rel=0.02)


@pytest.mark.slow
def test_a_drop_ends_the_emptying() -> None:
    generous, _ = NeuronCount(max_drop=100.0, **SHORT)(tiny(), TASK)
    strict, _ = NeuronCount(max_drop=0.0, **SHORT)(learned(), TASK)
    assert macs(generous) < 3000 < macs(strict)


@pytest.mark.slow
def test_blocks_are_removed_as_a_whole() -> None:
    smaller, edits = StructuredSparsity(groups=("depth",), speedup=2.8, **SHORT)(tiny(), TASK)
    assert sum(isinstance(block, nn.Identity) for block in smaller.body) == 2
    assert [edit.after for edit in edits].count("removed") == 2


@pytest.mark.slow
def test_linear_neurons_alone() -> None:
    smaller, _ = LessIsMore(speedup=1.05, **SHORT)(wide(), TASK)
    assert smaller[0].out_channels == 64 and smaller[3].out_channels == 96 and smaller[6].out_features < 100


@pytest.mark.slow
def test_slimming_needs_scales() -> None:
    smaller, _ = Slimming(speedup=1.5, **SHORT)(wide(), TASK)
    assert smaller[0].out_channels < 64 and smaller[3].out_channels == 96
    with pytest.raises(NoEffect, match=r"needs batch norms"):
        Slimming(speedup=1.5, **SHORT)(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)), TASK)


def test_it_says_what_it_was_given_and_what_it_needs() -> None:
    with pytest.raises(BadInput, match=r"give one of strength, speedup.*not none"):
        NeuronCount()
    with pytest.raises(BadInput, match=r"not speedup and params"):
        GrowingRegularization(speedup=2.0, params=10)
    with pytest.raises(BadInput, match=r"did you mean 'shapes'"):
        StructuredSparsity(speedup=2.0, groups=("shape",))


def test_a_target_that_no_group_can_reach_is_refused_before_training() -> None:
    with pytest.raises(BadInput, match=r"cannot be reached: with one group of each layer left"):
        NeuronCount(macs=10, epochs=10_000)(tiny(), TASK)


def test_a_penalty_that_empties_a_layer_is_refused_with_its_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(BadInput, match=r"would empty 1\.(weight|bias), which has no shortcut"):
        NeuronCount(strength=1000.0, **SHORT)(model, TASK)
    with pytest.raises(NoEffect, match="no group became zero"):
        NeuronCount(strength=1e-6, **SHORT)(model, TASK)


def test_networks_without_hidden_channels_are_refused() -> None:
    with pytest.raises(NoEffect, match="no channel of the selected layers can be removed"):
        NeuronCount(speedup=2.0)(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), TASK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HalfSpaceProjection, L0Gates])
def test_killed_and_started_again_it_ends_with_the_same_bits(
    kind: type[Penalized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_every_step(monkeypatch)
    method = kind(speedup=3.0, epochs=3, lr=0.02)
    whole, edits = method(tiny(), TASK, on_cpu())
    cut = replace(TASK, train=Ending(TASK.train, epoch=1, at=4))
    with pytest.raises(Stop):
        method(tiny(), cut, on_cpu(folder=tmp_path))
    again, repeated = method(tiny(), TASK, on_cpu(folder=tmp_path))
    assert same(again, whole)
    assert [edit.after for edit in repeated[1:]] == [edit.after for edit in edits[1:]]


def test_a_rule_that_asks_for_the_last_values_gets_them() -> None:
    """Those after the last step: a step later, they differ from the new ones by that step."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def rule(step: Shrinking) -> None:
        name = next(iter(step.groups.carried))
        seen.append((step.previous[name].clone(), step.parameters[name].clone()))

    model = tiny()
    groups = channel_groups(model, TASK.example_inputs)
    cost = group_cost(model, TASK.example_inputs, [groups], "macs")
    target = SparsityTarget("strength", 1.0)
    hook = Sparsify(families=(groups,), rule=rule, target=target, until=0.9, cost=cost, keeps_previous=True)
    hook.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for number in range(1, 4):
        TASK.loss(model.train(), TASK.train[0]).backward()
        optimizer.step()
        hook(TrainingStep(model=model, optimizer=optimizer, number=number, steps=10))
    assert torch.equal(seen[1][0], seen[0][1]) and torch.equal(seen[2][0], seen[1][1])
    assert not torch.equal(seen[1][0], seen[1][1])
    assert all("_gossamer" not in name for name in Sparsify.detach(model).state_dict())


@pytest.mark.slow
def test_the_path_tells_when_groups_died_and_survives_a_document() -> None:
    _, edits = NeuronCount(speedup=3.0, **SHORT)(tiny(), TASK)
    [path] = [edit.path for edit in edits if edit.path is not None]
    assert path.steps == sorted(path.steps) and path.steps[-1] == 4 * len(TASK.train)
    for counts in path.alive.values():
        assert counts == sorted(counts, reverse=True)
    assert path.cost[-1] < path.cost[0] == macs(tiny())
    again = [Edit.parse(row) for row in to_json(edits)]
    assert again == list(edits)
