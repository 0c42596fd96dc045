"""Units without inputs or outputs are removed, and nothing else changes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import stripes, task, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.grid import Grid
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.dead import DeadUnits
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.modules.dead_units import remove_dead


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    )
    return model.eval()


X = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))


def assert_same(small: nn.Module, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(small(x + 1), model(x + 1), rtol=1e-4, atol=1e-5)


def test_units_that_nothing_reads_go_and_with_them_what_only_they_read() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight[:, 4] = 0
        model[2].weight[:, 7] = 0
        model[2].weight[4, 7] = 1.0  # read by unit 4 alone
    cleared = remove_dead(model, (X,))
    assert dict(cleared.widths) == {"0": (10, 9), "2": (8, 7)} and len(cleared.cuts) == 2
    assert_same(cleared.model, model, X)
    assert model[2].weight.shape == (8, 10)


def test_constants_of_units_that_nothing_feeds_go_into_the_biases() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[[1, 2]] = 0
        model[0].bias[1], model[0].bias[2] = 0.7, -1.0
    before = copy.deepcopy(model.state_dict())
    cleared = remove_dead(model, (X,))
    assert dict(cleared.widths) == {"0": (10, 8)} and cleared.folded == 2
    assert_same(cleared.model, model, X)
    expected = before["2.bias"] + 0.7 * before["2.weight"][:, 1]
    torch.testing.assert_close(cleared.model.get_parameter("2.bias"), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_constant_in_front_of_padding_stays_unless_it_is_zero() -> None:
    for bias, widths in ((0.7, {}), (-1.0, {"0": (8, 7)})):
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
        with torch.no_grad():
            model[0].weight[5] = 0
            model[0].bias[5] = bias
        cleared = remove_dead(model, (IMAGES,))
        assert dict(cleared.widths) == widths
        assert_same(cleared.model, model, IMAGES)


def test_a_constant_in_front_of_a_layer_without_bias_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        model[0].weight[1] = 0
    assert dict(remove_dead(model, (X,)).widths) == {}


def test_channels_behind_batch_norm_and_flattening_are_found() -> None:
    model = cnn()
    with torch.no_grad():
        model[0].weight[[1, 2]] = 0
        model[0].bias[1], model[0].bias[2] = 0.7, -1.0
        model[5].weight[:, 16:32] = 0
        model[5].weight[:, 40] = 0  # one place of a channel of which others are read
        model[3].weight[3] = 0
    cleared = remove_dead(model, (IMAGES,))
    assert dict(cleared.widths) == {"0": (8, 6), "3": (6, 4)} and cleared.folded == 3
    assert_same(cleared.model, model, IMAGES)


def test_a_layer_keeps_one_unit() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight.zero_()
    cleared = remove_dead(model, (X,))
    assert cleared.model.get_parameter("4.weight").shape == (3, 1)
    assert_same(cleared.model, model, X)


def test_coupled_channels_go_only_when_nothing_reads_any_of_them() -> None:
    model = tiny()
    with torch.no_grad():
        for name in ("head", "body.0.conv1", "body.1.conv1", "body.2.conv1"):
            model.get_submodule(name).weight[:, 3] = 0  # type: ignore[operator]
    x = task().example_inputs
    cleared = remove_dead(model, x)
    assert dict(cleared.widths) == {"stem": (8, 7)}
    assert_same(cleared.model, model, x[0])
    with torch.no_grad():
        model.get_submodule("body.1.conv1").weight[0, 3, 0, 0] = 1.0  # type: ignore[index]
    assert dict(remove_dead(model, x).widths) == {}


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.5, 0.97))
@pytest.mark.slow
def test_whatever_is_masked_the_outputs_stay(seed: int, sparsity: float) -> None:
    model = mlp(seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in weights_of(model).values():
            p *= torch.rand(p.shape, generator=draw) > sparsity
    cleared = remove_dead(model, (X,))
    assert_same(cleared.model, model, X)
    assert cleared.max_relative <= 1e-5
    hidden = cleared.model.get_parameter("2.weight")
    assert hidden.shape[1] == 1 or (hidden != 0).any(0).all()


def test_masks_follow_and_hold_in_what_comes_after() -> None:
    data = stripes()
    masked = Magnitude(sparsity=0.97, scope="global", ignore=("stem",))(tiny(), data, Context()).model
    context = Context(original=tiny())
    small = DeadUnits().apply(masked, data, context)
    assert context.log.edits and all(edit.kind == "resize" and edit.proof is not None for edit in context.log.edits)
    before, after = (sum(p.numel() for p in materialize(m).parameters()) for m in (masked, small))
    assert after < before
    torch.testing.assert_close(small(data.example_inputs[0]), masked(data.example_inputs[0]), rtol=1e-4, atol=1e-5)
    zeros = {n: effective_weight(small, n) == 0 for n in constraints(small)}
    trained = RecoveryDistillation(epochs=1, lr=0.01).apply(small, data, context)
    for name, zero in zeros.items():
        assert not effective_weight(trained, name)[zero].any() and effective_weight(trained, name).shape == zero.shape


def test_nothing_dead_is_said_and_shared_values_are_refused() -> None:
    context = Context()
    same = DeadUnits().apply(tiny(), task(), context)
    assert torch.equal(same(task().example_inputs[0]), tiny()(task().example_inputs[0]))
    assert [(e.before, e.after) for e in context.log.edits] == [("no dead units", "nothing to remove")]
    with pytest.raises(BadInput, match=r"head\.weight is constrained by Grid; put prune\.dead first"):
        DeadUnits()(constrain(tiny(), {"head.weight": Grid(0.1, -7, 7)}), task(), Context())
