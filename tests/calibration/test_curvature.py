"""Second moments of layers' inputs, and second derivatives of the loss, against slow loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import task, tiny
from torch import Tensor, nn

from gossamer.calibration.curvature import diagonal, exact_diagonal, gauss_newton_rows
from gossamer.calibration.inputs import input_rows
from gossamer.calibration.moments import call_order, input_moments, moments
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight
from gossamer.core.batches import Model, cross_entropy, inputs_and_target
from gossamer.errors import BadInput

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4, bias=False), (6, 5)),
    "linear on sequences": (nn.Linear(5, 4, bias=False), (6, 3, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (6, 4, 7)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), dilation=(1, 2), padding=(2, 0), bias=False), (6, 3, 5, 6)),
    "conv2d, same": (nn.Conv2d(3, 4, (3, 5), padding="same", bias=False), (6, 3, 5, 6)),
    "conv2d, reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False), (6, 3, 5, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), (6, 4, 5, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, bias=False), (6, 2, 3, 4, 3)),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def layer_and_data(kind: str) -> tuple[Any, Tensor]:
    layer, shape = LAYERS[kind]
    return layer, torch.randn(shape, generator=torch.Generator().manual_seed(0))


@each_layer
def test_rows_times_weights_are_the_layers_outputs(kind: str) -> None:
    layer, x = layer_and_data(kind)
    rows, groups = input_rows(layer, x), getattr(layer, "groups", 1)
    w_GOD = layer.weight.reshape(groups, -1, rows.shape[-1])
    out = (rows @ w_GOD.mT).transpose(1, 2)  # (samples, positions, groups, O / groups)
    expected = layer(x)
    if isinstance(layer, nn.Linear):
        torch.testing.assert_close(out.reshape(expected.shape), expected)
    else:
        torch.testing.assert_close(out.flatten(2).mT.reshape(expected.shape), expected)


@each_layer
def test_moments_give_the_mean_squared_change_of_the_outputs(kind: str) -> None:
    layer, x = layer_and_data(kind)
    [h_GDD] = input_moments(nn.Sequential(layer), ["0"], [x[:4], x[4:]]).values()
    w_GOD = layer.weight.detach().double().reshape(h_GDD.shape[0], -1, h_GDD.shape[1])
    expected = layer(x).square().sum() / len(x)
    torch.testing.assert_close(((w_GOD @ h_GDD) * w_GOD).sum().float(), expected.detach())


def test_moments_of_two_networks_are_products_of_their_inputs() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    one, two = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    [(same, cross)] = moments(two, one, ["2"], [x[:3], x[3:]]).values()
    inside, outside = (net[:2](x).detach().double() for net in (two, one))
    torch.testing.assert_close(same[0], inside.T @ inside / 7, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cross[0], outside.T @ inside / 7, rtol=1e-5, atol=1e-6)


def test_large_inputs_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_and_data("conv2d")
    whole = input_moments(nn.Sequential(layer), ["0"], [x])["0"]
    monkeypatch.setattr("gossamer.calibration.inputs.UNFOLDED_BYTES", 4000)
    parts = input_moments(nn.Sequential(layer), ["0"], [x])["0"]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_layers_come_in_the_order_of_the_run() -> None:
    names = ["head", "body.2.conv1", "stem", "body.0.conv2"]
    assert call_order(tiny(), task().example_inputs, names) == ["stem", "body.0.conv2", "body.2.conv1", "head"]


def test_a_layer_that_no_run_calls_is_named() -> None:
    model = net()
    model.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(BadInput, match="'spare' is not called"):
        call_order(model, (batches()[0][0],), ["one", "spare"])


class Net(nn.Module):
    """Convolutions, one grouped, one used twice, and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 2, groups=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        return self.head(torch.tanh(self.two(x)).sum((2, 3)))  # type: ignore[no-any-return]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def batches() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(n, 1, 6, 6, generator=g, dtype=torch.double), torch.randint(3, (n,), generator=g)) for n in (4, 3)
    ]


NAMES = ["one", "two", "head"]


def slow_gauss_newton(model: nn.Module, samples: list[tuple[Tensor, Tensor]]) -> Tensor:
    """J^T (diag(p) - p p^T) J, the mean over samples, of all weights in NAMES' order."""
    weights = [model.get_parameter(f"{name}.weight") for name in NAMES]
    total = torch.zeros(())
    for x, _ in samples:
        z = model(x[None])[0]
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(one, weights, retain_graph=True)]) for one in z]
        p, jacobian = z.softmax(0).detach(), torch.stack(rows)
        total = total + jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian / len(samples)
    return total


def singles() -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for xs, ys in batches() for x, y in zip(xs, ys)]


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[name].flatten() for name in NAMES])


def test_gauss_newton_is_the_slow_product() -> None:
    expected = slow_gauss_newton(net(), singles())
    rows = torch.cat(list(gauss_newton_rows(net(), cross_entropy, batches(), NAMES)))
    torch.testing.assert_close(rows.T @ rows / len(singles()), expected)
    found = diagonal(net(), cross_entropy, batches(), NAMES, "gauss_newton")
    torch.testing.assert_close(flat(found), expected.diagonal())


def test_fisher_is_the_mean_of_squared_gradients() -> None:
    model = net()
    weights = [model.get_parameter(f"{name}.weight") for name in NAMES]
    expected = torch.zeros(())
    for x, y in singles():
        g = torch.autograd.grad(cross_entropy(model, (x[None], y[None])), weights)
        expected = expected + torch.cat([one.flatten() for one in g]).square() / len(singles())
    torch.testing.assert_close(flat(diagonal(model, cross_entropy, batches(), NAMES, "fisher")), expected)


def test_exact_is_the_diagonal_of_the_hessian() -> None:
    model, samples = net(), singles()

    def loss(weight: Tensor) -> Tensor:
        x, y = torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
        return F.cross_entropy(torch.func.functional_call(model, {"two.weight": weight}, x), y)

    two = model.get_parameter("two.weight").detach()
    hessian = torch.autograd.functional.hessian(loss, two).reshape(two.numel(), -1)  # type: ignore[no-untyped-call]
    found = exact_diagonal(model, cross_entropy, batches(), ["two"])["two"]
    torch.testing.assert_close(found.flatten(), hessian.diagonal())


def squared_error(model: Model, batch: Any) -> Tensor:
    [x], y = inputs_and_target(batch)
    return F.mse_loss(model(x), y)


@pytest.mark.parametrize("kind", ["gauss_newton", "exact"])
def test_linear_network_with_squared_error_has_twice_the_mean_square_of_the_input(kind: str) -> None:
    x, y = torch.randn(9, 5), torch.randn(9, 2)
    found = diagonal(nn.Sequential(nn.Linear(5, 2)), squared_error, [(x, y)], ["0"], kind)["0"]
    torch.testing.assert_close(found, (2 * x.square().mean(0) / 2).expand(2, 5))  # / 2: the mean over two outputs


def test_where_outputs_are_linear_in_the_weights_gauss_newton_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten()).double()
    one, two = (diagonal(model, cross_entropy, batches(), ["0"], kind)["0"] for kind in ("gauss_newton", "exact"))
    torch.testing.assert_close(one, two)


def test_a_masked_network_has_the_derivatives_of_its_held_values() -> None:
    mask = effective_weight(net(), "two.weight") > 0
    held = constrain(net(), {"two.weight": Mask(mask)})
    plain = net()
    with torch.no_grad():
        plain.get_parameter("two.weight").mul_(mask)
    one, two = (diagonal(model, cross_entropy, batches(), NAMES, "fisher") for model in (held, plain))
    torch.testing.assert_close(flat(one), flat(two))


def test_a_frozen_network_is_no_obstacle() -> None:
    one, two = (diagonal(m, cross_entropy, batches(), NAMES, "fisher") for m in (net().requires_grad_(False), net()))
    torch.testing.assert_close(flat(one), flat(two))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(BadInput, match="at least one batch"):
        diagonal(net(), cross_entropy, [], NAMES, "fisher")
    with pytest.raises(BadInput, match="20,000"):
        exact_diagonal(nn.Sequential(nn.Linear(200, 200)), cross_entropy, batches(), ["0"])
    with pytest.raises(BadInput, match="use 'fisher'"):
        pixels = nn.Sequential(nn.Conv2d(1, 3, 1)).double()
        diagonal(pixels, cross_entropy, batches(), ["0"], "gauss_newton")
    with pytest.raises(BadInput, match="did you mean 'fisher'"):
        diagonal(net(), cross_entropy, batches(), NAMES, "fischer")
