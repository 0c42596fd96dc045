"""Bayesian dark knowledge: the walk draws from the posterior, and the student becomes its average."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.losses import gaussian_loss, kd_loss, langevin_step
from gossamer.methods.distill.bayesian import BayesianDarkKnowledge, Posterior, PosteriorTerm, has_variance, on_means


def test_langevin_steps_draw_from_a_gaussian_whose_variance_is_one_but_for_the_step() -> None:
    """x' = (1 - h/2) x + N(0, h) has the stationary variance h / (1 - (1 - h/2)^2) = 1 / (1 - h/4)."""
    torch.manual_seed(0)
    for h in (0.1, 1.0):
        x = torch.zeros(100_000, dtype=torch.float64)
        for _ in range(round(12 / h)):
            langevin_step([x], [-x], h)
        assert float(x.var()) == pytest.approx(1 / (1 - h / 4), rel=0.02)
        assert float(x.mean()) == pytest.approx(0, abs=0.02)


def line(precision: float, count: int = 50) -> tuple[Tensor, Tensor]:
    """Inputs (N, 2), and targets (N, 1) with noise of this precision."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64) / precision**0.5
    return x, x @ torch.tensor([[2.0], [-1.0]], dtype=torch.float64) + noise


@pytest.mark.slow
def test_draws_of_a_linear_model_have_its_analytic_predictive_mean_and_variance() -> None:
    x, y = line(4.0)
    network = nn.Linear(2, 1, bias=False).double().requires_grad_(False)
    posterior = Posterior(network, samples=50, lr=0.02, prior=3.0, precision=4.0)
    torch.manual_seed(1)
    at, draws = torch.tensor([[1.0, 3.0]], dtype=torch.float64), []
    for number in range(4200):
        posterior.step((x,), y)
        if number >= 200:
            draws.append(float(network(at)))
    covariance = torch.linalg.inv(4 * x.T @ x + 3 * torch.eye(2))
    mean, variance = at @ covariance @ (4 * x.T @ y), at @ covariance @ at.T
    found = torch.tensor(draws, dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(float(mean), abs=4 * float(variance) ** 0.5 / 30)
    assert float(found.var()) == pytest.approx(float(variance), rel=0.25)


def test_classes_have_the_log_likelihood_of_their_logits_and_numbers_that_of_a_gaussian() -> None:
    posterior = Posterior(nn.Identity(), samples=1, lr=1.0, prior=0.0, precision=4.0)
    logits, labels = torch.randn(5, 3), torch.arange(5) % 3
    torch.testing.assert_close(posterior.surprise(logits, labels), -logits.log_softmax(1)[range(5), labels].mean())
    values, targets = torch.randn(5, 2), torch.randn(5, 2)
    gaussian: Any = torch.distributions.Normal(values, 0.5)
    constant = gaussian.log_prob(values).sum(1).mean()
    torch.testing.assert_close(posterior.surprise(values, targets), constant - gaussian.log_prob(targets).sum(1).mean())


def still(network: nn.Module) -> Posterior:
    """A walk that hardly moves."""
    return Posterior(network.requires_grad_(False), samples=8, lr=1e-30, prior=0.0, precision=2.0)


def test_one_draw_teaches_as_soft_targets_of_temperature_one_on_the_inputs_that_the_student_saw() -> None:
    teacher, student, (images, labels) = tiny(), tiny(), next(iter(task().train))
    term = PosteriorTerm(still(teacher), alpha=0.25, spread=0.5)
    [near] = term.perturb(student.train(), (images,))
    torch.testing.assert_close(float((near - images).std()), 0.5, rtol=0.1, atol=0)
    outputs = torch.randn(8, 3)
    expected = 0.75 * kd_loss(outputs, teacher(near), 1.0)
    torch.testing.assert_close(term((images,), outputs, labels), expected)
    assert term.perturb(student.eval(), (images,)) is None


def test_a_student_with_twice_the_outputs_learns_mean_and_log_variance() -> None:
    x, y = line(2.0)
    teacher = nn.Linear(2, 1).double()
    term = PosteriorTerm(still(teacher), alpha=0.0, spread=0.0)
    term.perturb(nn.Identity(), (x,))
    outputs = torch.randn(50, 2, dtype=torch.float64)
    expected = gaussian_loss(outputs[:, :1], outputs[:, 1:], teacher(x), 0.5)
    torch.testing.assert_close(term((x,), outputs, y), expected)
    assert has_variance(outputs, y) and not has_variance(y, y)


def regression() -> Task:
    """Batches of `line`."""
    x, y = (t.float() for t in line(4.0, 640))

    def squares(model: Any, batch: Any) -> Tensor:
        difference: Tensor = model(batch[0]) - batch[1]
        return difference.pow(2).mean()

    def close(model: Any, loader: Any) -> Tensor:
        return torch.cat([torch.exp(-(model(a) - b).pow(2).mean(1)) for a, b in loader])

    batches: Any = list(zip(torch.split(x, 32), torch.split(y, 32)))
    inputs = (x[:4],)
    data = {"train": batches, "validation": batches[:2], "test": batches[:2], "calibration": [x]}
    return Task(name="line", example_inputs=inputs, loss=squares, metric=close, **data)


@pytest.mark.slow
def test_regressions_are_learned_with_their_uncertainty() -> None:
    torch.manual_seed(0)
    context = Context(accelerator="cpu", teacher=nn.Linear(2, 1))
    method = BayesianDarkKnowledge(epochs=12, lr=0.05, burn_in=5, sampler_lr=0.01, precision=4.0, prior=1.0)
    student = method.apply(nn.Linear(2, 2), regression(), context)
    mean, log_variance = student(torch.tensor([[1.0, 3.0], [1.0, 0.0]])).detach().unbind(1)
    torch.testing.assert_close(mean, torch.tensor([-1.0, 2.0]), rtol=0, atol=0.3)
    torch.testing.assert_close(log_variance[1].exp(), torch.tensor(0.25), rtol=0.25, atol=0)
    one_output = method.apply(nn.Linear(2, 1), regression(), context)
    torch.testing.assert_close(one_output(torch.tensor([[1.0, 3.0]])), torch.tensor([[-1.0]]), rtol=0, atol=0.3)


def test_a_task_is_measured_on_the_means() -> None:
    data, x = regression(), regression().example_inputs[0]
    wide = nn.Linear(2, 2)
    narrow = lambda a: wide(a)[:, :1]  # noqa: E731
    batch = (x, torch.ones(4, 1))
    assert torch.equal(on_means(data).loss(wide, batch), data.loss(narrow, batch))
    assert on_means(data).metric.score(wide, [batch]) == data.metric.score(narrow, [batch])


@pytest.mark.slow
def test_a_classifier_learns_from_the_walk_alone_and_nothing_is_left_in_it() -> None:
    context = Context(accelerator="cpu", teacher=learned())
    before = {name: t.clone() for name, t in context.teacher.state_dict().items()}  # type: ignore[union-attr]
    result = BayesianDarkKnowledge(epochs=3, lr=0.05, burn_in=1, sampler_lr=0.001).apply(tiny(), stripes(), context)
    assert float(stripes().metric.score(result.eval(), stripes().test)) > 0.9
    assert result.state_dict().keys() == tiny().state_dict().keys()
    assert not result._forward_pre_hooks and not result._forward_hooks
    assert all(torch.equal(t, before[name]) for name, t in context.teacher.state_dict().items())  # type: ignore[union-attr]


def test_the_burn_in_moves_the_teacher_but_not_its_statistics() -> None:
    context = Context(accelerator="cpu", teacher=tiny())
    moved = BayesianDarkKnowledge(burn_in=1, sampler_lr=0.01).posterior(task(), context)
    assert moved.samples == 32
    for name, t in tiny().state_dict().items():
        assert torch.equal(t, moved.network.state_dict()[name]) == ("running" in name or "batches" in name)
    again = BayesianDarkKnowledge(burn_in=1, sampler_lr=0.01).posterior(task(), context)
    assert all(torch.equal(a, b) for a, b in zip(moved.network.parameters(), again.network.parameters()))


def test_targets_that_are_no_tensor_are_refused() -> None:
    data = replace(task(), train=[x for x, _ in list(task().train)])
    with pytest.raises(BadInput, match="must be one tensor"):
        BayesianDarkKnowledge()(tiny(), data, Context(accelerator="cpu", teacher=tiny()))
