"""Methods that binarize inputs: which layers become what, and what is around them."""

from typing import Any

import pytest
import torch
from nets import learned, stripes, task, tiny
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.core.context import Context
from gossamer.core.progress import Quiet
from gossamer.errors import BadInput, NoEffect
from gossamer.measure.accuracy import evaluate
from gossamer.methods.binarize._inputs import shortcut_around, with_shortcut
from gossamer.methods.binarize.bireal import BiRealNetwork
from gossamer.methods.binarize.bnn import BinarizedNetwork, fixed_point_step
from gossamer.methods.binarize.react import ReActNetwork
from gossamer.methods.binarize.xnor import XnorNetwork, xnor_speedup
from gossamer.modules.binary import (
    BinaryBlock,
    BinaryConv2d,
    BinaryLinear,
    FixedPointInput,
    ShiftedPReLU,
    binary_weight,
)

ONCE: Any = {"epochs": 1, "lr": 0.001}
QUIET = Context(progress=Quiet())


def plain() -> nn.Module:
    """With modules ReLU, a strided layer that doubles its channels, and a depthwise one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, 2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).eval()


@pytest.mark.parametrize("cls", [BinarizedNetwork, XnorNetwork, BiRealNetwork, ReActNetwork])
@pytest.mark.slow
def test_a_trained_network_learns_and_ends_with_signs(cls: Any) -> None:
    data = stripes()
    model, _ = cls(epochs=3, lr=0.003)(learned(), data, QUIET, teacher=learned())
    finished = materialize(model)
    binary = [m for m in finished.modules() if isinstance(m, BinaryConv2d)]
    assert len(binary) == 6 and all(binary_weight(m.weight) is not None for m in binary)
    assert evaluate(finished, data, "test").value > 0.6


def test_the_first_and_the_last_layer_stay_real_and_depthwise_layers_are_told() -> None:
    model, edits = XnorNetwork(**ONCE)(plain(), task(), QUIET)
    kinds = [type(m) for m in materialize(model)]  # type: ignore[arg-type]
    assert kinds[0] is nn.Conv2d and kinds[2] is BinaryConv2d and kinds[5] is nn.Conv2d
    assert kinds[8] is BinaryLinear and kinds[10] is nn.Linear
    assert [edit.target for edit in edits if "depthwise" in (edit.note or "")] == ["5"]
    with pytest.raises(BadInput, match="layer '5': it is depthwise"):
        XnorNetwork(**ONCE, layers=("5", "2"))(plain(), task(), QUIET)
    with pytest.raises(NoEffect, match="no layer gets binary inputs"):
        XnorNetwork(**ONCE, layers=("0",), ends=True)(plain(), task(), QUIET)


def test_ends_give_the_first_layer_binary_weights_and_fixed_point_inputs() -> None:
    model, _ = BinarizedNetwork(**ONCE, ends=True)(plain(), task(), QUIET)
    first: Any = model.get_submodule("0")
    assert isinstance(first[0], FixedPointInput) and first[0].bits == 8
    assert "0.1.weight" in constraints(model) and "10.weight" in constraints(model)
    last = materialize(model).get_submodule("10")
    assert isinstance(last, BinaryLinear) and isinstance(last.norm, nn.BatchNorm1d)
    real, _ = BinarizedNetwork(**ONCE, ends=True, first_bits=None)(plain(), task(), QUIET)
    assert "0.weight" in constraints(real)


def test_the_step_of_fixed_point_numbers_is_the_smallest_that_reaches() -> None:
    assert fixed_point_step(torch.tensor([-127.0, 5.0]), 8) == 1.0
    assert fixed_point_step(torch.tensor([127.5]), 8) == 2.0
    assert fixed_point_step(torch.tensor([0.9]), 8) == 2.0**-7
    assert fixed_point_step(torch.zeros(1), 8) == 1.0


@pytest.mark.parametrize(("kind", "expected"), [("keep", nn.ReLU), ("hardtanh", nn.Hardtanh), ("rprelu", ShiftedPReLU)])
def test_relus_become_what_is_asked_for(kind: Any, expected: type[nn.Module]) -> None:
    model, _ = XnorNetwork(**ONCE, activations=kind)(plain(), task(), QUIET)
    assert [type(model.get_submodule(name)) for name in ("1", "4", "9")] == [expected] * 3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BinaryConv2d(4, 8, 3, 2, padding=1), (2, 4, 7, 5)),
        (BinaryConv2d(4, 4, (3, 1), padding=(1, 0)), (2, 4, 6, 6)),
        (BinaryConv2d(4, 12, 5, padding="same"), (2, 4, 6, 6)),
        (BinaryLinear(4, 8), (2, 4)),
    ],
)
def test_a_shortcut_has_the_shape_of_the_outputs(layer: Any, shape: tuple[int, ...]) -> None:
    block = with_shortcut(layer)
    assert isinstance(block, BinaryBlock)
    x = torch.randn(shape)
    assert block.shortcut(x).shape == layer(x).shape
    assert torch.equal(block.eval()(x), block.norm(layer(x)) + block.shortcut(x))


@pytest.mark.parametrize("layer", [BinaryConv2d(4, 6, 3, padding=1), BinaryConv2d(4, 4, 3), BinaryLinear(4, 2)])
def test_other_shapes_have_no_shortcut(layer: Any) -> None:
    assert shortcut_around(layer) is None and with_shortcut(layer) is layer


def test_a_trained_threshold_starts_at_the_mean_of_its_inputs() -> None:
    layer = nn.Conv2d(2, 2, 1)
    block = ReActNetwork().replacement(layer, torch.tensor([1.0, 3.0, -2.0, -4.0]).view(1, 2, 1, 2))
    assert isinstance(block, BinaryBlock) and isinstance(block.layer, BinaryConv2d)
    assert block.layer.sign.shift is not None and block.layer.sign.shift.tolist() == [2.0, -3.0]
    flat = ReActNetwork().replacement(nn.Linear(2, 2), torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert flat.layer.sign.shift.tolist() == [2.0, 4.0]  # type: ignore[union-attr]


def test_the_theoretical_speedup_is_that_of_the_paper() -> None:
    assert xnor_speedup(256, 9) == pytest.approx(62.27, abs=0.005)


def test_weights_of_the_plain_layer_are_taken_over() -> None:
    model = tiny()
    for cls in (XnorNetwork, BinarizedNetwork):
        new: Any = cls().replacement(model.get_submodule("body.0.conv1"), torch.zeros(1, 8, 6, 6))
        assert torch.equal(new.weight, model.get_submodule("body.0.conv1").weight) and not new.training


def test_norms_of_powers_of_two_are_ordinary_ones_after_the_training() -> None:
    method = BinarizedNetwork(norm="shift", optimizer="adamax", epochs=1, lr=0.002)
    binary, _ = method(tiny(), task())
    norms = [module.norm for module in binary.modules() if isinstance(module, BinaryConv2d)]
    assert norms and {type(norm) for norm in norms} == {nn.BatchNorm2d}
