"""Fixed-point numbers, stochastic rounding, and a training in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import learned, stripes, task, tiny
from torch import nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.quantize.fixed_point import FixedPointTraining, Format, convert, fixed_point, parameters_of


@given(fraction=st.integers(1, 14), integer=st.integers(1, 8), x=st.floats(-3, 3))
@settings(max_examples=60)
def test_rounding_gives_a_neighbour_in_range(fraction: int, integer: int, x: float) -> None:
    low, high = -(2.0 ** (integer - 1)), 2.0 ** (integer - 1) - 2.0**-fraction
    for rounding, reach in (("stochastic", 1.0), ("nearest", 0.5)):
        format = Format(integer, fraction, rounding)  # type: ignore[arg-type]
        value = float(convert(torch.tensor(x, dtype=torch.double), format))
        assert low <= value <= high
        assert value / format.step == round(value / format.step)
        assert abs(value - min(max(x, low), high)) <= reach * format.step
        assert float(convert(torch.tensor(value), format)) == value


@pytest.mark.parametrize("part", [0.1, 0.5, 0.83])
def test_stochastic_rounding_is_unbiased_with_the_variance_of_a_coin(part: float) -> None:
    torch.manual_seed(0)
    format, n = Format(4, 6), 200_000
    x = (7 + part) * format.step
    values = convert(torch.full((n,), x, dtype=torch.double), format)
    sigma = format.step * (part * (1 - part)) ** 0.5
    assert abs(float(values.mean()) - x) < 5 * sigma / n**0.5
    assert abs(float(values.var()) / sigma**2 - 1) < 0.05


def test_small_updates_vanish_to_nearest_and_survive_on_average() -> None:
    torch.manual_seed(0)
    w = torch.full((4000,), 0.5)
    nearest, stochastic = w.clone(), w.clone()
    for _ in range(50):
        nearest = convert(nearest - 0.1 / 64, Format(4, 6, "nearest"))
        stochastic = convert(stochastic - 0.1 / 64, Format(4, 6))
    assert torch.equal(nearest, w)
    assert abs(float(stochastic.mean()) - (0.5 - 5 / 64)) < 0.003


def test_everything_in_a_step_is_on_the_grid() -> None:
    format, model, [images, labels] = Format(4, 8), tiny().train(), next(iter(task().train))
    seen: list[torch.Tensor] = []
    with fixed_point(model, format):
        model.get_submodule("head").register_forward_hook(lambda *call: seen.extend((call[1][0], call[2])))
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
    found = [*seen, *parameters_of(model), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(found) > 20
    for value in found:
        codes = value.detach() / format.step
        assert torch.equal(codes, codes.round()) and codes.abs().max() <= 2048


def test_evaluation_inside_and_everything_afterwards_is_ordinary() -> None:
    model, [images] = tiny(), task().example_inputs
    expected = model(images)
    with fixed_point(model, Format(4, 3)):
        assert torch.equal(model(images), expected)
    assert torch.equal(model.train()(images), tiny().train()(images))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_weights_end_on_the_grid_and_stay_there() -> None:
    mask = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    source = constrain(learned(), {"stem.weight": Mask(mask)})
    trained = FixedPointTraining(integer_bits=3, fraction_bits=6, epochs=1, lr=0.01)(source, stripes(), Context()).model
    for name in ("stem.weight", "body.1.conv2.weight", "head.weight"):
        codes = effective_weight(trained, name) * 2**6
        assert torch.equal(codes, codes.round()) and codes.min() >= -256 and codes.max() <= 255
        assert not torch.equal(effective_weight(trained, name), effective_weight(source, name))
    assert not effective_weight(trained, "stem.weight")[~mask].any()


def accuracy(model: nn.Module) -> float:
    return float(stripes().metric.score(model, stripes().test))


@pytest.mark.slow
def test_few_bits_train_with_stochastic_rounding_and_not_to_nearest() -> None:
    """From weights that know nothing; updates are mostly below half a step of 1/128."""
    ends = [
        accuracy(
            FixedPointTraining(integer_bits=6, fraction_bits=7, rounding=rounding, epochs=6, lr=0.02)(  # type: ignore[arg-type]
                tiny(), stripes(), Context()
            ).model
        )
        for rounding in ("stochastic", "nearest")
    ]
    assert ends[0] > ends[1] + 0.3


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="at most 24"):
        FixedPointTraining(integer_bits=8, fraction_bits=18)
    with pytest.raises(BadInput, match="did you mean 'nearest'"):
        FixedPointTraining(rounding="nearst")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one process"):
        FixedPointTraining(epochs=1)(tiny(), task(), Context(devices=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_saturates_has_no_gradient(dtype: torch.dtype) -> None:
    """Range [-2, 2): a layer gives -3, 1 and 5, of which only 1 can still be changed by its weights."""
    layer = nn.Linear(1, 3, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor([[-1.5], [0.5], [1.75]], dtype=dtype)
    x = torch.tensor([[2.0 - 2.0**-14]], dtype=dtype)
    with fixed_point(layer.train(), Format(2, 14, "nearest")):
        given = layer(x)
        given.sum().backward()
    assert given[0, 0] == -2 and given[0, 2] == 2 - 2.0**-14
    assert layer.weight.grad.flatten().tolist() == [0, 2 - 2.0**-14, 0]
