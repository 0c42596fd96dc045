"""Optimal Brain Damage and Surgeon, and their layer-wise successors, against what they stand for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import learned, stripes, task
from torch import Tensor, nn

from gossamer.calibration.moments import input_moments
from gossamer.constraints.apply import materialize
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.prune.layerwise import (
    LayerwisePruning,
    cheapest_mask,
    dampened,
    exact,
    greedy_order,
    least_squares_weights,
    one_shot,
)
from gossamer.methods.prune.obd import OptimalBrainDamage, saliency
from gossamer.methods.prune.obs import OptimalBrainSurgeon, inverse_hessian, refuse_large, surgery


def quadratic(n: int, seed: int = 0, rows: int = 0) -> tuple[Tensor, Tensor]:
    """A weight vector (or `rows` of them) and a Hessian that couples everything."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * n, n, generator=g, dtype=torch.double) @ torch.randn(n, n, generator=g, dtype=torch.double)
    return torch.randn((rows, n) if rows else (n,), generator=g, dtype=torch.double), x.T @ x / len(x)


def rise(change: Tensor, h: Tensor) -> Tensor:
    """dw H dw / 2 for every row."""
    return ((change @ h) * change).sum(-1) / 2


# Optimal Brain Damage


def test_saliency_is_the_rise_of_the_loss_where_the_hessian_is_diagonal() -> None:
    w, second = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.1, 4.0])
    torch.testing.assert_close(saliency(w, second), torch.stack([rise(w * e, second.diag()) for e in torch.eye(3)]))


def test_obd_drops_the_least_salient_of_all_layers_and_exactly_so_many() -> None:
    """Inputs 100 times as large make the first layer's small weights matter."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(0.01 * (torch.eye(4) + 0.1))
        model[1].weight.copy_(torch.arange(1.0, 9).view(2, 4) / 10)
    g = torch.Generator().manual_seed(0)
    data = [(100 * torch.randn(32, 4, generator=g), torch.randint(2, (32,), generator=g))]
    made = Task(name="t", train=data, validation=data, test=data, calibration=data, example_inputs=(data[0][0],))
    pruned = OptimalBrainDamage(sparsity=0.4, batches=1)(model, made, Context()).model
    weights = {name: effective_weight(pruned, name) for name in weights_of(pruned)}
    assert sum(int((w == 0).sum()) for w in weights.values()) == round(0.4 * 24)
    assert weights["0.weight"].diagonal().all()
    assert not (weights["0.weight"] == 0.0).all()


def test_obd_in_rounds_drops_as_many_and_never_brings_one_back() -> None:
    once = materialize(OptimalBrainDamage(sparsity=0.5, rounds=3, batches=2)(learned(), stripes(), Context()).model)
    again = materialize(OptimalBrainDamage(sparsity=0.7, rounds=2, batches=2)(once, stripes(), Context()).model)
    for name, w in weights_of(again).items():
        assert not w[weights_of(once)[name] == 0].any()
    assert sum(int((w == 0).sum()) for w in weights_of(again).values()) == round(
        0.7 * sum(w.numel() for w in weights_of(again).values())
    )
    with pytest.raises(NoEffect, match="zero already"):
        OptimalBrainDamage(sparsity=0.6)(again, stripes(), Context())


def test_obd_counts_what_is_zero_already_before_what_does_not_matter() -> None:
    """Input 0 is always zero, so its weights have no saliency either."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[:, 3] = 0
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    data = [(x, torch.arange(16) % 2)]
    made = Task(name="t", train=data, validation=data, test=data, calibration=data, example_inputs=(x,))
    weight = effective_weight(OptimalBrainDamage(sparsity=3 / 8)(model, made, Context()).model, "0.weight")
    assert (weight == 0).tolist() == [[True, False, False, True], [False, False, False, True]]


# Optimal Brain Surgeon


def test_recursion_over_patterns_is_the_inverse() -> None:
    g = torch.Generator().manual_seed(0)
    x, alpha = torch.randn(700, 6, generator=g, dtype=torch.double), 1e-4
    expected = torch.linalg.inv(x.T @ x / 350 + alpha * torch.eye(6))
    torch.testing.assert_close(inverse_hessian([x[:300], x[300:]], 350, alpha, 6), expected)
    slow = torch.eye(6, dtype=torch.double) / alpha
    for row in x:
        image = slow @ row
        slow = slow - image[:, None] * image / (350 + row @ image)
    torch.testing.assert_close(inverse_hessian([x], 350, alpha, 6), slow)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 9))
@settings(max_examples=25)
def test_surgery_is_constrained_least_squares_and_its_cost_is_the_rise_of_the_loss(seed: int, n: int) -> None:
    w, h = quadratic(n, seed)
    count = n // 2
    found, keep, losses = surgery(w, torch.linalg.inv(h), count)
    assert int((~keep).sum()) == count and not found[~keep].any()
    kept = keep.nonzero()[:, 0]
    # The minimum of (v - w) H (v - w) with v zero where it must be.
    best = torch.linalg.solve(h[kept][:, kept], (h @ w)[kept])
    torch.testing.assert_close(found[kept], best, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(losses.sum(), rise(found - w, h), rtol=1e-6, atol=1e-9)


def test_surgery_takes_the_weight_whose_removal_costs_least_after_the_others_moved() -> None:
    w, h = quadratic(6, 1)
    costs = []
    for q in range(6):
        rest = [i for i in range(6) if i != q]
        v = torch.zeros_like(w)
        v[rest] = torch.linalg.solve(h[rest][:, rest], (h @ w)[rest])
        costs.append(float(rise(v - w, h)))
    _, keep, losses = surgery(w, torch.linalg.inv(h), 1)
    assert int((~keep).nonzero()) == costs.index(min(costs))
    torch.testing.assert_close(float(losses[0]), min(costs))


def test_downdated_inverse_is_that_of_the_reduced_hessian() -> None:
    """Seen from outside: two weights dropped one after the other, or one and then the other from the reduced one."""
    w, h = quadratic(7, 2)
    found, _, _ = surgery(w, torch.linalg.inv(h), 3)
    first, left, _ = surgery(w, torch.linalg.inv(h), 1)
    rest = left.nonzero()[:, 0]
    second, _, _ = surgery(first[rest], torch.linalg.inv(h[rest][:, rest]), 2)
    torch.testing.assert_close(found[rest], second)


def test_surgery_leaves_its_arguments_alone() -> None:
    w, h = quadratic(4)
    inverse = torch.linalg.inv(h)
    before = w.clone(), inverse.clone()
    surgery(w, inverse, 2)
    assert torch.equal(w, before[0]) and torch.equal(inverse, before[1])


def test_too_many_weights_are_refused_with_the_memory_and_the_way_out() -> None:
    refuse_large(8192)
    with pytest.raises(BadInput, match=r"266,200 weights .* 1,133\.8 GB.*prune\.layerwise"):
        refuse_large(266_200)


def test_obs_drops_exactly_so_many_and_hurts_less_than_dropping_alone() -> None:
    """Of the weights that it leaves, those that it moved are better than those that were there."""
    model, data = learned(), stripes()
    layers = ("stem", "head", "body.0.conv1")
    pruned = materialize(OptimalBrainSurgeon(sparsity=0.7, rounds=2, layers=layers)(model, data, Context()).model)
    plain = learned()
    with torch.no_grad():
        for name, w in weights_of(plain, layers).items():
            w.mul_(weights_of(pruned)[name] != 0)

    def loss(net: nn.Module) -> float:
        return sum(F.cross_entropy(net(x), y).item() for x, y in data.train)

    kept = sum(int((w != 0).sum()) for w in weights_of(pruned, layers).values())
    total = sum(w.numel() for w in weights_of(pruned, layers).values())
    assert kept == total - round(0.7 * total)
    assert loss(pruned) < loss(plain)


# Layer-wise


def slow_greedy(w: Tensor, h: Tensor, count: int) -> Tensor:
    """The mask of one output, found by refitting after every trial."""
    keep = torch.ones_like(w, dtype=torch.bool)
    for _ in range(count):
        costs = []
        for q in range(len(w)):
            trial = keep.clone()
            trial[q] = False
            v = least_squares_weights(w[None], trial[None], h)[0]
            costs.append(float(rise(v - w, h)) if keep[q] else float("inf"))
        keep[costs.index(min(costs))] = False
    return keep


def test_greedy_is_the_slow_search() -> None:
    w_OD, h = quadratic(6, 3, rows=4)
    order, cost = greedy_order(w_OD, h)
    for w, one, prices in zip(w_OD, order, cost):
        for count in (1, 3, 5):
            keep = slow_greedy(w, h, count)
            assert sorted(one[:count].tolist()) == (~keep).nonzero()[:, 0].tolist()
            v = least_squares_weights(w[None], keep[None], h)[0]
            torch.testing.assert_close(prices[:count].sum() / 2, rise(v - w, h))


def test_greedy_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w_OD, h = quadratic(6, 3, rows=4)
    whole = greedy_order(w_OD, h)
    monkeypatch.setattr("gossamer.methods.prune.layerwise.ROWS_BYTES", 1)
    for a, b in zip(whole, greedy_order(w_OD, h)):
        torch.testing.assert_close(a, b)


def test_a_cheap_weight_waits_for_a_dear_one_before_it() -> None:
    order = torch.tensor([[0, 1, 2], [2, 0, 1]])
    cost = torch.tensor([[5.0, 0.1, 9.0], [1.0, 2.0, 3.0]])
    assert cheapest_mask(order, cost, 3, 2).tolist() == [[True, True, True], [False, True, False]]
    assert cheapest_mask(order, cost, 3, 5).tolist() == [[False, False, True], [False, False, False]]


def test_the_refit_is_least_squares_on_what_is_left() -> None:
    w_OD, h = quadratic(5, 4, rows=3)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    root = torch.linalg.cholesky(h).T
    for w, keep, found in zip(w_OD, mask, least_squares_weights(w_OD, mask, h)):
        best = torch.linalg.lstsq(root[:, keep], root @ w).solution
        torch.testing.assert_close(found[keep], best)
        assert not found[~keep].any()


@given(seed=st.integers(0, 10_000), sparsity=st.floats(0.05, 0.95))
@settings(max_examples=20)
def test_all_solvers_drop_exactly_so_many(seed: int, sparsity: float) -> None:
    w_OD, h = quadratic(8, seed, rows=6)
    count = round(sparsity * 48)
    value, mask = exact(w_OD[None], h[None], count)
    quick, quick_mask = one_shot(w_OD, h, count, block=3)
    assert int((~mask).sum()) == count == int((~quick_mask).sum())
    assert not value[~mask].any() and not quick[~quick_mask].any()
    best = least_squares_weights(w_OD, quick_mask, h)
    assert rise(best - w_OD, h).sum() <= rise(quick - w_OD, h).sum() + 1e-9


def test_the_exact_solver_beats_magnitude_by_far() -> None:
    """On average: a greedy choice may be worse where nearly all goes."""
    found = magnitudes = 0.0
    for seed in range(20):
        w_OD, h = quadratic(8, seed, rows=6)
        count = 6 + 2 * seed
        keep = torch.ones(48, dtype=torch.bool)
        keep[w_OD.flatten().abs().argsort()[:count]] = False
        magnitudes += float(rise(w_OD * keep.view(6, 8) - w_OD, h).sum())
        found += float(rise(exact(w_OD[None], h[None], count)[0][0] - w_OD, h).sum())
    assert found < 0.5 * magnitudes


def slow_one_shot(w_OD: Tensor, h: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """As the paper tells it: after every input the inverse is reduced, and all later weights move at once."""
    w, mask = w_OD.clone(), torch.ones_like(w_OD, dtype=torch.bool)
    width = w.shape[1]
    for j in range(width):
        inverse = torch.linalg.inv(h[j:, j:])
        if j % block == 0:
            stop = min(j + block, width)
            # d_k = [(H_{k:})^-1]_kk: of the inverse when only k and what comes later is left.
            d = torch.stack([torch.linalg.inv(h[k:, k:])[0, 0] for k in range(j, stop)])
            share = count * stop // width - count * j // width
            scores = (w[:, j:stop].square() / d).flatten()
            keep = torch.ones_like(scores, dtype=torch.bool)
            keep[scores.argsort()[:share]] = False
            mask[:, j:stop] = keep.view(len(w), -1)
        error = w[:, j] * ~mask[:, j] / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
    return w * mask, mask


@pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
def test_one_shot_in_blocks_is_the_slow_loop(block: int) -> None:
    w_OD, h = quadratic(7, 5, rows=4)
    found, mask = one_shot(w_OD, h, 15, block=block)
    expected, expected_mask = slow_one_shot(w_OD, h, 15, block)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", ["exact", "one_shot"])
def test_n_of_m_keeps_n_of_every_m(solver: str) -> None:
    w_OD, h = quadratic(8, 6, rows=5)
    _, mask = exact(w_OD[None], h[None], 0, (1, 4)) if solver == "exact" else one_shot(w_OD, h, 0, (1, 4), 4)
    assert (mask.view(5, 2, 4).sum(2) == 1).all()


@pytest.mark.parametrize("solver", ["exact", "one_shot"])
def test_zeros_stay_zero(solver: str) -> None:
    w_OD, h = quadratic(8, 7, rows=5)
    w_OD[:, 5::2] = 0
    value, mask = exact(w_OD[None], h[None], 20) if solver == "exact" else one_shot(w_OD, h, 20, block=4)
    assert not value.view(5, 8)[:, 5::2].any() and not mask.view(5, 8)[:, 5::2].any()
    assert int((~mask).sum()) == 20


def test_dampening_is_a_share_of_the_mean_diagonal() -> None:
    h = torch.diag(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(dampened(h, 0.5), torch.diag(torch.tensor([2.0, 4.0])).double())
    with pytest.raises(BadInput, match="nothing but zeros"):
        dampened(torch.zeros(2, 2), 0.5)


class Grouped(nn.Module):
    """Every kind of layer that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 8, 3, padding=1)
        self.deep, self.split = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2)
        self.line, self.head = nn.Conv1d(8, 4, 2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.split(torch.relu(self.deep(self.one(x)))))
        return self.head(self.line(x.flatten(2)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("solver", ["exact", "one_shot"])
def test_every_kind_of_layer_reaches_its_sparsity(solver: Any) -> None:
    torch.manual_seed(0)
    context = Context()
    pruned = LayerwisePruning(sparsity=0.5, solver=solver, block=5).apply(Grouped(), task(), context)
    for name, w in weights_of(materialize(pruned)).items():
        assert int((w == 0).sum()) == round(0.5 * w.numel()), name
    assert [edit.target for edit in context.log.edits] == [
        f"{n}.weight" for n in ("one", "deep", "split", "line", "head")
    ]


def test_n_of_m_of_a_convolution_counts_along_its_input_channels() -> None:
    torch.manual_seed(0)
    pruned = LayerwisePruning(n_of_m=(2, 4), ignore=("one", "deep"))(Grouped(), task(), Context()).model
    for name in ("split", "line", "head"):
        w = effective_weight(pruned, f"{name}.weight")
        kept = (w != 0).movedim(1, -1).reshape(-1, 4).sum(1)
        assert (kept == 2).all(), name
    with pytest.raises(
        BadInput, match=r"layer 'one': its 1 inputs are not a multiple of m = 4; list it under `ignore`"
    ):
        LayerwisePruning(n_of_m=(2, 4))(Grouped(), task(), Context())


def test_a_layer_changes_its_outputs_less_than_magnitude_would() -> None:
    model, data = learned(), stripes()
    name = "body.1.conv1"
    [h] = input_moments(model, [name], data.calibration)[name]
    w = effective_weight(model, f"{name}.weight").flatten(1).double()
    drop = round(0.7 * w.numel())
    magnitude = torch.ones(w.numel(), dtype=torch.bool)
    magnitude[w.flatten().abs().argsort()[:drop]] = False
    rises = [rise(w * magnitude.view_as(w) - w, h).sum()]
    for solver in ("one_shot", "exact"):
        pruned = LayerwisePruning(sparsity=0.7, solver=solver, layers=(name,))(model, data, Context()).model  # type: ignore[arg-type]
        rises.append(rise(effective_weight(pruned, f"{name}.weight").flatten(1).double() - w, h).sum())
    assert rises[0] > 2 * rises[1] > 2 * rises[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either sparsity or n_of_m"),
        ({"sparsity": 0.5, "n_of_m": (2, 4)}, "either sparsity or n_of_m"),
        ({"n_of_m": (4, 4)}, "0 < n < m"),
        ({"n_of_m": (2, 4), "block": 6}, "multiple of m = 4"),
        ({"sparsity": 0.5, "solver": "exakt"}, "did you mean 'exact'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        LayerwisePruning(**options)


def test_auto_solves_least_squares_after_one_pass_where_exact_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    w_OD, h = quadratic(8, 8, rows=5)
    weight, moments = w_OD.float(), h[None]
    one = LayerwisePruning(sparsity=0.6, solver="one_shot").solve(weight, moments, 1)
    best = LayerwisePruning(sparsity=0.6).solve(weight, moments, 1)
    monkeypatch.setattr("gossamer.methods.prune.layerwise.EXACT_OPERATIONS", 1)
    between = LayerwisePruning(sparsity=0.6).solve(weight, moments, 1)
    assert torch.equal(between[1], one[1])
    rises = [float(rise(value.double() - w_OD, h).sum()) for value, _ in (one, between, best)]
    assert rises[0] > rises[1] > rises[2]
