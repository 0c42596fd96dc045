"""`share.qcnn`: correction on the outputs, and inference by look-ups."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import stripes, task, tiny
from torch import Tensor, nn

from gossamer.calibration.inputs import input_rows
from gossamer.calibration.moments import moments
from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.weights import effective_weight
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.share import qcnn
from gossamer.methods.share.product import ProductQuantization, product_code
from gossamer.methods.share.qcnn import (
    LookUp,
    QuantizedNetwork,
    choose_entries,
    fit_of,
    improve_blocks,
    solve,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Linear(10, 7),
        nn.Linear(8, 5, bias=False),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.Conv2d(4, 5, (2, 3), stride=(2, 1), dilation=(2, 3), padding=(0, 2), bias=False),
        nn.Conv2d(4, 6, 3, stride=2, padding="valid"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    ]


def inputs(layer: Any, count: int, seed: int) -> Tensor:
    width = getattr(layer, "in_channels", None)
    shape = (count, layer.in_features) if width is None else (count, width, 7, 8)
    return torch.randn(shape, generator=generator(seed))


def setting(layer: Any, entries: int = 4) -> tuple[Any, Tensor, Tensor]:
    """A fit, the inputs now, and those in the original network."""
    x = inputs(layer, 40, 0)
    z = x + 0.3 * inputs(layer, 40, 1)
    rows_x, rows_z = input_rows(layer, x).flatten(0, 2), input_rows(layer, z).flatten(0, 2)
    gram, cross = (rows_x.T @ rows_x).double() / 40, (rows_z.T @ rows_x).double() / 40
    return fit_of(layer.weight.detach(), gram, cross, 3, entries, generator()), x, z


def weight_from(fit: Any, weight: Tensor) -> Tensor:
    blocks = fit.decoded.movedim(0, 2).flatten(2)[:, :, : weight.shape[1]]  # (O, t, I)
    return blocks.transpose(1, 2).reshape(weight.shape).to(weight.dtype)


def output_error(layer: Any, weight: Tensor, x: Tensor, z: Tensor) -> float:
    """Mean over samples of |wanted - given|^2 less |wanted|^2, by running the layer."""
    with torch.no_grad():
        wanted = layer(z).double() - (0 if layer.bias is None else bias_of(layer))
        dense = torch.func.functional_call(layer, {"weight": weight}, (x,)).double()
        given = dense - (0 if layer.bias is None else bias_of(layer))
    return float(((wanted - given).square().sum() - wanted.square().sum()) / len(x))


def bias_of(layer: Any) -> Tensor:
    return layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None]


@pytest.mark.parametrize("layer", layers())
def test_the_error_that_is_made_small_is_the_output_error(layer: Any) -> None:
    fit, x, z = setting(layer)
    assert fit.error() == pytest.approx(output_error(layer, weight_from(fit, layer.weight), x, z), rel=1e-4)
    improve_blocks(fit, 1)
    assert fit.error() == pytest.approx(output_error(layer, weight_from(fit, layer.weight), x, z), rel=1e-4)


@pytest.mark.parametrize("layer", layers())
def test_correction_never_raises_the_error_of_plain_product_quantization(layer: Any) -> None:
    fit, _, _ = setting(layer)
    errors = improve_blocks(fit, 4)
    assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("layer", layers())
def test_codewords_are_least_squares_and_choices_exhaustive(layer: Any) -> None:
    """No small change of a codeword, and no other choice of one place, lowers the error."""
    fit, _, _ = setting(layer)
    slopes = fit.slopes(1)
    solve(fit, 1, slopes)
    fit.decoded[1] = fit.decode(1)
    best = fit.error()
    for _ in range(10):
        kept = fit.codebook[1].clone()
        fit.codebook[1] += 0.01 * torch.randn(kept.shape, generator=generator(), dtype=kept.dtype)
        fit.decoded[1] = fit.decode(1)
        assert fit.error() >= best - 1e-9 * abs(best)
        fit.codebook[1] = kept
    fit.decoded[1] = fit.decode(1)
    choose_entries(fit, 1, slopes)
    fit.decoded[1] = fit.decode(1)
    best, last = fit.error(), fit.indices.shape[2] - 1
    for output, entry in itertools.product(range(fit.indices.shape[1]), range(fit.codebook.shape[1])):
        kept = fit.indices[1, output, last].clone()
        fit.indices[1, output, last] = entry
        fit.decoded[1] = fit.decode(1)
        assert fit.error() >= best - 1e-9 * abs(best)
        fit.indices[1, output, last] = kept


def test_an_entry_for_every_row_is_exact() -> None:
    layer = nn.Linear(10, 7)
    x = inputs(layer, 40, 0)
    gram = (x.T @ x).double()
    fit = fit_of(layer.weight.detach(), gram, gram, 3, 7, generator())
    torch.testing.assert_close(weight_from(fit, layer.weight), layer.weight.detach())


@pytest.mark.parametrize("layer", layers())
def test_look_ups_equal_the_dense_layer_with_decoded_weights(layer: Any) -> None:
    held = constrain(layer, {"weight": product_code(layer.weight.detach(), 3, 4, generator())})
    x = inputs(layer, 5, 3)
    torch.testing.assert_close(LookUp(held)(x), materialize(held)(x).detach(), rtol=1e-5, atol=1e-5)


def test_look_ups_need_a_product_code() -> None:
    with pytest.raises(BadInput, match="product code"):
        LookUp(nn.Linear(3, 3))


def error_of_outputs(model: nn.Module) -> float:
    original = tiny()
    with torch.no_grad():
        return sum(float((model(x) - original(x)).square().sum()) for x, _ in stripes().train)


@pytest.mark.slow
def test_the_network_stays_nearer_to_the_original_than_with_plain_product_quantization() -> None:
    context = Context()
    corrected = QuantizedNetwork(width=2, entries=8).apply(tiny(), stripes(), context)
    plain = ProductQuantization(width=2, entries=8)(tiny(), stripes(), Context()).model
    assert error_of_outputs(corrected) < 0.7 * error_of_outputs(plain)
    assert [edit.target for edit in context.log.edits][:2] == ["stem.weight", "body.0.conv1.weight"]


def test_later_layers_see_what_the_quantized_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's inputs are those that all layers before it, quantized, make; its targets are the original's."""
    seen: list[tuple[int, int]] = []

    def noted(model: nn.Module, original: nn.Module, *rest: Any) -> Any:
        seen.append((len(constraints(model)), len(constraints(original))))
        return moments(model, original, *rest)

    monkeypatch.setattr(qcnn, "moments", noted)
    QuantizedNetwork(width=4, entries=4, rounds=0)(tiny(), task(), Context())
    assert seen == [(n, 0) for n in range(8)]


@pytest.mark.slow
def test_zeros_stay_zero() -> None:
    model = tiny()
    with torch.no_grad():
        weight = model.get_parameter("body.0.conv1.weight")
        weight[weight.abs() < 0.05] = 0
    quantized = QuantizedNetwork(width=2, entries=4)(model, task(), Context()).model
    assert torch.equal(effective_weight(quantized, "body.0.conv1.weight") == 0, weight == 0)


def test_grouped_convolutions_are_refused_by_name() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(1, 4, 3)
            self.wide = nn.Conv2d(4, 4, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.wide(self.deep(x))).mean((2, 3))

    with pytest.raises(BadInput, match="wide is a convolution of 2 groups"):
        QuantizedNetwork()(Grouped(), task(), Context())
