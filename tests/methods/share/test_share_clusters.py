"""k-means on a line and on vectors, and the methods `share.kmeans`, `share.product`, `share.residual`."""

import copy
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.mask import Mask
from gossamer.constraints.serialization import constraint_spec, restore_constraints
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.gsr.format.generated import rows_of, weight_of
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.share._clusters import (
    cluster_vectors,
    lloyd,
    mean_vectors,
    nearest_center,
    nearest_vectors,
    optimal_centers,
    start_centers,
)
from gossamer.methods.share._decoded import Product, ResidualCodebooks, blocks_of, shared_values
from gossamer.methods.share._importance import importance_of
from gossamer.methods.share.binary import BinaryCodes, binary_rate
from gossamer.methods.share.kmeans import KMeans, share_values
from gossamer.methods.share.product import product_code, product_rate, scalar_rate
from gossamer.methods.share.residual import residual_code, residual_rate

numbers = st.lists(st.integers(-20, 20), min_size=1, max_size=9).map(lambda v: [x / 4 for x in v])
sizes = st.integers(1, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(values: Tensor, centers: Tensor, weights: Tensor | None = None) -> float:
    squares = (values.double()[:, None] - centers.double()).square().min(1).values
    return float((squares if weights is None else weights.double() * squares).sum())


def best_error(values: Sequence[float], weights: Sequence[float], k: int) -> float:
    """All ways to cut the sorted values into at most k pieces."""
    pairs = sorted(zip(values, weights))

    def piece(part: list[tuple[float, float]]) -> float:
        mass = sum(h for _, h in part)
        mean = sum(h * x for x, h in part) / mass
        return sum(h * (x - mean) ** 2 for x, h in part)

    found = []
    for cuts in itertools.combinations(range(1, len(pairs)), min(k, len(pairs)) - 1):
        edges = [0, *cuts, len(pairs)]
        found.append(sum(piece(pairs[a:b]) for a, b in itertools.pairwise(edges)))
    return min(found)


@given(numbers, sizes, st.data())
@settings(max_examples=150)
@pytest.mark.slow
def test_the_optimum_on_a_line_is_that_of_all_partitions(values: list[float], k: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 9).map(float), min_size=len(values), max_size=len(values)))
    x, h = torch.tensor(values, dtype=torch.float64), torch.tensor(weights)
    centers = optimal_centers(x, k, h)
    assert len(centers) <= k
    assert torch.equal(centers, centers.sort().values)
    assert error(x, centers, h) == pytest.approx(best_error(values, weights, k), abs=1e-9)


def slow_optimum(values: Tensor, k: int) -> float:
    """The plain dynamic program: every border of every stage."""
    x = values.double().sort().values
    one, two = (torch.cat([x.new_zeros(1), power.cumsum(0)]) for power in (x, x * x))
    count = torch.arange(len(x) + 1)
    inside = two - two[:, None] - (one - one[:, None]).square() / (count - count[:, None]).clamp(min=1)
    inside[count[:, None] >= count] = torch.inf
    best = inside[0]
    for _ in range(k - 1):
        best = torch.minimum(best, (best[:, None] + inside).min(0).values)
    return float(best[-1])


@pytest.mark.parametrize("k", [1, 2, 7, 32])
def test_the_fast_program_finds_what_the_slow_one_finds(k: int) -> None:
    values = torch.randn(300, generator=generator())
    assert error(values, optimal_centers(values.double(), k)) == pytest.approx(slow_optimum(values, k), rel=1e-9)


def test_the_optimum_of_many_values_is_hardly_above_that_of_all_borders() -> None:
    values = torch.randn(30_000, generator=generator())
    starts = [start_centers(values, 16, how, generator()) for how in ("linear", "density", "random")]
    lowest = min(error(values, lloyd(values, start)) for start in starts)
    assert error(values, optimal_centers(values, 16)) <= lowest * (1 + 1e-6)


@pytest.mark.parametrize("how", ["linear", "density", "random"])
def test_lloyd_never_raises_the_error(how: str) -> None:
    values = torch.randn(500, generator=generator())
    h = torch.rand(500, generator=generator(1))
    centers = start_centers(values, 8, how, generator())
    errors = [error(values, centers, h)]
    for _ in range(20):
        centers = lloyd(values, centers, h, iterations=1)
        errors.append(error(values, centers, h))
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_a_center_without_members_stays() -> None:
    values = torch.tensor([0.0, 1.0])
    assert lloyd(values, torch.tensor([0.0, 1.0, 50.0])).tolist() == [0, 1, 50]


def test_starts_are_where_the_paper_puts_them() -> None:
    values = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.1, 3.0])
    assert start_centers(values, 3, "linear", generator()).tolist() == [-1, 1, 3]
    assert start_centers(values, 3, "density", generator()).tolist() == [0, 0, 3]
    drawn = start_centers(values, 3, "random", generator())
    assert set(drawn.tolist()) <= set(values.tolist()) and len(drawn) == 3
    with pytest.raises(BadInput, match="linear"):
        start_centers(values, 3, "liner", generator())


def test_weighted_clusters_are_better_where_it_is_weighted() -> None:
    values = torch.randn(2000, generator=generator())
    h = torch.rand(2000, generator=generator(1)) ** 4
    plain, weighted = optimal_centers(values, 8), optimal_centers(values, 8, h)
    assert error(values, weighted, h) < 0.98 * error(values, plain, h)
    assert error(values, plain) < 0.98 * error(values, weighted)
    assert torch.equal(optimal_centers(values, 8, torch.full((2000,), 2.0)), plain)


def test_nearest_is_nearest() -> None:
    values, centers = torch.randn(50, generator=generator()), torch.tensor([-1.0, 0.2, 0.3])
    assert torch.equal(nearest_center(values, centers), (values[:, None] - centers).abs().argmin(1))


def test_zeros_keep_an_entry_of_their_own() -> None:
    weight = torch.randn(8, 10, generator=generator())
    weight[weight.abs() < 0.5] = 0
    [held] = shared_values({"w": weight}, share_values(weight, 4, "optimal", generator())).values()
    assert len(held.codebook) == 5
    assert torch.equal(held(weight) == 0, weight == 0)
    assert torch.equal(held.codebook[1:].detach(), optimal_centers(weight[weight != 0], 4))
    empty = torch.zeros(3, 3)
    [held] = shared_values({"w": empty}, share_values(empty, 4, "optimal", generator())).values()
    assert torch.equal(held(empty), empty)


def vector_error(points: Tensor, centers: Tensor) -> float:
    indices = nearest_vectors(points, centers)
    picked = torch.stack([c[i] for c, i in zip(centers, indices)])
    return float((points - picked).square().sum())


def test_clustering_vectors_never_raises_the_error() -> None:
    points = torch.randn(3, 60, 4, generator=generator()).double()
    centers, errors = points[:, :5], []
    for _ in range(12):
        errors.append(vector_error(points, centers))
        centers = mean_vectors(points, nearest_vectors(points, centers), centers)
    assert all(b <= a for a, b in itertools.pairwise(errors))


def test_as_many_centers_as_different_vectors_lose_nothing() -> None:
    few = torch.randn(2, 6, 3, generator=generator())
    points = few[:, torch.arange(40) % 6]
    centers, indices = cluster_vectors(points, 6, generator())
    decoded = torch.stack([c[i] for c, i in zip(centers, indices)])
    torch.testing.assert_close(decoded, points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_several_runs_the_best_counts(dtype: torch.dtype) -> None:
    points = torch.randn(3, 80, 2, generator=generator(), dtype=dtype)
    errors = {}
    for restarts in (1, 12):
        centers, indices = cluster_vectors(points, 10, torch.Generator().manual_seed(1), restarts=restarts)
        errors[restarts] = float((points - centers.gather(1, indices[..., None].expand_as(points))).square().sum())
    assert errors[12] < 0.99 * errors[1]


def test_restarts_depend_on_the_seed_alone() -> None:
    points = torch.randn(4, 30, 3, generator=generator())
    runs = [cluster_vectors(points, 5, torch.Generator().manual_seed(2), restarts=3) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("scale", ["mean", "none"])
def test_binary_codes_are_signs_of_the_least_error(scale: Any) -> None:
    weight = torch.randn(6, 5, generator=generator())
    weight[0, :2] = 0
    model = nn.Sequential(nn.Linear(5, 6))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    shared, edits = BinaryCodes(scale=scale)(model)
    a = float(weight[weight != 0].abs().mean()) if scale == "mean" else 1.0
    torch.testing.assert_close(shared[0].weight.detach(), a * weight.sign())
    tried = [float((weight - b * weight.sign()).square().sum()) for b in (a, 0.99 * a, 1.01 * a)]
    assert scale == "none" or tried[0] == min(tried)
    assert "values -" in edits[0].after


def test_binary_codes_of_zeros_are_zeros() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    assert not bool(BinaryCodes()(model).model.weight.any())


@pytest.mark.parametrize("shape", [(6, 10), (6, 5, 3, 2), (4, 7, 3)])
def test_rows_and_back(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=generator())
    rows = rows_of(weight)
    assert rows.shape == (weight.numel() // shape[1], shape[1])
    assert torch.equal(weight_of(rows, weight.shape), weight)
    blocks = blocks_of(rows, 4)
    assert torch.equal(blocks.movedim(0, 1).flatten(1)[:, : shape[1]], rows)


@pytest.mark.parametrize("shape", [(12, 10), (6, 5, 2, 2)])
def test_product_codes_with_an_entry_for_every_row_are_lossless(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=generator())
    code = product_code(weight, 4, rows_of(weight).shape[0], generator())
    torch.testing.assert_close(code(weight), weight)
    coarse = product_code(weight, 4, 3, generator())
    assert coarse.codebook.shape == (-(-shape[1] // 4), 3, 4)
    assert 0 < float((coarse(weight) - weight).detach().square().sum()) < float(weight.square().sum())


def test_every_stage_of_residual_codes_lowers_the_error() -> None:
    weight = torch.randn(40, 6, generator=generator())
    decoded = [residual_code(weight, 4, stages, generator())(weight).detach() for stages in range(1, 6)]
    errors = [float((w - weight).square().sum()) for w in decoded]
    assert all(b < a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize(
    "make", [lambda w: product_code(w, 2, 3, generator()), lambda w: residual_code(w, 3, 2, generator())]
)
def test_gradients_of_vectors_are_means_over_their_users(make: object) -> None:
    weight = torch.randn(9, 4, generator=generator())
    code: Product | ResidualCodebooks = make(weight)  # type: ignore[operator]
    slope = torch.randn(9, 4, generator=generator(1))
    (code(weight) * slope).sum().backward()
    wanted, users = torch.zeros_like(code.codebook), torch.zeros(code.codebook.shape[:2])
    for block, r in itertools.product(range(len(code.codebook)), range(9)):
        part = slope[r, 2 * block : 2 * block + 2] if isinstance(code, Product) else slope[r]
        wanted[block, code.indices[block, r]] += part
        users[block, code.indices[block, r]] += 1
    torch.testing.assert_close(code.codebook.grad, wanted / users.clamp(min=1)[..., None])


@pytest.mark.parametrize("gradient", ["sum", "mean"])
def test_gradients_of_centers_are_sums_or_means_over_their_members(gradient: str) -> None:
    model = KMeans(bits=2, gradient=gradient)(nn.Sequential(nn.Linear(6, 5)), stripes(), Context()).model  # type: ignore[arg-type]
    [held] = constraints(model)["0.weight"]
    slope = torch.randn(5, 6, generator=generator())
    (model[0].weight * slope).sum().backward()  # type: ignore[index,union-attr,operator]
    for k, found in enumerate(held.codebook.grad.tolist()):  # type: ignore[union-attr]
        mine = slope[held.indices == k]
        assert found == pytest.approx(float(mine.sum() if gradient == "sum" else mine.mean()), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_usual_learning_rates_suit_centers() -> None:
    """A recovery with its defaults makes a shared network better."""
    model, task = learned(), stripes()
    shared = KMeans(bits=1, codebook="layer")(model, task, Context()).model
    trained = RecoveryDistillation(epochs=3)(shared, task, Context(original=model)).model
    losses = [sum(float(task.loss(m.eval(), batch).detach()) for batch in task.train) for m in (shared, trained)]
    assert losses[1] < 0.7 * losses[0]
    assert len(effective_weight(trained, "body.0.conv1.weight").unique()) == 2


def test_rates_are_those_of_the_paper() -> None:
    assert scalar_rate(4096, 4096, 256) == pytest.approx(3.9998, abs=5e-5)
    assert product_rate(4096, 4096, 256, 1024) == pytest.approx(8.0)
    assert product_rate(4096, 4096, 128, 512) == pytest.approx(17.07, abs=5e-3)
    assert residual_rate(4096, 4096, 256, 1) == pytest.approx(15.98, abs=5e-3)
    assert binary_rate(4096, 4096) == pytest.approx(32, abs=2e-4)


def masked() -> tuple[nn.Module, str]:
    model, name = tiny(), "body.0.conv1.weight"
    weight = effective_weight(model, name)
    return constrain(model, {name: Mask(weight.abs() > weight.abs().median())}), name


def test_a_codebook_of_all_layers_is_the_optimum_of_all_weights_together() -> None:
    model = tiny()
    h = importance_of(model, weights_of(model), "hessian", stripes(), Context(), samples=32)
    every = [torch.cat([x[name].flatten() for name in h]) for x in ({n: effective_weight(model, n) for n in h}, h)]
    shared = KMeans(bits=3, importance="hessian", samples=32)(model, stripes(), Context()).model
    centers = optimal_centers(every[0], 8, every[1])
    for name in h:
        assert torch.equal(
            effective_weight(shared, name), centers[nearest_center(effective_weight(model, name), centers)]
        )
    alone = KMeans(bits=3, codebook="layer")(model, stripes(), Context()).model
    values = {name: set(effective_weight(alone, name).unique().tolist()) for name in h}
    assert not values["stem.weight"] & values["head.weight"]


def test_a_codebook_of_all_layers_is_one_parameter_and_stays_one() -> None:
    shared = KMeans(bits=2)(tiny(), stripes(), Context()).model
    again = restore_constraints(tiny(), constraint_spec(shared), shared.state_dict())
    for model in (shared, copy.deepcopy(shared), again):
        books = [held for [held] in constraints(model).values()]
        assert all(book.codebook is books[0].codebook for book in books)
        members = torch.cat([book.indices.flatten() for book in books]).bincount(minlength=4)
        model.zero_grad()
        total = sum(2.0 * operator.attrgetter(name)(model).sum() for name in constraints(model))
        total.backward()  # type: ignore[union-attr]
        assert books[0].codebook.grad is not None
        torch.testing.assert_close(books[0].codebook.grad, torch.full((4,), 2.0))
        assert all(torch.equal(book.users, members) for book in books)


@pytest.mark.parametrize("how", ["none", "hessian", "fisher", "adam"])
def test_kmeans_keeps_zeros_and_few_values(how: str) -> None:
    model, name = masked()
    zeros = effective_weight(model, name) == 0
    context = Context()
    shared = KMeans(bits=3, importance=how, samples=32).apply(model, stripes(), context)  # type: ignore[arg-type]
    assert torch.equal(effective_weight(shared, name) == 0, zeros)
    assert [type(c).__name__ for c in constraints(shared)[name]] == ["Mask", "Codebook"]
    plain = materialize(shared)
    for weight in weights_of(plain):
        assert len(effective_weight(plain, weight).unique()) <= 8 + (weight == name)
    assert [edit.target for edit in context.log.edits] == list(weights_of(plain))


def test_adam_importance_is_the_root_of_mean_squared_batch_gradients() -> None:
    model, task = tiny(), stripes()
    weight = model.get_parameter("head.weight")
    squares = [torch.autograd.grad(task.loss(model, batch), weight)[0].square() for batch in list(task.train)[:2]]
    found = importance_of(tiny(), ["head.weight"], "adam", task, Context(), samples=32)["head.weight"]
    torch.testing.assert_close(found, torch.stack(squares).mean(0).sqrt())


def test_importance_moves_the_centers() -> None:
    values = {
        how: effective_weight(
            KMeans(bits=1, importance=how, samples=32)(tiny(), stripes(), Context()).model, "stem.weight"
        )  # type: ignore[arg-type]
        for how in ("none", "hessian", "fisher", "adam")
    }
    for a, b in itertools.combinations(values, 2):
        assert not torch.equal(values[a], values[b])
