"""Methods that prune while they train, and the hook after each step that they need."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import stripes, tiny
from torch import Tensor, nn
from train_toy import Ending, Stop, checkpoint_every_step, net, on_cpu, same, task, training

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.errors import BadInput
from gossamer.methods._training import Retrain
from gossamer.methods.prune._masks import Schedule, cubic, moving, selected_weights
from gossamer.methods.prune.gradual import GradualPruning, Tighten
from gossamer.methods.prune.iterative import IterativePruning, quality_mask, rewind, rewound_dropout, weaker_dropout
from gossamer.methods.prune.movement import Follow, MovementPruning, Scored
from gossamer.methods.prune.rigl import GradientRecordingMask, Rewire, RigL, forget, moved
from gossamer.train import AfterStep, TrainingStep, fit

ALL_OF_NET = ("0.weight", "5.weight")


def free(model: nn.Module, kind: type[Mask] = Mask) -> nn.Module:
    return constrain(model, {n: kind(torch.ones_like(w, dtype=torch.bool)) for n, w in weights_of(model).items()})


def sparsity(model: nn.Module) -> float:
    weights = selected_weights(model, ["*"], [])
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


# The hook


@dataclass(frozen=True)
class Noting:
    """Counts its calls in a buffer of the model."""

    notes: list[TrainingStep]

    def __call__(self, step: TrainingStep) -> None:
        self.notes.append(step)
        with torch.no_grad():
            step.model.get_buffer("1.running_mean")[0] = step.number


def test_the_hook_sees_every_step_after_it_was_done_with_its_gradients() -> None:
    notes: list[TrainingStep] = []
    model = net()
    fit(model, task(), training(epochs=2, keep="last"), on_cpu(), after_step=Noting(notes))
    assert [step.number for step in notes] == list(range(1, 17)) and {step.steps for step in notes} == {16}
    assert all(step.model is model for step in notes)
    assert model.get_buffer("1.running_mean")[0] == 16


@pytest.mark.parametrize("kind", ["gradual", "rigl", "movement"])
def test_cut_off_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    checkpoint_every_step(monkeypatch)
    schedule = Schedule(start=0.0, final=0.8, every=3, until=0.8)
    hook: AfterStep
    match kind:
        case "gradual":
            model, hook = free(net()), Tighten(names=ALL_OF_NET, schedule=schedule, scope="global")
        case "rigl":
            model, hook = free(net(), GradientRecordingMask), Rewire(names=ALL_OF_NET, moves=0.3, every=2, until=1.0)
            for h in moving(model, ALL_OF_NET).values():
                h.mask.mask.view(-1)[::2] = False
        case _:
            model, hook = free(net(), Scored), Follow(names=ALL_OF_NET, schedule=schedule, scope="layer")
    toy, plan = task(), training(keep="last", ema=0.5)
    whole = fit(copy.deepcopy(model), toy, plan, on_cpu(), after_step=hook).model
    cut = replace(toy, train=Ending(toy.train, epoch=1, at=5))
    with pytest.raises(Stop):
        fit(copy.deepcopy(model), cut, plan, on_cpu(), after_step=hook, checkpoint=tmp_path / "c")
    resumed = fit(copy.deepcopy(model), toy, plan, on_cpu(), after_step=hook, checkpoint=tmp_path / "c").model
    assert same(resumed, whole) and sparsity(whole) > 0.4


def test_a_checkpoint_of_another_hook_is_refused(tmp_path: Path) -> None:
    hooks = [
        Tighten(names=ALL_OF_NET, schedule=Schedule(start=0.0, final=s, every=1, until=1.0), scope="layer")
        for s in (0.5, 0.6)
    ]
    fit(free(net()), task(), training(epochs=1), on_cpu(), after_step=hooks[0], checkpoint=tmp_path / "c")
    with pytest.raises(BadInput, match="after_step was"):
        fit(free(net()), task(), training(epochs=1), on_cpu(), after_step=hooks[1], checkpoint=tmp_path / "c")


@pytest.mark.slow
def test_two_processes_move_the_same_connections() -> None:
    model = free(net(), GradientRecordingMask)
    for h in moving(model, ALL_OF_NET).values():
        h.mask.mask.view(-1)[::2] = False
    before = {n: h.mask.mask.clone() for n, h in moving(model, ALL_OF_NET).items()}
    hook = Rewire(names=ALL_OF_NET, moves=0.5, every=2, until=1.0)
    fit(model, task(), training(epochs=1, keep="last"), on_cpu(devices=2), after_step=hook)
    for name, h in moving(model, ALL_OF_NET).items():
        assert int(h.mask.mask.sum()) == int(before[name].sum())
        assert not torch.equal(h.mask.mask, before[name])


# Gradual


@given(st.floats(0, 0.5), st.floats(0.5, 0.99), st.floats(0, 1))
def test_the_cubic_schedule_starts_and_ends_where_it_should_and_never_falls(a: float, b: float, t: float) -> None:
    assert cubic(a, b, 0.0) == pytest.approx(a) and cubic(a, b, 1.0) == b
    assert cubic(a, b, t) == pytest.approx(b + (a - b) * (1 - t) ** 3)
    assert cubic(a, b, t) <= cubic(a, b, min(t + 0.1, 1.0)) + 1e-12


def test_masks_move_every_n_steps_and_last_where_the_schedule_ends() -> None:
    schedule = Schedule(start=0.0, final=0.9, every=4, until=0.5)
    model, optimizer = nn.Linear(1, 1), torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    steps = [TrainingStep(model=model, optimizer=optimizer, number=n, steps=20) for n in range(1, 21)]
    at = {step.number: schedule.sparsity(step) for step in steps}
    assert [n for n, s in at.items() if s is not None] == [4, 8, 10]
    assert at[10] == 0.9 and at[4] == pytest.approx(0.9 - 0.9 * 0.6**3)


def test_gradual_pruning_ends_at_exactly_its_sparsity_and_starts_from_what_is_there() -> None:
    history: list[float] = []
    method = GradualPruning(sparsity=0.7, every=1, epochs=2, lr=0.01, until=0.5, alpha=1.0)
    start = free(net())
    for h in moving(start, ALL_OF_NET).values():
        h.mask.mask.view(-1)[::4] = False
    there = sparsity(start)

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            history.append(sparsity(self))
            result: Tensor = super().forward(x)
            return result

    watched = Watched(*start)
    result = method(watched, task(), on_cpu()).model
    total = sum(w.numel() for w in selected_weights(result, ["*"], []).values())
    assert sparsity(result) == pytest.approx(round(0.7 * total) / total)
    assert history[0] == there and min(history) == there
    assert history[8 + 4 :] == [sparsity(result)] * len(history[12:])
    dropped = effective_weight(start, "5.weight") == 0
    assert not effective_weight(result, "5.weight")[dropped].any()


# Movement


def test_scores_grow_where_a_step_moves_a_weight_away_from_zero() -> None:
    mask = torch.tensor([[True, False, True]])
    held = constrain(nn.Linear(3, 1, bias=False), {"weight": Scored(mask)})
    [[scored]] = constraints(held).values()
    assert isinstance(scored, Scored)
    [raw] = weights_of(held).values()
    raw.data.copy_(torch.tensor([[1.0, 2.0, -3.0]]))
    assert held.weight.tolist() == [[1, 0, -3]]
    upstream = torch.tensor([[0.5, 1.0, 2.0]])
    held.weight.backward(upstream)
    torch.optim.SGD(held.parameters(), lr=0.1).step()
    assert scored.scores.tolist() == pytest.approx([-0.05, -0.2, 0.6])  # - lr (dL/dW') w, also where it is dropped
    assert raw.grad is not None and raw.grad.tolist() == [[0.5, 0.0, 2.0]]


def test_movement_keeps_the_largest_scores_of_every_layer_and_leaves_plain_masks() -> None:
    result = MovementPruning(sparsity=0.75, every=2, epochs=2, lr=0.05, alpha=1.0)(net(), task(), on_cpu()).model
    for name, stack in constraints(result).items():
        assert [type(c) for c in stack] == [Mask]
        value = effective_weight(result, name)
        assert int((value == 0).sum()) == round(0.75 * value.numel())
    assert not any("scores" in name for name, _ in result.named_parameters())


@pytest.mark.slow
def test_what_an_earlier_mask_drops_never_comes_back() -> None:
    model = tiny()
    model = constrain(model, {n: Mask(torch.rand(w.shape) > 0.5) for n, w in weights_of(model).items()})
    dropped = {n: effective_weight(model, n) == 0 for n in constraints(model)}
    data = replace(stripes(), train=stripes().train[:3])  # type: ignore[index]
    for method in (
        MovementPruning(sparsity=0.7, every=1, epochs=1, lr=0.01, alpha=1.0),
        RigL(sparsity=0.7, scope="layer", every=1, epochs=1, lr=0.01, alpha=1.0),
        GradualPruning(sparsity=0.7, every=1, epochs=1, lr=0.01, alpha=1.0),
        IterativePruning(sparsity=0.7, rounds=2, epochs=1, lr=0.01, alpha=1.0),
    ):
        result = method(model, data, on_cpu()).model
        assert all(not effective_weight(result, n)[gone].any() for n, gone in dropped.items())
        assert sparsity(result) == pytest.approx(0.7, abs=0.01)


# RigL


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.2, 0.8))
def test_the_smallest_go_and_the_largest_gradients_come(seed: int, share: float, density: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, gradient, allowed = (torch.randn(5, 6, generator=draw) for _ in range(3))
    allowed = allowed > -1
    mask = (torch.rand(5, 6, generator=draw) < density) & allowed
    new = moved(mask, weight * mask, gradient, share, allowed)
    assert int(new.sum()) == int(mask.sum()) and not (new & ~allowed).any()
    count = min(round(share * int(mask.sum())), int(allowed.sum()) - int(mask.sum()))
    drop = set(sorted((i for i in range(30) if mask.view(-1)[i]), key=lambda i: weight.view(-1)[i].abs())[:count])
    stay = {i for i in range(30) if mask.view(-1)[i]} - drop
    open_ = [i for i in range(30) if allowed.view(-1)[i] and i not in stay]
    grow = set(sorted(open_, key=lambda i: -gradient.view(-1)[i].abs())[:count])
    assert {i for i in range(30) if new.view(-1)[i]} == stay | grow


def test_the_probe_has_the_gradient_of_the_masked_weight_everywhere() -> None:
    mask = torch.tensor([[True, False]])
    held = constrain(nn.Linear(2, 1), {"weight": GradientRecordingMask(mask)})
    held.weight.backward(torch.tensor([[3.0, 4.0]]))
    [[probed]] = constraints(held).values()
    assert isinstance(probed, GradientRecordingMask) and probed.probe.grad is not None
    assert probed.probe.grad.tolist() == [3, 4]
    [raw] = weights_of(held).values()
    assert raw.grad is not None and raw.grad.tolist() == [[3, 0]]


def test_grown_weights_start_from_zero_without_momentum() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    where = torch.tensor([[True, False], [False, False]])
    forget(optimizer, weight, where)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[weight][key] == 0, where)
    hook = Rewire(names=("weight",), moves=1.0, every=1, until=1.0)
    held = constrain(nn.Linear(4, 4), {"weight": GradientRecordingMask(torch.eye(4, dtype=torch.bool))})
    optimizer = torch.optim.SGD(held.parameters(), 0.1, momentum=0.9)
    held(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    h = moving(held, ["weight"])["weight"]
    before = h.mask.mask.clone()
    optimizer.state[h.raw]["momentum_buffer"].fill_(1.0)
    hook(TrainingStep(model=held, optimizer=optimizer, number=1, steps=4))
    grown = h.mask.mask & ~before
    assert grown.any() and not h.raw[grown].any()
    assert not optimizer.state[h.raw]["momentum_buffer"][grown].any()
    assert optimizer.state[h.raw]["momentum_buffer"][~grown].any()


def test_rigl_keeps_its_density_and_its_connections_move() -> None:
    method = RigL(sparsity=0.8, every=2, epochs=2, lr=0.05, alpha=1.0, scope="layer")
    first = RigL(sparsity=0.8, every=1000, epochs=1, lr=0.05, alpha=1.0, scope="layer")(net(), task(), on_cpu()).model
    last = method(net(), task(), on_cpu()).model
    for name in ALL_OF_NET:
        masks = [constraints(m)[name][0].get_buffer("mask") for m in (first, last)]
        assert int(masks[0].sum()) == int(masks[1].sum()) == masks[0].numel() - round(0.8 * masks[0].numel())
        assert not torch.equal(*masks)
        assert type(constraints(last)[name][0]) is Mask
    large = RigL(sparsity=0.8, every=1000, epochs=1, start="magnitude", scope="layer", alpha=1.0)(
        net(), task(), on_cpu()
    ).model
    kept = constraints(large)["5.weight"][0].get_buffer("mask")
    size = net()[5].weight.abs()
    assert size[kept].min() >= size[~kept].max()


# Iterative


def test_the_threshold_is_a_multiple_of_the_spread_of_the_survivors() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 3.0, -3.0]])
    spread = torch.tensor([1.0, -1.0, 3.0, -3.0]).std(correction=0)
    assert quality_mask(weight, 1.0).tolist() == [[False, False, False], [False, True, True]]
    assert quality_mask(weight, 0.9 / float(spread)).sum() == 4
    assert quality_mask(weight, 0.5).sum() == 2  # of all weights the spread is smaller, and four would stay
    assert not quality_mask(torch.zeros(2, 2), 1.0).any()


def test_dropout_is_as_much_weaker_as_the_layer_behind_it_is_smaller() -> None:
    assert rewound_dropout(0.5, 25, 100) == 0.25
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(0.4), nn.Identity())
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    held = constrain(model, {"3.weight": Mask(mask)})
    with weaker_dropout(held):
        assert held[1].p == 0.25 and held[4].p == 0.4
    assert held[1].p == 0.5 and model[1].p == 0.5


def test_rounds_drop_the_same_share_of_what_is_left_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = Retrain.train

    def noting(self: Retrain, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(1 - sparsity(model))
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(Retrain, "train", noting)
    result = IterativePruning(sparsity=0.784, rounds=3, epochs=1, lr=0.01, alpha=1.0, scope="global")(
        net(), task(), on_cpu()
    ).model
    assert seen == pytest.approx([0.6, 0.36, 0.216], abs=0.002)
    assert 1 - sparsity(result) == pytest.approx(0.216, abs=0.002)
    assert len(constraints(result)["5.weight"]) == 1


def test_rewinding_restores_exactly_and_the_mask_stays(tmp_path: Path) -> None:
    early = net(3)
    held = free(net())
    moving(held, ["5.weight"])["5.weight"].mask.mask[:, ::2] = False
    rewind(held, early.state_dict())
    plain = materialize(held)
    expected = early.state_dict()
    expected["5.weight"][:, ::2] = 0.0
    assert all(torch.equal(v, expected[k]) for k, v in plain.state_dict().items())
    with pytest.raises(BadInput, match=r"did you mean '5\.weight'"):
        rewind(held, {"5.weights": expected["5.weight"]})
    with pytest.raises(BadInput, match=r"5\.bias is \[3\], here \[4\]"):
        rewind(held, {"5.bias": torch.zeros(3)})


def test_every_round_starts_from_the_early_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early = net(3)
    safetensors.torch.save_file(early.state_dict(), tmp_path / "early.safetensors")
    starts: list[Tensor] = []
    real = Retrain.train

    def noting(self: Retrain, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        starts.append(effective_weight(model, "5.weight").clone())
        return real(self, model, *args, **kwargs)

    monkeypatch.setattr(Retrain, "train", noting)
    IterativePruning(sparsity=0.5, rounds=2, epochs=1, rewind=tmp_path / "early.safetensors", alpha=1.0)(
        net(), task(), on_cpu()
    )
    for start in starts:
        assert torch.equal(start[start != 0], early[5].weight[start != 0])
    assert (starts[1] == 0).sum() > (starts[0] == 0).sum()


def test_either_sparsity_or_quality() -> None:
    with pytest.raises(BadInput, match="either sparsity or quality"):
        IterativePruning()
    result = IterativePruning(quality=1.0, rounds=1, epochs=1, lr=0.01, alpha=1.0)(net(), task(), on_cpu()).model
    assert 0.5 < sparsity(result) < 0.75  # uniform weights: 1 / sqrt(3) of them are below one standard deviation


def test_what_has_no_gradient_does_not_grow() -> None:
    """Three of ten inputs are always 0: connections to them would stay zero."""
    mask, weight, gradient = torch.zeros(4, 10, dtype=torch.bool), torch.zeros(4, 10), torch.ones(4, 10)
    mask[:, :5], weight[:, :5], gradient[:, :5], gradient[:, 7:] = True, 1.0, 0.0, 0.0
    new = moved(mask, weight, gradient, 0.9, torch.ones_like(mask))
    assert int(new.sum()) == 20 and not new[:, 7:].any() and new[:, 5:7].all()
