"""Gradients of two levels and curvatures, in double precision, against autograd's own double loop."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gossamer.nas.bilevel import architecture_gradient, largest_eigenvalue

RATE = 0.1


class Mixed:
    """Two layers; between them a mixture of three functions with weights of their own."""

    def __init__(self, seed: int) -> None:
        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        generator = torch.Generator().manual_seed(seed)
        self.weights = [(drawn(*shape) / 2).requires_grad_() for shape in ((6, 5), (6, 6), (3, 6))]
        self.architecture = [(drawn(*shape) / 2).requires_grad_() for shape in ((3,), (2,))]
        self.data = [(drawn(20, 5), torch.randint(3, (20,), generator=generator)) for _ in range(2)]

    def loss(self, weights: Sequence[Tensor], number: int) -> Tensor:
        (first, second, last), (mix, scale) = weights, self.architecture
        x, y = self.data[number]
        h = torch.tanh(x @ first.T)
        shares = mix.softmax(0)
        h = shares[0] * h + shares[1] * torch.tanh(h @ second.T) + shares[2] * torch.sin(h)
        return torch.nn.functional.cross_entropy(scale.softmax(0)[0] * h @ last.T, y)

    def train(self, weights: Sequence[Tensor]) -> Tensor:
        return self.loss(weights, 0)

    def validation(self, weights: Sequence[Tensor]) -> Tensor:
        return self.loss(weights, 1)

    def gradient(self, rate: float) -> list[Tensor]:
        return architecture_gradient(self.train, self.validation, self.weights, self.architecture[:2], rate)


@pytest.mark.parametrize("seed", range(3))
def test_the_second_order_gradient_is_that_of_the_unrolled_step(seed: int) -> None:
    mixed = Mixed(seed)
    slopes = torch.autograd.grad(mixed.train(mixed.weights), mixed.weights, create_graph=True)
    unrolled = [w - RATE * slope for w, slope in zip(mixed.weights, slopes)]
    expected = torch.autograd.grad(mixed.validation(unrolled), mixed.architecture)
    found = mixed.gradient(RATE)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    first = mixed.gradient(0.0)
    assert any((one - other).abs().max() > 1e-3 * other.abs().max() for one, other in zip(first, found))


def test_the_second_order_gradient_is_what_differences_of_the_validation_loss_say() -> None:
    mixed, size = Mixed(0), 1e-5
    found = mixed.gradient(RATE)[0]

    def after_a_step() -> float:
        slopes = torch.autograd.grad(mixed.train(mixed.weights), mixed.weights)
        with torch.no_grad():
            return float(mixed.validation([w - RATE * slope for w, slope in zip(mixed.weights, slopes)]))

    for place in range(3):
        values = []
        for change in (size, -2 * size):
            with torch.no_grad():
                mixed.architecture[0][place] += change
            values.append(after_a_step())
        with torch.no_grad():
            mixed.architecture[0][place] += size
        assert (values[0] - values[1]) / (2 * size) == pytest.approx(float(found[place]), rel=1e-5)


def test_the_first_order_gradient_is_that_of_the_validation_loss() -> None:
    mixed = Mixed(1)
    expected = torch.autograd.grad(mixed.validation(mixed.weights), mixed.architecture)
    assert all(torch.equal(one, other) for one, other in zip(mixed.gradient(0.0), expected))


def test_what_nothing_depends_on_has_no_gradient_and_no_weight_is_changed() -> None:
    mixed, alone = Mixed(2), torch.ones(2, dtype=torch.float64, requires_grad=True)
    before = [w.detach().clone() for w in mixed.weights]
    found = architecture_gradient(mixed.train, mixed.validation, mixed.weights, [*mixed.architecture, alone], RATE)
    assert torch.equal(found[2], torch.zeros(2, dtype=torch.float64))
    assert all(torch.equal(w, old) and w.grad is None for w, old in zip(mixed.weights, before))


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_eigenvalue_is_that_of_the_whole_hessian(seed: int) -> None:
    mixed = Mixed(seed)
    generator = torch.Generator().manual_seed(0)
    found = largest_eigenvalue(mixed.validation(mixed.weights), mixed.architecture, generator, 2000)

    def loss(flat: Tensor) -> Tensor:
        mixed.architecture = [flat[:3], flat[3:]]
        return mixed.validation(mixed.weights)

    flat = torch.cat([one.detach() for one in mixed.architecture])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    assert found == pytest.approx(float(values[-1]), abs=0.05 * float(values.abs().max()))


@pytest.mark.parametrize("values", [(3.0, 1.0, -2.0), (1.0, 0.5, -4.0), (-1.0, -3.0, -2.0), (0.0, 0.0, 0.0)])
def test_the_largest_eigenvalue_is_found_also_where_the_farthest_is_negative(values: tuple[float, ...]) -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss = (torch.tensor(values, dtype=torch.float64) * x**2).sum() / 2
    found = largest_eigenvalue(loss, [x], torch.Generator().manual_seed(0), 200)
    assert found == pytest.approx(max(values), abs=0.05)


def test_a_linear_loss_has_no_curvature() -> None:
    x = torch.ones(3, requires_grad=True)
    assert largest_eigenvalue(x.sum(), [x], torch.Generator(), 5) == 0
