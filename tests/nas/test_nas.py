"""Spaces, searchers, zero-cost scores and the search itself, on tiny networks."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.batches import inputs_and_target
from gossamer.core.metric import Metric
from gossamer.errors import BadInput, MissingExtra
from gossamer.modules.activation_memory import activation_bytes
from gossamer.nas import (
    SEARCHERS,
    CellSpace,
    Evolution,
    Found,
    Genes,
    HalvingSearch,
    MobileSpace,
    PredictorSearch,
    RandomSearch,
    Searcher,
    SearchPlan,
    Space,
    front,
    pick,
    search,
    zero_cost_score,
)
from gossamer.nas.cells import OPERATIONS, cell_operation

MOBILE = MobileSpace(channels=1, classes=4, side=28)
CELLS = CellSpace(channels=1, classes=4, blocks=2, filters=4)


class Toy(Space):
    """Numbers alone: the value of a vector is known, its best is planted."""

    best = (2, 0, 3, 1, 2, 3, 0, 1)

    @property
    def choices(self) -> tuple[int, ...]:
        return (4,) * len(self.best)

    def build(self, genes: Genes) -> nn.Module:
        raise NotImplementedError

    def words(self, genes: Genes) -> str:
        return str(genes)

    def value(self, genes: Genes) -> float:
        return sum(g == b for g, b in zip(genes, self.best)) / len(self.best)


def played(searcher: Searcher, trials: int) -> list[Found]:
    """What a searcher finds in the toy space, where a network costs the sum of its numbers."""
    toy, found = Toy(), []
    for _ in range(trials):
        proposal = searcher.ask()
        one = Found(genes=proposal.genes, epochs=round(9 * proposal.share), value=toy.value(proposal.genes))
        one = replace(one, costs={"latency_ms": float(sum(proposal.genes))})
        searcher.tell(one)
        found.append(one)
    return found


@pytest.mark.parametrize("space", [MOBILE, CELLS], ids=["mobile", "cells"])
@pytest.mark.parametrize("seed", range(4))
def test_every_architecture_of_a_space_runs_trains_and_is_the_same_again(space: Space, seed: int) -> None:
    genes = space.random(Random(seed))
    model = space.build(genes)
    output = model(torch.randn(2, 1, 28, 28))
    output.sum().backward()
    assert output.shape == (2, 4) and any(p.grad is not None for p in model.parameters())
    assert [tuple(p.shape) for p in space.build(genes).parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert space.checked(genes) == space.canonical(genes) == genes and space.words(genes)


def test_large_images_are_reduced_by_the_stem_and_every_stage() -> None:
    space = MobileSpace(channels=3, classes=5, side=224)
    model = space.build(tuple(0 for _ in space.choices))
    seen: list[int] = []
    model[-3].register_forward_hook(lambda module, taken, output: seen.append(output.shape[-1]))  # type: ignore[index]
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert seen == [4]  # 224 / 2 / 2**5, rounded up


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_keep_channels_and_halve_by_stride(name: str, stride: int) -> None:
    output = cell_operation(name, 4, stride)(torch.randn(2, 4, 8, 8))
    assert output.shape == (2, 4, 8 // stride, 8 // stride)


def test_the_size_of_the_space_of_cells_is_that_of_the_paper() -> None:
    blocks = math.prod(((b + 2) * 13) ** 2 for b in range(5))
    assert CellSpace(channels=3, classes=10).size == blocks**2


def test_halves_of_a_block_change_places_and_cells_are_encoded_and_decoded() -> None:
    one = CELLS.encoded(
        ((0, "sep3", 1, "avg"), (2, "max", 0, "same")), ((1, "same", 1, "conv1"), (0, "sep5", 2, "max"))
    )
    other = CELLS.encoded(
        ((1, "avg", 0, "sep3"), (0, "same", 2, "max")), ((1, "same", 1, "conv1"), (2, "max", 0, "sep5"))
    )
    assert one == other and CELLS.encoded(*CELLS.decoded(one)) == one
    with pytest.raises(BadInput, match="operations are same"):
        CELLS.encoded(((0, "sep4", 1, "avg"),) * 2, ((0, "sep3", 1, "avg"),) * 2)
    with pytest.raises(BadInput, match="no architecture of this space"):
        CELLS.checked((0,) * 3)


def test_results_that_nothing_uses_are_what_a_cell_gives() -> None:
    chain = CELLS.encoded(((0, "same", 1, "same"), (2, "same", 2, "same")), ((0, "same", 1, "same"),) * 2)
    cells: Any = CELLS.build(chain).cells  # type: ignore[union-attr]
    assert cells[0].unused == [3] and cells[1].unused == [2, 3]


@pytest.mark.parametrize("space", [MOBILE, CELLS, Toy()], ids=["mobile", "cells", "toy"])
def test_a_mutation_is_one_step_away_and_another_network(space: Space) -> None:
    rng = Random(0)
    genes = space.random(rng)
    for _ in range(50):
        child = space.mutated(genes, rng)
        assert child != genes and space.checked(child) == child
        genes = child


def test_a_space_of_one_is_refused() -> None:
    class One(Toy):
        best = (0,)

        @property
        def choices(self) -> tuple[int, ...]:
            return (1,)

    with pytest.raises(BadInput, match="one architecture alone"):
        One().mutated((0,), Random(0))


MAKERS: dict[str, tuple[int, Callable[[Space, int], Searcher]]] = {
    "evolution": (80, lambda space, seed: Evolution(space, seed, population=10, tournament=4)),
    "predictor": (30, lambda space, seed: PredictorSearch(space, seed)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.slow
def test_what_learns_beats_random_search_at_a_planted_optimum(name: str) -> None:
    (trials, make), seeds = MAKERS[name], range(3)
    best = [max(one.value or 0 for one in played(make(Toy(), seed), trials)) for seed in seeds]
    chance = [max(one.value or 0 for one in played(RandomSearch(Toy(), seed), trials)) for seed in seeds]
    assert sum(best) > sum(chance) + 0.5


@pytest.mark.parametrize("kind", [RandomSearch, Evolution, HalvingSearch])
def test_the_same_seed_decides_the_same(kind: type[Searcher]) -> None:
    one, other = (played(kind(Toy(), 3), 30) for _ in range(2))
    assert one == other != played(kind(Toy(), 4), 30)


def test_the_oldest_of_the_population_dies_however_good_it_is() -> None:
    searcher = Evolution(Toy(), 0, population=3, tournament=3)
    searcher.tell(Found(genes=Toy.best, epochs=1, value=1.0))
    for number in range(3):
        searcher.tell(Found(genes=(number,) * 8, epochs=1, value=0.1))
    assert Toy.best not in [one.genes for one in searcher.population]


def test_what_was_never_trained_has_no_children() -> None:
    searcher = Evolution(Toy(), 0, population=1, tournament=1)
    searcher.tell(Found(genes=(0,) * 8, epochs=0, value=None))
    assert not searcher.population


def test_halving_promotes_the_best_third_of_every_length() -> None:
    found = played(HalvingSearch(Toy(), 0, reduction=3, lengths=3), 60)
    by_length = {n: [one for one in found if one.epochs == n] for n in (1, 3, 9)}
    assert len(by_length[1]) > 2 * len(by_length[3]) > 4 * len(by_length[9]) > 0
    promoted = {one.genes for one in by_length[3]}
    kept = [one.value or 0 for one in by_length[1] if one.genes in promoted]
    left = [one.value or 0 for one in by_length[1] if one.genes not in promoted]
    assert sum(kept) / len(kept) > sum(left) / len(left)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_searchers_of_optuna_ask_for_their_extra_or_search(name: str) -> None:
    if importlib.util.find_spec("optuna") is None:
        with pytest.raises(MissingExtra, match=r"gossamer\[search\]"):
            SEARCHERS[name](Toy(), 0)
    else:
        assert played(SEARCHERS[name](Toy(), 0), 30) == played(SEARCHERS[name](Toy(), 0), 30)


def test_the_pick_is_the_best_of_the_front_within_a_cost() -> None:
    rows = [
        Found(genes=(i,), epochs=1, value=v, costs={"macs": c})
        for i, (v, c) in enumerate(((0.7, 5.0), (0.8, 9.0), (0.75, 9.0)))
    ]
    assert [pick(rows, "macs", most).genes for most in (5, 8.9, 9, 100)] == [(0,), (0,), (1,), (1,)]
    with pytest.raises(BadInput, match=r"macs of at most 4; the nearest has 5"):
        pick(rows, "macs", 4)
    with pytest.raises(BadInput, match="nothing was trained"):
        pick([], "macs", 4)


def test_the_front_has_what_nothing_beats_and_compares_equal_lengths() -> None:
    def row(number: int, value: float, cost: float, epochs: int = 2) -> Found:
        return Found(genes=(number,), epochs=epochs, value=value, costs={"macs": cost})

    rows = [row(0, 0.7, 1), row(1, 0.6, 2), row(2, 0.8, 3), row(3, 0.8, 4), row(4, 0.99, 0.5, epochs=1)]
    assert [one.genes for one in front(rows, "macs")] == [(0,), (2,)]
    assert front([], "macs") == []


# zero-cost scores


def toy_task() -> gossamer.Task:
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    batches = [(images, torch.arange(8) % 2)]
    return gossamer.Task.from_loaders(batches, batches)


def test_scores_by_hand() -> None:
    task, net = toy_task(), nn.Linear(3, 2)
    assert zero_cost_score("params", net, task) == 8
    # One layer: R is the sum of |w| + |b|, and each parameter times its gradient is itself.
    flow = float((net.weight.abs().sum() + net.bias.abs().sum()).detach())
    assert zero_cost_score("synflow", net, task) == pytest.approx(math.log(flow), rel=1e-6)
    task.loss(net, task.train[0]).backward()  # type: ignore[index]
    norm = math.sqrt(sum(float(p.grad.detach().square().sum()) for p in net.parameters() if p.grad is not None))
    assert zero_cost_score("gradient_norm", net, task) == pytest.approx(norm, rel=1e-5)


def test_synflow_flows_equally_through_all_layers() -> None:
    """Tanaka et al., theorem: the sum of a layer's scores is the same for every layer, without biases."""
    layers = [nn.Linear(*size, bias=False) for size in ((3, 5), (5, 4), (4, 2))]
    net = nn.Sequential(layers[0], nn.ReLU(), *layers[1:])
    whole = zero_cost_score("synflow", net, toy_task())
    ones, weights = torch.ones(1, 3), [layer.weight.detach().abs() for layer in layers]
    flow = float((weights[2] @ weights[1] @ weights[0] @ ones.T).sum())
    assert whole == pytest.approx(math.log(3 * flow), rel=1e-5)


def test_naswot_is_the_determinant_of_the_loop_over_pairs() -> None:
    task = toy_task()
    net = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 2))
    [x], _ = inputs_and_target(task.train[0])  # type: ignore[index]
    codes = (net[0](x) > 0).int().tolist()
    kernel = torch.tensor([[float(sum(p == q for p, q in zip(a, b))) for b in codes] for a in codes]).double()
    assert zero_cost_score("naswot", net, task) == pytest.approx(float(torch.logdet(kernel)), rel=1e-6)


def test_a_network_is_left_alone_and_unknown_scores_are_refused() -> None:
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    zero_cost_score("synflow", net, toy_task())
    assert torch.equal(net.weight, before) and net.weight.grad is None
    with pytest.raises(BadInput, match="synflow"):
        zero_cost_score("sinflow", net, toy_task())


# the search


def small_task() -> gossamer.Task:
    target = torch.arange(32) % 4
    images = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + target.view(-1, 1, 1, 1)
    batches = [(images[i : i + 16], target[i : i + 16]) for i in (0, 16)]
    return replace(gossamer.Task.from_loaders(batches, batches, batches[:1]), classes=("a", "b", "c", "d"))


class Small(MobileSpace):
    """The narrowest and shallowest networks of the space, so that tests are fast."""

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(min(n, 2) for n in super().choices)


SMALL = Small(channels=1, classes=4, side=16)


@pytest.mark.slow
def test_a_search_keeps_its_limits_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nas.trials.TrialRunner._latency", lambda self, model: 1.0)
    goal = gossamer.Goal(params=60_000, threads=1, batch=4)
    plan = SearchPlan(searcher="random", trials=2, epochs=1, final_epochs=2)
    how: dict[str, Any] = {"goal": goal, "out": tmp_path, "verbose": False}
    first = search(SMALL, small_task(), plan=plan, **how)
    assert all(one.costs["params"] <= 60_000 for one in first.found if one.trained)
    assert all(one.epochs == 0 for one in first.found if one.costs["params"] > 60_000)
    assert sum(one.trained for one in first.found) == 2 and first.test is not None
    for name in ("model.safetensors", "model.onnx", "search.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0

    def trained_again(*args: Any, **options: Any) -> Any:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("gossamer.nas.trials.fit", trained_again)
        again = search(SMALL, small_task(), plan=plan, **how)
    assert again.found == first.found and again.best == first.best
    for one, other in zip(again.model.parameters(), first.model.parameters()):
        assert torch.equal(one, other)
    trained = [one for one in first.found if one.trained]
    lightest = min(trained, key=lambda one: one.costs["params"])
    picked = search(SMALL, small_task(), plan=replace(plan, pick=("params", lightest.costs["params"])), **how)
    assert picked.best == lightest and picked.found == first.found
    assert search(SMALL, small_task(), plan=plan, **how).best == first.best  # and back, with its own weights
    more = search(SMALL, small_task(), plan=replace(plan, trials=3), **how)
    assert more.found[: len(first.found)] == first.found and sum(one.trained for one in more.found) == 3


class Wrong(Metric):
    """The share of samples that are wrong: less is better."""

    name, unit, points, higher_is_better, perfect = "error", "%", 0.01, False, 0.0

    def evidence(self, model: Any, loader: Any) -> dict[str, torch.Tensor]:
        return {"wrong": torch.cat([(model(x).argmax(1) != y).float() for x, y in loader])}

    def value(self, evidence: Any) -> float:
        return float(evidence["wrong"].mean())


@pytest.mark.slow
def test_where_less_is_better_the_smallest_value_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search took the largest of all metrics, which of errors is the worst network."""
    monkeypatch.setattr("gossamer.nas.trials.TrialRunner._latency", lambda self, model: 1.0)
    errors = iter([0.5, 0.25, 0.75, 0.25])
    monkeypatch.setattr("gossamer.nas.trials.evaluate", lambda model, task: SimpleNamespace(value=next(errors)))
    plan, said = SearchPlan(searcher="random", trials=3, epochs=1, final_epochs=1), tmp_path / "search.json"
    task, goal = replace(small_task(), metric=Wrong()), gossamer.Goal(threads=1, batch=4)
    found = search(SMALL, task, goal=goal, plan=plan, out=tmp_path, verbose=False)
    assert [one.value for one in found.found if one.trained] == [-0.5, -0.25, -0.75] and found.best.value == -0.25
    assert "25" in (tmp_path / "report.html").read_text() and said.exists()


@pytest.mark.slow
def test_a_search_keeps_the_memory_of_a_microcontroller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nas.trials.TrialRunner._latency", lambda self, model: 1.0)
    plan = SearchPlan(searcher="random", trials=2, epochs=1, final_epochs=1, activation_bytes=6_000)
    goal = gossamer.Goal(threads=1, batch=4)
    found = search(SMALL, small_task(), goal=goal, plan=plan, out=tmp_path, verbose=False)
    assert activation_bytes(found.model, small_task().example_inputs) == found.best.costs["activation_bytes"] <= 6_000
    assert any(one.costs["activation_bytes"] > 6_000 for one in found.found)


def test_a_limit_that_nothing_keeps_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.nas.decisions.OUTSIDE", 3)
    with pytest.raises(
        BadInput, match=r"3 architectures in a row are outside of the limits; the nearest has .*allowed: params 10"
    ):
        search(SMALL, small_task(), goal=gossamer.Goal(params=10), out=tmp_path, verbose=False)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(BadInput, match="evolution"):
        SearchPlan(searcher="evolutoin")
    with pytest.raises(BadInput, match="trials = 0"):
        SearchPlan(trials=0)
    with pytest.raises(BadInput, match="cost to pick by"):
        SearchPlan(pick=("joules", 1))
    with pytest.raises(BadInput, match="lr = 0"):
        SearchPlan(lr=0)
    with pytest.raises(BadInput, match="speedup: a search has no original"):
        search(SMALL, small_task(), goal=gossamer.Goal(speedup=2))
    with pytest.raises(BadInput, match="4 pixels are too small"):
        MobileSpace(channels=1, classes=4, side=4)
