"""Factorization of whole networks: which layers, what the history says, what is refused."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from nets import task, tiny
from torch import Tensor, nn

from gossamer.calibration.moments import input_moments
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.lowrank import _grams
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tensor_train import TensorTrain
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.modules.cost import layer_costs, total_macs, total_params


def rows(width: int, samples: int = 64, seed: int = 0) -> Task:
    """Correlated inputs, for linear networks."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    x = torch.randn(samples, width, generator=generator) @ mix
    return Task(
        name="rows",
        train=[(x, torch.zeros(samples).long())],
        validation=[],
        test=[],
        calibration=[x],
        example_inputs=(x[:4],),
    )


def stack(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("scheme", [ChannelDecomposition, SpatialDecomposition, Tucker, TensorTrain])
def test_a_budget_on_the_layers_that_can_be_factored(scheme: Any, share: float) -> None:
    def cost(model: nn.Module) -> int:
        return sum(r.macs for r in layer_costs(model, task().example_inputs) if not r.name.startswith("head"))

    changed = scheme(macs=share)(tiny(), task(), Context()).model
    assert 0.8 * share * cost(tiny()) <= cost(changed) <= share * cost(tiny())


def test_a_budget_on_parameters() -> None:
    model, data = stack(32, 32, 32), rows(32)
    changed = SVD(params=0.5)(model, data, Context()).model
    biases = 64
    assert total_params(changed) - biases <= 0.5 * (total_params(model) - biases)


def test_the_history_says_what_was_left_and_why() -> None:
    context = Context()
    changed = SpatialDecomposition(ranks={"body.0.*": 2}).apply(tiny(), task(), context)
    notes = {edit.target: edit.note for edit in context.log.edits}
    assert set(notes) == {"stem", "head", *(f"body.{i}.conv{j}" for i in range(3) for j in (1, 2))}
    assert "second axis" in notes["head"] and "does not name it" in notes["body.1.conv1"]
    assert notes["body.0.conv1"] == "rank 2"
    [edit] = [e for e in context.log.edits if e.target == "body.0.conv1"]
    assert edit.before == "Conv2d 3x3 8 to 8, 20,736 MACs"
    assert edit.after == "Conv2d 3x1 8 to 2 + Conv2d 1x3 2 to 8, 3,456 MACs"
    assert isinstance(changed.get_submodule("body.0.conv1"), nn.Sequential)
    assert isinstance(changed.get_submodule("body.1.conv1"), nn.Conv2d)
    before = total_macs(tiny(), task().example_inputs)
    assert total_macs(changed, task().example_inputs) == before - 2 * (20_736 - 3_456)


def test_a_layer_whose_factors_would_take_more_is_left_alone() -> None:
    context = Context()
    changed = SVD(ranks={"0": 8, "1": 3}).apply(stack(16, 16, 16), rows(16), context)
    assert isinstance(changed[0], nn.Linear) and isinstance(changed[1], nn.Sequential)
    [note] = [e.note for e in context.log.edits if e.target == "0"]
    assert "rank 8 would take 256 MACs" in note and "takes 256" in note


def test_evbmf_on_a_planted_network() -> None:
    model = stack(60, 50)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(50, 4, generator=generator), torch.randn(4, 60, generator=generator)
    model[0].weight.data = left @ right + 0.3 * torch.randn(50, 60, generator=generator)
    context = Context()
    SVD().apply(model, rows(60), context)
    assert [edit.note for edit in context.log.edits] == ["rank 4"]


def test_noise_alone_is_left_alone() -> None:
    with pytest.raises(NoEffect, match="nothing but noise"):
        SVD()(stack(60, 50), rows(60), Context())


@torch.no_grad()
def test_accumulated_errors_are_corrected() -> None:
    model, data = stack(24, 24, 24, 24), rows(24)
    [x] = data.calibration
    ranks = {"*": 8}
    errors = {
        how: float((SVD(ranks=ranks, data=how)(model, data, Context()).model(x) - model(x)).square().mean())
        for how in ("none", "inputs", "accumulated")
    }
    assert errors["accumulated"] < errors["inputs"] < errors["none"]


def test_the_energy_of_outputs_needs_smaller_ranks_where_inputs_are_few() -> None:
    model, data = stack(24, 24), rows(24)
    data.calibration[0][:, 6:] = 0  # type: ignore[index]
    context = Context()
    changed = SVD(energy=0.9999, data="inputs").apply(model, data, context)
    assert changed[0][0].out_features <= 6


@pytest.mark.parametrize("scheme", [SVD, ChannelDecomposition, SpatialDecomposition])
def test_a_layer_that_is_named_and_does_not_fit_is_refused(scheme: Any) -> None:
    name = "stem" if scheme is SVD else "head"
    with pytest.raises(BadInput, match=rf"{scheme.name()}: layer '{name}' cannot be factored: its? "):
        scheme(energy=0.7, layers=(name,))(tiny(), task(), Context())


class Odd(nn.Module):
    """A shared weight, a layer that is called nowhere, one whose class has its own ways, and one fit to be factored."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.idle, self.fit = (nn.Linear(16, 16) for _ in range(4))
        self.other.weight = self.one.weight
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fit(self.other(self.one(x)))[:, None]
        return self.attention(y, y, y, need_weights=False)[0][:, 0]  # type: ignore[no-any-return]


def test_layers_that_cannot_be_replaced_are_left() -> None:
    context = Context()
    changed = SVD(energy=0.5).apply(Odd().eval(), rows(16), context)
    notes = {edit.target: edit.note for edit in context.log.edits}
    assert "several places" in notes["one"]
    assert "not called" in notes["idle"]
    assert "NonDynamicallyQuantizableLinear" in notes["attention.out_proj"]
    assert notes["fit"].startswith("rank")
    assert changed(rows(16).example_inputs[0]).shape == (4, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.5, "macs": 0.5}, "energy and macs are both given"),
        ({"data": "labels"}, "unknown lowrank.svd data 'labels'"),
        ({"ranks": {"head": 9}}, r"ranks of 'head' = \[9\] must be from 1 to \[3\]"),
        ({"ranks": {"head": (1, 1)}}, r"ranks of 'head' = \[1, 1\]"),
        ({"macs": 0.01}, "macs = 0.01: these layers cannot be cheaper than 0.458"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SVD(**options)(tiny(), task(), Context())


def test_ranks_that_no_tensor_has_together_are_refused() -> None:
    with pytest.raises(BadInput, match=r"\[2, 7, 2\]: no tensor has all of these"):
        TensorTrain(ranks={"body.0.conv1": (2, 7, 2)})(tiny(), task(), Context())


def test_a_held_network_is_refused() -> None:
    held = constrain(tiny(), {"head.weight": Mask(torch.ones(3, 8, dtype=torch.bool))})
    with pytest.raises(BadInput, match="first"):
        SVD(energy=0.7)(held, task(), Context())


def test_what_is_frozen_stays_frozen() -> None:
    model = tiny().requires_grad_(False)
    assert not any(p.requires_grad for p in ChannelDecomposition(macs=0.5)(model, task(), Context()).model.parameters())


@pytest.mark.parametrize("data", ["none", "accumulated"])
@torch.no_grad()
@pytest.mark.slow
def test_norms_between_the_factors_change_nothing_at_first(data: Any) -> None:
    """In eval mode, and in train mode on all of the data as one batch; and their scales are those of the features."""
    batch = (task().example_inputs[0], None)
    one = replace(task(), calibration=[batch])
    plain, normed = (
        SpatialDecomposition(energy=0.7, data=data, norm=norm)(tiny(), one, Context()).model for norm in (False, True)
    )
    norms = [m for name, m in normed.named_modules() if isinstance(m, nn.BatchNorm2d) and name.endswith(".1")]
    assert norms
    torch.testing.assert_close(normed(*batch[:1]), plain(*batch[:1]), rtol=1e-4, atol=1e-5)
    for norm in norms:
        norm.train()
        torch.testing.assert_close(norm.weight.square(), norm.running_var + norm.eps)
    torch.testing.assert_close(normed(*batch[:1]), plain(*batch[:1]), rtol=1e-3, atol=1e-3)


def test_a_chain_with_norms_trains_from_fresh_weights() -> None:
    model = SpatialDecomposition(energy=0.7, norm=True)(tiny(), task(), Context()).model
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), list[float]()
    for _ in range(15):
        [batch, *_] = task().train
        loss = task().loss(model.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_measured_sensitivity_decides_where_the_budget_goes() -> None:
    """Two equal layers, one of which the outputs hardly depend on: it pays for the other."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matters, self.idle = nn.Linear(24, 24), nn.Linear(24, 24)
            self.idle.load_state_dict(self.matters.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.matters(x) + 0.01 * self.idle(x)

    data, model = rows(24), Two()
    x, _ = data.train[0]  # type: ignore[index]
    with torch.no_grad():
        data = replace(data, train=[(x, model(x).argmax(1))])
    ranks = {}
    for measured in (False, True):
        changed = SVD(params=0.5, measured=measured)(model, data, Context()).model
        ranks[measured] = [len(m[0].weight) if isinstance(m, nn.Sequential) else 24 for m in changed.children()]
    assert ranks[False][0] == ranks[False][1]
    assert ranks[True][0] > ranks[False][0] > ranks[True][1]
    with pytest.raises(BadInput, match="needs macs, params or time"):
        SVD(energy=0.5, measured=True)


def test_an_error_names_each_reason_once() -> None:
    with pytest.raises(NoEffect) as error:
        SVD(energy=0.5, ignore=("head",))(tiny(), task(), Context())
    assert str(error.value).count("its kernel is larger than 1") == 1
    assert "stem, body.0.conv1, body.0.conv2, " in str(error.value)


def test_moments_of_many_layers_take_one_run_and_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = stack(6, 8, 10, 4), rows(6)
    layers: dict[str, Any] = dict(model.named_children())
    wanted = input_moments(model, list(layers), data.calibration)
    for kept, expected in ((1 << 30, [3]), (8 * (36 + 64), [2, 1]), (0, [1, 1, 1])):
        runs: list[int] = []

        def counted(model: nn.Module, names: list[str], *more: Any, runs: list[int] = runs) -> dict[str, Tensor]:
            runs.append(len(names))
            return input_moments(model, names, *more)

        monkeypatch.setattr(_grams, "KEPT", kept)
        monkeypatch.setattr(_grams, "input_moments", counted)
        found = _grams.Grams(model, layers, data.calibration, 4)
        for name, layer in layers.items():
            assert torch.equal(found(name, layer.weight.double()), wanted[name])  # type: ignore[arg-type]
        assert runs == expected
    assert _grams.Grams(model, layers, None, 4)("0", torch.zeros(1)) is None


def clock(monkeypatch: pytest.MonkeyPatch, time: Any) -> None:
    """A runtime on which modules take the time that is said."""

    def costs(groups: Any, inputs: Any, *_: Any, **__: Any) -> list[list[float]]:
        return [[time(module) for module in group] for group in groups]

    monkeypatch.setattr("gossamer.ptq.isolated_layers.isolated_costs", costs)


def weights_in(module: nn.Module) -> float:
    return float(sum(p.numel() for p in module.parameters() if p.dim() > 1))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_budget_on_time_goes_by_the_clock(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, weights_in)
    model, data = stack(64, 64, 64), rows(64)
    changed = SVD(time=share)(model, data, Context()).model
    ranks = [m[0].out_features for m in changed if isinstance(m, nn.Sequential)]  # type: ignore[attr-defined]
    assert 0.5 * share * weights_in(model) <= weights_in(changed) <= share * weights_in(model)
    assert set(ranks) <= {8, 16, 24} and all(m.training for m in model)


def test_layers_by_which_the_runtime_does_not_gain_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer has a kernel of its own, as fast as any chain."""
    model, data, context = stack(64, 64, 48), rows(64), Context()
    clock(monkeypatch, lambda m: 200.0 if isinstance(m, nn.Linear) and m.out_features == 48 else weights_in(m))
    changed = SVD(time=0.6).apply(model, data, context)
    assert isinstance(changed[0], nn.Sequential) and isinstance(changed[1], nn.Linear)  # type: ignore[index]
    [note] = [edit.note for edit in context.log.edits if edit.target == "1"]
    assert note.startswith("the runtime gains too little: at the lightest rank that was timed it takes 1.")
    with pytest.raises(BadInput, match=r"time = 0\.05: these layers cannot be cheaper than"):
        SVD(time=0.05)(model, data, Context())


@pytest.mark.parametrize("data", ["none", "accumulated"])
def test_what_is_slower_in_the_end_is_put_back(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, context = stack(64, 64, 64), list[int](), Context()

    def times(groups: Any, inputs: Any, *_: Any, **__: Any) -> list[list[float]]:
        calls.append(len(groups))
        if len(calls) == 1:
            return [[weights_in(module) for module in group] for group in groups]
        return [[1.0, 0.5], [1.0, 1.5]]

    monkeypatch.setattr("gossamer.ptq.isolated_layers.isolated_costs", times)
    # Layers that are alike are timed once, so these are not.
    model[1] = nn.Linear(64, 64, bias=False)
    changed = SVD(time=0.5, data=data).apply(model, rows(64), context)
    assert calls == [2, 2]
    assert isinstance(changed[0], nn.Sequential) and changed[1].weight.equal(model[1].weight)  # type: ignore[index]
    notes = {edit.target: edit.note for edit in context.log.edits}
    assert "1.50 times the layer's time in the end; put back" in notes["1"] and "put back" not in notes["0"]
