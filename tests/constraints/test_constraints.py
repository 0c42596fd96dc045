"""Weights held to masks, codebooks and grids."""

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import train_toy as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import task, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints, finalize, materialize
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.methods.prune.channels import prune_channels
from gossamer.modules.cost import layer_costs
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.train import fit, recalibrate


def half(shape: Any, seed: int = 0) -> Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) > 0.5


def masked(model: nn.Module) -> nn.Module:
    return constrain(model, {name: Mask(half(p.shape)) for name, p in weights_of(model).items()})


def held_all_ways(model: nn.Module) -> nn.Module:
    """Masks on everything, on one of them a codebook, on another a grid."""
    model = masked(model)
    stem = effective_weight(model, "stem.weight")
    book = torch.tensor([0.0, -0.3, -0.1, 0.1, 0.3])
    indices = (stem[..., None] - book).abs().argmin(-1).where(stem != 0, 0)
    grid = Grid(torch.full((3,), 0.05), -7, 7, learned=True)
    return constrain(model, {"stem.weight": Codebook(book, indices), "head.weight": grid})


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def outputs(model: nn.Module) -> Tensor:
    result: Tensor = model(task().example_inputs[0])
    return result


# Values


def test_a_mask_keeps_what_is_true_and_passes_gradients_there_only() -> None:
    layer = nn.Linear(4, 2)
    mask = torch.tensor([[True, False, True, False], [False, True, False, True]])
    held = constrain(layer, {"weight": Mask(mask)})
    assert torch.equal(held.weight, layer.weight * mask)
    held(torch.randn(3, 4)).sum().backward()
    [raw] = weights_of(held).values()
    assert raw.grad is not None and torch.equal(raw.grad != 0, mask)


def test_the_gradient_of_a_codebook_entry_is_the_sum_over_its_users_and_zero_stays_zero() -> None:
    indices = torch.tensor([[0, 1, 2], [2, 1, 2]])
    held = constrain(nn.Linear(3, 2), {"weight": Codebook(torch.tensor([0.0, 0.5, -1.0]), indices)})
    assert torch.equal(held.weight, torch.tensor([[0.0, 0.5, -1.0], [-1.0, 0.5, -1.0]]))
    upstream = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    held.weight.backward(upstream)
    [stack] = constraints(held).values()
    assert isinstance(stack[0], Codebook) and stack[0].codebook.grad is not None
    assert stack[0].codebook.grad.tolist() == [0.0, 18.0, 44.0]


def test_a_codebook_of_vectors_gives_consecutive_weights() -> None:
    book = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    held = constrain(nn.Linear(4, 2), {"weight": Codebook(book, torch.tensor([0, 1, 1, 0]))})
    assert held.weight.tolist() == [[1, 2, 3, 4], [3, 4, 1, 2]]


@settings(max_examples=40)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=12), st.floats(0.0625, 2), st.integers(1, 7))
def test_a_grid_rounds_to_the_nearest_level_and_learns_its_step_by_the_published_gradient(
    values: list[float], step: float, high: int
) -> None:
    weight = torch.tensor([values], requires_grad=True)
    grid = Grid(step, -high, high, learned=True)
    value = grid(weight)
    value.sum().backward()
    expected_step = 0.0
    for k, w in enumerate(values):
        v = torch.tensor(w) / torch.tensor(step)
        level = float(v.clamp(-high, high).round())
        assert value[0, k].item() == (torch.tensor(step) * level).item()
        inside = -high < v < high
        expected_step += float(level - v) if inside else level
        if abs(abs(float(v)) - high) > 1e-6:
            assert weight.grad is not None and weight.grad[0, k].item() == pytest.approx(float(inside), abs=1e-6)
    if all(abs(abs(w / step) - high) > 1e-3 for w in values):
        share = (len(values) * high) ** -0.5
        assert grid.scale.grad is not None
        assert grid.scale.grad.item() == pytest.approx(share * expected_step, abs=1e-4)


def test_a_grid_has_a_scale_for_each_channel_of_its_dimension() -> None:
    weight = torch.full((2, 3), 0.9)
    assert Grid(torch.tensor([1.0, 0.5]), -4, 4)(weight).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert Grid(torch.tensor([1.0, 0.5, 0.3]), -1, 1, dim=1)(weight)[0].tolist() == pytest.approx([1, 0.5, 0.3])


# Constrain and bake


def test_the_model_is_left_alone_and_bake_gives_back_its_classes_names_order_and_the_same_outputs() -> None:
    model = tiny()
    before, types = copy.deepcopy(model.state_dict()), kinds(model)
    held = held_all_ways(model)
    assert kinds(model) == types and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert held.state_dict().keys() != before.keys()
    plain = materialize(held)
    assert kinds(plain) == types
    assert list(plain.state_dict()) == list(before)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert torch.equal(outputs(plain), outputs(held))
    assert constraints(plain) == {} and constraints(held).keys() == weights_of(held).keys()
    assert torch.equal(outputs(materialize(plain)), outputs(plain))
    assert torch.equal(outputs(held), outputs(held_all_ways(model)))  # baking a copy did not reach the model


@pytest.mark.parametrize("first", ["weight", "bias"])
def test_bake_puts_parameters_back_in_their_order_also_where_all_of_a_layer_are_held(first: str) -> None:
    masks: dict[str, Constraint] = {"weight": Mask(half((2, 3))), "bias": Mask(torch.tensor([True, False]))}
    held = constrain(nn.Linear(3, 2), {name: masks[name] for name in sorted(masks, key=lambda name: name != first)})
    held = constrain(held, {"bias": Mask(torch.tensor([False, True]))})
    assert list(materialize(held).state_dict()) == ["weight", "bias"]
    assert materialize(held).bias.tolist() == [0, 0]
    assert {name: len(stack) for name, stack in constraints(held).items()} == {"weight": 1, "bias": 2}


def test_a_copy_and_a_loaded_state_compute_the_same() -> None:
    held = held_all_ways(tiny())
    twin = copy.deepcopy(held)
    assert torch.equal(outputs(twin), outputs(held))
    other = held_all_ways(tiny())
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    for stack in constraints(other).values():
        assert isinstance(stack[0], Mask)
        stack[0].mask.logical_not_()
    other.load_state_dict(held.state_dict())
    assert torch.equal(outputs(other), outputs(held))


def test_a_weight_that_two_layers_share_is_held_in_both_and_shared_again_when_baked() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    mask = half((3, 3))
    held = constrain(model, {"0.weight": Mask(mask)})
    assert torch.equal(held[1].weight, model[0].weight * mask)
    assert list(weights_of(held)) == ["0.weight"] == list(constraints(held))
    plain = materialize(held)
    assert plain[0].weight is plain[1].weight
    assert materialize(copy.deepcopy(held))[0].weight.equal(plain[0].weight)


def test_frozen_weights_stay_frozen() -> None:
    model = tiny().requires_grad_(False)
    assert not any(p.requires_grad for p in materialize(masked(model)).parameters())


def test_settled_constraints_replace_those_of_one_training() -> None:
    class Passing(Mask):
        def finalized(self) -> Constraint:
            return Mask(self.mask)

    held = constrain(nn.Linear(3, 2), {"weight": Passing(half((2, 3)))})
    [stack] = constraints(finalize(held)).values()
    assert [type(c) for c in stack] == [Mask]
    assert torch.equal(finalize(held).weight, held.weight)


# Refusals


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({}, "no weights were named"),
        ({"head.wieght": Mask(half((3, 8)))}, "did you mean 'head.weight'"),
        ({"head.weight": Mask(half((8, 3)))}, r"head\.weight: Mask has \[8, 3\], the weight \[3, 8\]"),
        ({"head.weight": Codebook(torch.ones(2), torch.zeros(5, dtype=torch.int))}, "Codebook does not fit"),
        ({"head.weight": Grid(torch.ones(5), -1, 1)}, r"Grid does not fit a weight of \[3, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused(held: dict[str, Constraint], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        constrain(tiny(), held)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.ones(3)), "torch.bool"),
        (lambda: Codebook(torch.ones(2), torch.tensor([0, 2])), r"must be in \[0, 2\)"),
        (lambda: Codebook(torch.ones(2), torch.tensor([0.0])), "integers"),
        (lambda: Codebook(torch.ones(2, 2, 2), torch.tensor([0])), r"\(K,\) or \(K, d\)"),
        (lambda: Grid(0.0, -1, 1), "positive"),
        (lambda: Grid(1.0, 1, 2), "holds 0"),
    ],
)
def test_constraints_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_a_falling_order_is_refused_with_the_reason() -> None:
    held = constrain(tiny(), {"head.weight": Grid(0.1, -7, 7)})
    with pytest.raises(BadInput, match="Mask cannot stand on Grid, which already fixes the values; prune first"):
        constrain(held, {"head.weight": Mask(half((3, 8)))})


def test_values_that_bring_back_dropped_weights_are_refused() -> None:
    held = constrain(tiny(), {"head.weight": Mask(torch.zeros(3, 8, dtype=torch.bool))})
    with pytest.raises(BadInput, match="Codebook brings back 24 weights that a Mask sets to zero"):
        constrain(held, {"head.weight": Codebook(torch.ones(1), torch.zeros(3, 8, dtype=torch.int))})


def test_edits_that_change_shapes_are_refused_on_a_constrained_network() -> None:
    held = masked(tiny())
    x = task().example_inputs
    edits = [lambda: prune_channels(held, x), lambda: swap(held, {}), lambda: resize(held, None, PruningPlan({}, {}))]
    for edit in edits:
        with pytest.raises(BadInput, match=r"stem\.weight is constrained by Mask \(8 weights in all\).*materialize"):
            edit()


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_held_and_trained(layer: type[nn.RNNBase], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, x = layer(3, 4, num_layers=2, batch_first=True), torch.randn(2, 5, 3)
    names = [name for name, p in plain.named_parameters() if p.ndim == 2]
    held = constrain(plain, {name: Mask(half(plain.get_parameter(name).shape)) for name in names})
    optimizer = torch.optim.SGD(held.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        held(x)[0].square().sum().backward()
        optimizer.step()
        held = held.to("cpu")
    copied, baked = copy.deepcopy(held), materialize(held)
    for name in names:
        keep, weight = half(plain.get_parameter(name).shape), baked.get_parameter(name)
        assert not weight[~keep].any()
        assert (weight != plain.get_parameter(name))[keep].any()
    assert type(baked) is layer
    assert [name for name, _ in baked.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for other in (copied, baked, copy.deepcopy(baked)):
        assert torch.equal(held(x)[0], other(x)[0])
    expected = layer(3, 4, num_layers=2, batch_first=True)
    expected.load_state_dict(baked.state_dict())
    assert torch.equal(expected(x)[0], baked(x)[0])


def test_parametrizations_of_others_are_refused() -> None:
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(BadInput, match=r"Linear\.bias: its layer has parametrizations of its own"):
        constrain(normed, {"0.bias": Mask(torch.ones(3, dtype=torch.bool))})


def test_every_matrix_is_a_weight_where_that_is_asked() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8), "layer": layer, "norm": nn.BatchNorm1d(8)})
    plain = ["layer.self_attn.out_proj.weight", "layer.linear1.weight", "layer.linear2.weight"]
    assert sorted(weights_of(model)) == sorted(plain)
    every = ["embed.weight", "layer.self_attn.in_proj_weight", *plain]
    assert sorted(weights_of(model, every=True)) == sorted(every)
    held = constrain(model, {name: Grid(0.1, -3, 3) for name in every})
    raws = weights_of(held, every=True)
    assert sorted(raws) == sorted(every)
    assert all(torch.equal(raws[name], model.get_parameter(name)) for name in every)
    assert list(weights_of(model, ("embed", "*attn*"), ("*out_proj",), every=True)) == every[:2]


def test_selections_match_names_and_patterns_or_are_an_error() -> None:
    model = tiny()
    assert list(weights_of(model, ["stem", "body.1.*"])) == [
        "stem.weight",
        "body.1.conv1.weight",
        "body.1.conv2.weight",
    ]
    assert list(weights_of(model, ignore=["body.*", "stem"])) == ["head.weight"]
    with pytest.raises(NoEffect, match="layers='sten' matches none"):
        weights_of(model, ["sten"])
    with pytest.raises(NoEffect, match="leaves none"):
        weights_of(model, ignore=["*"])


# Training


def assert_held(model: nn.Module) -> None:
    """What `held_all_ways` promises."""
    for name, stack in constraints(model).items():
        assert isinstance(stack[0], Mask)
        assert not effective_weight(model, name)[~stack[0].mask].any()
        assert effective_weight(model, name).any()
    assert len(effective_weight(model, "stem.weight").unique()) <= 5


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.5},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"precision": "bf16-mixed", "clip": 0.1},
    ],
)
def test_weights_stay_held_through_training(changes: dict[str, Any]) -> None:
    held = held_all_ways(tiny())
    before = {name: effective_weight(held, name).clone() for name in constraints(held)}
    recalibrate(held, task().calibration)
    fit(held, task(), toy.training(epochs=2, lr=0.01, **changes), toy.on_cpu())
    assert_held(held)
    assert all(not torch.equal(effective_weight(held, name), value) for name, value in before.items())
    assert torch.equal(outputs(materialize(held)), outputs(held))


def test_momentum_and_decay_of_the_time_before_the_mask_do_not_bring_weights_back() -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    layer(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    held = constrain(layer, {"weight": Mask(half((4, 4)))})
    [raw] = weights_of(held).values()
    optimizer = torch.optim.SGD([raw], 0.1, momentum=0.9, weight_decay=0.1)
    optimizer.state[raw]["momentum_buffer"] = torch.ones_like(raw)
    for _ in range(3):
        optimizer.zero_grad()
        held(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    assert not held.weight[~half((4, 4))].any() and held.weight[half((4, 4))].all()


def test_two_processes_hold_it_too() -> None:
    held = held_all_ways(tiny())
    before = effective_weight(held, "stem.weight").clone()
    fit(held, task(), toy.training(epochs=1, lr=0.01), toy.on_cpu(devices=2))
    assert_held(held)
    assert not torch.equal(effective_weight(held, "stem.weight"), before)


def test_cut_off_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.checkpoint_every_step(monkeypatch)
    plan, data = toy.training(epochs=2, lr=0.01, ema=0.5), task()
    whole = fit(held_all_ways(tiny()), data, plan, toy.on_cpu()).model
    cut = copy.copy(data)
    object.__setattr__(cut, "train", toy.Ending(data.train, epoch=1, at=2))
    with pytest.raises(toy.Stop):
        fit(held_all_ways(tiny()), cut, plan, toy.on_cpu(), checkpoint=tmp_path / "c")
    assert toy.same(fit(held_all_ways(tiny()), data, plan, toy.on_cpu(), checkpoint=tmp_path / "c").model, whole)


# Leaving


@pytest.mark.slow
def test_exports_are_those_of_the_baked_network(tmp_path: Path) -> None:
    held, x = held_all_ways(tiny()), task().example_inputs[0]
    path = export_onnx(held, (x,), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), outputs(held).detach(), rtol=1e-4, atol=1e-5)
    loaded = load_pt2(export_pt2(held, (x,), tmp_path / "m.pt2"))
    torch.testing.assert_close(loaded(x), outputs(held))
    assert path.stat().st_size == export_onnx(materialize(held), (x,), tmp_path / "b.onnx").stat().st_size


def test_it_costs_what_the_baked_network_costs() -> None:
    held, x = held_all_ways(tiny()), task().example_inputs
    assert layer_costs(held, x) == layer_costs(tiny(), x)


@pytest.mark.slow
def test_it_compiles() -> None:
    held = held_all_ways(tiny()).train()
    x = task().example_inputs[0]
    compiled = torch.compile(copy.deepcopy(held), backend="aot_eager")
    for model in (compiled, held):
        F.cross_entropy(model(x), torch.arange(8) % 3).backward()
    torch.testing.assert_close(compiled(x), held(x))
    for a, b in zip(compiled.parameters(), held.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
