"""`share.soft`: the mixture, its merging, and training under it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import learned, stripes
from torch import nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.methods.share.soft import (
    GaussianMixture,
    Prior,
    SoftSharing,
    SoftWeightSharing,
    assigned,
    divergence,
    join_components,
    log_joint,
    merge_components,
    negative_log_hyperprior,
    negative_log_prior,
    responsibilities,
    settled,
)


def mixture(dtype: torch.dtype = torch.float32) -> GaussianMixture:
    return GaussianMixture(
        proportions=torch.tensor([0.9, 0.06, 0.04], dtype=dtype),
        means=torch.tensor([0.0, -0.5, 0.7], dtype=dtype),
        variances=torch.tensor([1e-4, 4e-3, 2e-3], dtype=dtype),
    )


def weights(count: int = 500) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.5


def test_one_component_is_an_l2_penalty() -> None:
    one = GaussianMixture(proportions=torch.ones(1), means=torch.zeros(1), variances=torch.full((1,), 0.25))
    w = weights().requires_grad_()
    prior = negative_log_prior(w, one)
    constant = 500 * 0.5 * math.log(2 * math.pi * 0.25)
    assert float(prior.detach()) == pytest.approx(float(w.detach().square().sum()) / 0.5 + constant, rel=1e-5)
    [slope] = torch.autograd.grad(prior, w)
    torch.testing.assert_close(slope, w.detach() / 0.25)


def test_far_weights_are_as_exact_as_in_float64() -> None:
    """Probabilities that are zero in float32 still have their logarithm."""
    w = torch.tensor([-40.0, -3.0, 0.0, 0.01, 5.0, 90.0])
    narrow, wide = negative_log_prior(w, mixture()), negative_log_prior(w.double(), mixture(torch.float64))
    assert float(narrow) == pytest.approx(float(wide), rel=1e-5)
    assert math.isfinite(float(narrow))


def test_the_prior_is_the_density_of_the_mixture() -> None:
    m, w = mixture(torch.float64), weights().double()[:20] / 5
    parts = [
        p * torch.distributions.Normal(mu, v.sqrt()).log_prob(w).exp()
        for p, mu, v in zip(m.proportions, m.means, m.variances)
    ]
    torch.testing.assert_close(log_joint(w, m).exp(), torch.stack(parts, 1))
    torch.testing.assert_close(negative_log_prior(w, m), -sum(parts).log().sum())  # type: ignore[union-attr]


def test_gradients_of_the_prior_are_those_of_its_formula() -> None:
    """20,000 weights, so that they come in several pieces."""
    m = mixture(torch.float64)
    given = [(weights(20_000) / 2).double(), m.proportions, m.means, m.variances]
    slopes = []
    for formula in (negative_log_prior, lambda w, m: -log_joint(w, m).logsumexp(1).sum()):
        w, p, mu, v = (x.clone().requires_grad_() for x in given)
        value = formula(w, GaussianMixture(proportions=p, means=mu, variances=v))
        slopes.append([value.detach(), *torch.autograd.grad(3 * value, (w, p, mu, v))])
    for fast, slow in zip(*slopes):
        torch.testing.assert_close(fast, slow)


def test_responsibilities_sum_to_one() -> None:
    found = responsibilities(100 * weights(), mixture())
    torch.testing.assert_close(found.sum(1), torch.ones(500))


def moments(m: GaussianMixture) -> tuple[float, float, float]:
    mean = float((m.proportions * m.means).sum())
    second = float((m.proportions * (m.variances + m.means**2)).sum())
    return float(m.proportions.sum()), mean, second


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=50)
def test_joining_keeps_proportion_mean_and_variance_of_the_mixture(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m = GaussianMixture(
        proportions=torch.rand(count, generator=generator, dtype=torch.float64).softmax(0),
        means=torch.randn(count, generator=generator, dtype=torch.float64),
        variances=torch.rand(count, generator=generator, dtype=torch.float64) + 0.01,
    )
    joint = join_components(m, 0, count - 1)
    assert len(joint.means) == count - 1
    assert moments(joint) == pytest.approx(moments(m), rel=1e-9, abs=1e-9)


def test_only_what_is_nearly_the_same_is_merged() -> None:
    m = GaussianMixture(
        proportions=torch.tensor([0.5, 0.2, 0.2, 0.1]),
        means=torch.tensor([0.0, 0.5, 0.501, -1.0]),
        variances=torch.full((4,), 1e-3),
    )
    assert divergence(m, 1, 2) < 0.01 < divergence(m, 0, 3)
    assert merge_components(m, 0.01).means.tolist() == pytest.approx([0.0, 0.5005, -1.0])
    assert len(merge_components(m, 0.0).means) == 4
    assert len(merge_components(m, math.inf).means) == 1


def test_divergence_is_symmetric_and_the_sum_of_both_directions() -> None:
    m = mixture(torch.float64)
    a, b = (torch.distributions.Normal(m.means[i], m.variances[i].sqrt()) for i in (1, 2))
    both = torch.distributions.kl_divergence(a, b) + torch.distributions.kl_divergence(b, a)
    assert divergence(m, 1, 2) == pytest.approx(float(both)) == pytest.approx(divergence(m, 2, 1))


def test_the_hyperprior_has_its_mode_at_the_precision_of_its_gamma() -> None:
    """(shape - 1) / rate: 2499.5 at zero, 2490 elsewhere."""
    precision = torch.tensor([2499.5, 2490.0]).double().requires_grad_()
    m = GaussianMixture(proportions=torch.ones(2) / 2, means=torch.zeros(2), variances=1 / precision)
    [slope] = torch.autograd.grad(negative_log_hyperprior(m), precision)
    torch.testing.assert_close(slope, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_mixture_learns_at_its_own_pace() -> None:
    """The prior's loss falls, and with a pace of 0 the mixture stays where it is."""
    for pace in (0.0, 1.0):
        prior = Prior(weights(), 4, 0.5, 0.25, pace)
        optimizer = torch.optim.Adam(prior.parameters(), 0.01)
        losses = []
        for _ in range(30):
            loss = negative_log_prior(weights(), prior.mixture())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert (losses[-1] < losses[0]) == (pace > 0)
    fast, slow = (Prior(weights(), 4, 0.5, 0.25, pace) for pace in (2.0, 1.0))
    for prior in (fast, slow):
        optimizer = torch.optim.Adam(prior.parameters(), 0.01)
        negative_log_prior(weights(), prior.mixture()).backward()
        optimizer.step()
    moved = [p.mixture().means.detach() - Prior(weights(), 4, 0.5, 0.25, 1.0).mixture().means for p in (fast, slow)]
    torch.testing.assert_close(moved[0].detach(), 2 * moved[1].detach(), rtol=1e-3, atol=1e-5)


def test_a_prior_starts_at_zero_and_evenly_over_the_weights() -> None:
    m = Prior(torch.tensor([-1.0, 3.0]), 5, 0.99, 0.1, 1.0).mixture()
    torch.testing.assert_close(m.means.detach(), torch.tensor([0.0, -1.0, 0.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(m.proportions.detach(), torch.tensor([0.99] + [0.002] * 5))
    torch.testing.assert_close(m.variances.detach(), torch.full((6,), 0.01))


def test_weights_take_the_mean_of_the_most_likely_component() -> None:
    w = torch.tensor([[0.001, -0.48], [0.72, 0.0]])
    held = assigned(w, mixture())
    torch.testing.assert_close(held(w).detach(), torch.tensor([[0.0, -0.5], [0.7, 0.0]]))
    assert len(held.codebook) == 3


def test_the_term_reads_the_held_weights_and_leaves_pruned_ones_out() -> None:
    layer = nn.Linear(4, 3)
    keep = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    model = constrain(layer, {"weight": Mask(keep)})
    prior = Prior(weights(), 4, 0.5, 0.25, 1.0)
    value = SoftSharing(model, ["weight"], prior, 3.0, 10)((), None, None)
    m = prior.mixture()
    wanted = negative_log_prior(layer.weight.detach()[keep], m) + negative_log_hyperprior(m)
    torch.testing.assert_close(value, 0.3 * wanted)


@pytest.mark.slow
def test_training_under_the_prior_draws_weights_together() -> None:
    method = SoftWeightSharing(epochs=8, tau=0.02, components=8, zero=0.9, sigma=0.05, lr=0.01)
    context, model = Context(), learned()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shared = method.apply(model, stripes(), context)
    names = [edit.target for edit in context.log.edits]
    together = torch.cat([effective_weight(shared, name).flatten() for name in names])
    assert 0.2 < float((together == 0).double().mean()) < 1
    assert len(together.unique()) <= 9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("prior" in name for name in shared.state_dict())
    assert float(stripes().metric.score(shared, stripes().validation)) >= 0.6


def test_wide_components_after_few_steps_do_not_send_all_weights_to_zero() -> None:
    """The defaults, on a data set so small that the mixture hardly moves."""
    data, context = stripes(), Context()
    alive = sum(p.numel() for p in learned().parameters() if p.dim() > 1)
    shared = SoftWeightSharing(epochs=1, lr=1e-3).apply(learned(), data, context)
    values = torch.cat([effective_weight(shared, edit.target).flatten() for edit in context.log.edits])
    assert int((values == 0).sum()) < 0.9 * alive and len(values.unique()) <= 17
    before, after = (float(data.metric.score(model, data.validation)) for model in (learned(), shared))
    assert after >= before - 0.1
    assert all("proportions to the power of" in edit.note for edit in context.log.edits)


def test_narrow_components_keep_their_proportions() -> None:
    """Where weights already have few values, every proportion counts, and the values are those."""
    model, name = learned(), "body.0.conv1.weight"
    with torch.no_grad():
        raw = weights_of(model)[name]
        raw.copy_(torch.where(raw.abs() > raw.abs().median(), 0.5 * raw.sign(), 0.0))
    three = GaussianMixture(
        proportions=torch.tensor([0.5, 0.25, 0.25]),
        means=torch.tensor([0.0, -0.5, 0.5]),
        variances=torch.full((3,), 1e-4),
    )
    codes, power = settled(model, [name], three, stripes())
    assert power == 1 and torch.equal(codes[name](raw), raw)
