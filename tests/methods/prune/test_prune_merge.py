"""Neurons that do the same are merged, without data."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import task
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.prune.merge import NeuronMerging, merge_neurons, mode_of, saliencies
from gossamer.modules.dead_units import find_neurons

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
DATA = replace(task(), example_inputs=(X,))


def mlp(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 3)).eval()


def duplicated(model: nn.Sequential, factor: float) -> nn.Sequential:
    """Neurons 7 and 9 of the first layer are neuron 2 times a factor."""
    with torch.no_grad():
        for j in (7, 9):
            model[0].weight[j] = factor * model[0].weight[2]
            model[0].bias[j] = factor * model[0].bias[2]
    return model


def test_saliencies_are_the_definition() -> None:
    incoming, outgoing = torch.randn(4, 3), torch.randn(2, 4)
    s = saliencies(incoming, outgoing)
    for i in range(4):
        for j in range(4):
            slow = float((outgoing[:, j] ** 2).mean() * ((incoming[i] - incoming[j]) ** 2).sum())
            assert s[i, j] == (torch.inf if i == j else pytest.approx(slow, rel=1e-4))


@pytest.mark.parametrize(("activation", "factor"), [(nn.ReLU(), 3.0), (nn.ReLU(), 1.0), (nn.Tanh(), 1.0)])
def test_duplicates_are_merged_without_any_change_of_the_outputs(activation: nn.Module, factor: float) -> None:
    model = duplicated(mlp(activation), factor)
    before = copy.deepcopy(model.state_dict())
    small = NeuronMerging(sparsity=0.2, layers=("0",))(model, DATA, Context()).model
    assert small.get_parameter("0.weight").shape == (8, 6) and small.get_parameter("2.weight").shape == (8, 8)
    torch.testing.assert_close(small(X), model(X), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_scaled_copies_are_not_taken_for_the_same_behind_a_tanh() -> None:
    models = {name: mlp(f) for name, f in (("relu", nn.ReLU()), ("tanh", nn.Tanh()))}
    found = {name: {f.maker: f.homogeneous for f in find_neurons(m, (X,))} for name, m in models.items()}
    assert found == {"relu": {"0": True, "2": True}, "tanh": {"0": False, "2": False}}


def test_behind_a_tanh_only_exact_copies_are_merged() -> None:
    model = duplicated(mlp(nn.Tanh()), 2.0)  # 7 and 9 are alike; 2 is half of them
    small = NeuronMerging(sparsity=0.1, layers=("0",))(model, DATA, Context()).model
    assert small.get_parameter("0.weight").shape == (9, 6)
    torch.testing.assert_close(small(X), model(X), rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_what_goes_is_added_to_the_nearest(seed: int, most: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    incoming, outgoing = torch.randn(7, 4, generator=draw).double(), torch.randn(3, 7, generator=draw).double()
    result, gone = merge_neurons(incoming, outgoing, most)
    slow, left = outgoing.clone(), set(range(7))
    for j in gone:
        _, i, best = min(
            (float((slow[:, b] ** 2).mean() * ((incoming[a] - incoming[b]) ** 2).sum()), a, b)
            for a in left
            for b in left
            if a != b
        )
        assert best == j
        slow[:, i] += slow[:, j]
        slow[:, j] = 0
        left.remove(j)
    assert len(gone) == most
    torch.testing.assert_close(result, slow)


def test_without_a_sparsity_it_stops_at_the_mode() -> None:
    assert mode_of(Tensor([0.0, 5.0, 5.01, 5.02, 10.0])) == pytest.approx(5.1)
    model = mlp(nn.ReLU())
    context = Context()
    small = NeuronMerging().apply(model, DATA, context)
    assert small.get_parameter("0.weight").shape[0] < 10
    told = [(edit.kind.value, edit.target) for edit in context.log.edits]
    assert told == [("resize", "0"), ("assign", "2"), ("resize", "2"), ("assign", "4")]


def test_a_share_of_the_mode_ends_the_merging_sooner() -> None:
    draw = torch.Generator().manual_seed(4)
    incoming, outgoing = torch.randn(40, 6, generator=draw), torch.randn(5, 40, generator=draw)
    s = saliencies(incoming, outgoing)
    gone = {share: merge_neurons(incoming, outgoing, None, share)[1] for share in (0.25, 0.5, 1.0)}
    assert 0 < len(gone[0.25]) < len(gone[0.5]) < len(gone[1.0])
    assert gone[1.0][: len(gone[0.5])] == gone[0.5]
    below = s[s.isfinite()] < 0.25 * mode_of(s[s.isfinite()])
    assert bool(below.any())


def test_what_cannot_be_merged_is_left_or_refused() -> None:
    normed = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with pytest.raises(NoEffect, match="without a norm"):
        NeuronMerging(sparsity=0.5)(normed, DATA, Context())
    held = constrain(mlp(nn.ReLU()), {"0.weight": Mask(torch.ones(10, 6, dtype=torch.bool))})
    with pytest.raises(BadInput, match=r"prune\.merge: 0\.weight is constrained by Mask"):
        NeuronMerging(sparsity=0.5)(held, DATA, Context())
