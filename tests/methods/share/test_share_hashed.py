"""`share.hashed`: one hash everywhere, exactly K values, gradients by bucket."""

import subprocess
import sys

import pytest
import torch
from nets import stripes, task, tiny
from torch import nn

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.gsr.format.generated import hashed_places
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.share.hashed import Hashed, HashedNet, bucket_means, layer_seed

SHAPE = torch.Size((30, 40))


def weight() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_the_hash_is_the_same_in_every_process_and_release() -> None:
    code = (
        "import torch; from gossamer.methods.share.hashed import *; from gossamer.gsr.format.generated import *;"
        "b, s = hashed_places(torch.Size((2, 4)), 100, 7);"
        "print(b.tolist(), s.tolist(), layer_seed(1, 'fc.weight'))"
    )
    buckets, signs = hashed_places(torch.Size((2, 4)), 100, 7)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{buckets.tolist()} {signs.tolist()} {layer_seed(1, 'fc.weight')}"


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of its author's program for the seed 1234567; bucket and sign from them by hand."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    buckets, signs = hashed_places(torch.Size((5,)), 1000, 1234567)
    assert buckets.tolist() == [(z >> 32) * 1000 >> 32 for z in outputs]
    assert signs.tolist() == [-1.0 if z & 1 else 1.0 for z in outputs]


def test_buckets_are_used_evenly_and_signs_too() -> None:
    buckets, signs = hashed_places(torch.Size((1000, 400)), 100, 3)
    counts = buckets.flatten().bincount(minlength=100)
    assert counts.min() > 3700 and counts.max() < 4300
    assert abs(float(signs.mean())) < 0.01
    assert abs(float(signs[buckets == 5].mean())) < 0.08
    other, _ = hashed_places(torch.Size((1000, 400)), 100, 4)
    assert float((other == buckets).double().mean()) < 0.02


def test_gradients_are_signed_sums_over_buckets_by_the_root_of_their_size() -> None:
    w = weight()
    held = Hashed(w, bucket_means(w, 20, 5), 5)
    slope = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    (held(w) * slope).sum().backward()
    wanted = [float((slope * held.signs)[held.buckets == k].sum()) / 60**0.5 for k in range(20)]
    assert held.values.grad is not None
    torch.testing.assert_close(held.values.grad, torch.tensor(wanted))


@pytest.mark.parametrize("k", [1200, 150, 18])
def test_a_value_learns_as_fast_as_a_single_weight(k: int) -> None:
    """Its gradient has the mean square of a weight's, whatever the size of the buckets."""
    held = Hashed(weight(), torch.zeros(k), 5)
    squares = []
    for seed in range(30):
        held.values.grad = None
        (held(weight()) * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))).sum().backward()
        assert held.values.grad is not None
        squares.append(float(held.values.grad.square().mean()))
    assert sum(squares) / len(squares) == pytest.approx(1.0, rel=0.15)


def test_bucket_means_are_the_least_squares_fit() -> None:
    w = weight().double()
    means = bucket_means(w, 20, 5)
    buckets, signs = hashed_places(SHAPE, 20, 5)
    design = torch.zeros(w.numel(), 20, dtype=torch.float64)
    design[torch.arange(w.numel()), buckets.flatten().long()] = signs.flatten().double()
    solved = torch.linalg.lstsq(design, w.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(means, solved)


def test_inner_products_are_unbiased_over_seeds() -> None:
    """E[V a . V b] = a . b for V the signed sum into buckets."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator)
    found = []
    for seed in range(4000):
        buckets, signs = hashed_places(torch.Size((50,)), 10, layer_seed(seed, "x"))
        sums = torch.zeros(2, 10).index_add_(1, buckets.long(), torch.stack([a, b]) * signs)
        found.append((sums[0] * sums[1]).sum())
    products = torch.stack(found)
    assert abs(float(products.mean() - a @ b)) < 5 * float(products.std()) / 4000**0.5


def test_nothing_is_stored_but_k_values() -> None:
    model = HashedNet(share=0.25)(tiny(), task(), Context()).model
    for name, (held,) in constraints(model).items():
        assert [p.numel() for p in held.parameters()] == [round(0.25 * effective_weight(model, name).numel())]
        assert list(held.state_dict()) == ["values"]
        assert len(effective_weight(model, name).abs().unique()) <= len(held.values)


def test_one_bucket_for_each_weight_is_a_dense_layer() -> None:
    """Where no two weights share a bucket, the fit gives the weights back."""
    w = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    seed = next(s for s in range(1000) if len(hashed_places(w.shape, 4, s)[0].unique()) == 4)
    torch.testing.assert_close(Hashed(w, bucket_means(w, 4, seed), seed)(w).detach(), w)


def test_zeros_stay_zero_and_do_not_pull_their_buckets() -> None:
    w = weight()
    w[w.abs() < 0.5] = 0
    held = Hashed(w, bucket_means(w, 20, 5), 5)
    assert torch.equal(held(w) == 0, w == 0)
    mine = (held.buckets == 3) & (w != 0)
    assert float(held.values[3].detach()) == pytest.approx(float((w * held.signs)[mine].mean()), rel=1e-5)


@pytest.mark.parametrize("fresh", [False, True])
def test_training_keeps_the_sharing(fresh: bool) -> None:
    model = HashedNet(share=0.5, fresh=fresh, ignore=("stem", "head"))(tiny(), stripes(), Context()).model
    before = effective_weight(model, "body.0.conv1.weight").clone()
    trained = RecoveryDistillation(epochs=1, lr=0.05, alpha=1)(model, stripes(), Context()).model
    after = materialize(trained).get_parameter("body.0.conv1.weight").detach()
    assert not torch.equal(after, before)
    [held] = constraints(trained)["body.0.conv1.weight"]
    assert len(after.abs().unique()) <= 288
    assert torch.equal(after, held.values.detach()[held.buckets.long()] * held.signs)


def test_fresh_values_have_the_size_of_a_fresh_layer() -> None:
    layer = nn.Linear(400, 300)
    model = HashedNet(fresh=True)(nn.Sequential(layer), task(), Context()).model
    assert float(effective_weight(model, "0.weight").std()) == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert list(weights_of(constrain(layer, {"weight": Hashed(layer.weight, torch.zeros(3), 1)}))) == ["weight"]
