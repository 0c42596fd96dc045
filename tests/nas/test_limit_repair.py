"""Proposals outside of the limits are made cheaper until they are inside."""

import importlib.util
import math
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from nets import task, tiny
from test_decisions import result_of, with_workers
from test_nas import CELLS, MOBILE, Toy
from torch import nn

import gossamer
from gossamer.core.metrics import Top1
from gossamer.core.progress import Quiet
from gossamer.errors import BadInput
from gossamer.modules.cost import total_macs
from gossamer.nas import SEARCHERS, Genes, SearchPlan, neighbourhood, search
from gossamer.nas.decisions import Decisions
from gossamer.nas.limit_repair import LimitRepair
from gossamer.nas.neighbourhood import Within
from gossamer.nas.searchers._optuna import OptunaSearch


class Ordered(Toy):
    """The toy space, where a network costs the sum of its numbers and says so."""

    @property
    def cheapest(self) -> Genes:
        return (0,) * len(self.best)


ORDERED = Ordered()
KINDS = [
    "random",
    "evolution",
    "halving",
    "predictor",
    *(["tpe", "nsga2"] if importlib.util.find_spec("optuna") else []),
]


def begun(searcher: str, results: dict[str, Any], macs: float, trials: int = 24, **how: Any) -> Decisions:
    plan = SearchPlan(searcher=searcher, trials=trials)
    about: dict[str, Any] = {"limits": {"macs": macs}, "minutes": None, "metric": Top1(), "progress": Quiet()}
    return Decisions(SEARCHERS[searcher](ORDERED, 3, **how), plan, (9, 45), results=results.get, **about)


@pytest.mark.parametrize("length", range(9))
def test_bisection_finds_what_a_look_at_every_network_finds(length: int) -> None:
    chain = [(number,) for number in range(length)]
    for first in range(length + 1):
        repair, asked = LimitRepair(chain), 0
        while (genes := repair.asked) is not None:
            repair.tell(genes[0] >= first)
            asked += 1
        assert repair.found == next((one for one in chain if one[0] >= first), None)
        assert asked <= math.ceil(math.log2(length + 1))


def costs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    return sum(p.numel() for p in model.parameters()), total_macs(model, inputs)


def test_ever_cheaper_networks_of_the_mobile_space_never_cost_more_and_end_at_the_cheapest() -> None:
    rng = Random(0)
    genes, inputs = (*(n - 1 for n in MOBILE.choices[:-1]), 0), (torch.zeros(1, 1, 28, 28),)
    chain = [genes, *MOBILE.ever_cheaper(genes, rng)]
    assert chain[-1] == MOBILE.cheapest and len(chain) == 1 + sum(genes) + 2
    known = [costs(MOBILE.build(one), inputs) for one in (*chain[::12], chain[-1])]
    assert all(new <= old for before, after in pairwise(known) for old, new in zip(before, after))
    assert known[-1][0] < known[0][0] / 10


@pytest.mark.parametrize("seed", range(3))
def test_ever_cheaper_sub_networks_never_cost_more_and_end_at_the_cheapest(seed: int) -> None:
    rng, data = Random(seed), task()
    space = neighbourhood(tiny(), data, bits=(8, 4, 2))
    whole = (0,) * len(space.choices)
    chain = [whole, *space.ever_cheaper(whole, rng)]
    assert chain[-1] == space.cheapest and all(space.checked(genes) == genes for genes in chain)
    known = [(costs(space.build(genes), data.example_inputs), space.layer_bits(genes)) for genes in chain]
    for ((params, macs), bits), ((fewer, less), lower) in pairwise(known):
        assert fewer <= params and less <= macs and all(lower[name] <= bits[name] for name in lower)


def test_operations_of_cells_have_no_order() -> None:
    assert CELLS.cheapest is None and CELLS.cheaper(CELLS.random(Random(0)), Random(0)) is None


@pytest.mark.parametrize("searcher", KINDS)
def test_what_is_outside_is_trained_at_the_limit_whoever_works(searcher: str) -> None:
    found = []
    for workers, seed in ((1, 0), (8, 2)):
        results: dict[str, Any] = {}
        decisions = begun(searcher, results, macs=6.0)
        with_workers(decisions, results, workers, Random(seed))
        found.append(decisions.found)
    assert found[0] == found[1]
    trained = [one for one in found[0] if one.trained]
    assert len(trained) == 24 and all(one.costs["macs"] <= 6 for one in trained)
    # Most random networks cost about 12: repaired by steps of 1, they cost exactly what is allowed.
    assert sum(one.costs["macs"] == 6 for one in trained) > 12
    assert len(found[0]) < 24 * 6  # 24 numbers at most are a chain of 24, which five looks decide
    if searcher == "evolution":
        assert max(one.value or 0 for one in trained[12:]) > 0.5
    if isinstance(decisions.searcher, OptunaSearch):
        told = [trial for trial in decisions.searcher.study.trials if trial.values is not None]
        assert len(told) == 24 and {trial.values[0] for trial in told} == {one.value for one in trained}


def test_a_repair_only_lowers_the_numbers_of_its_proposal() -> None:
    results: dict[str, Any] = {}
    decisions = begun("random", results, macs=6.0)
    with_workers(decisions, results, 1, Random(0))
    for slot in decisions.slots:
        asked = min(key for key in results if key.startswith(f"{slot.step.key[:5]}-") and key.endswith("costs"))
        assert all(new <= old for new, old in zip(slot.step.genes, results[asked]["genes"]))


def test_a_space_without_a_network_inside_is_refused_before_anything_is_trained() -> None:
    results: dict[str, Any] = {}
    decisions = begun("random", results, macs=0.5)
    message = "no architecture of this space is within the limits; the nearest has params 1, .*, latency_ms 1; allo"
    with pytest.raises(BadInput, match=message):
        while ready := decisions.ready():
            row = result_of(ready[0])
            results[ready[0].key] = row | {"costs": {name: cost + 1 for name, cost in row["costs"].items()}}
    assert len(results) < 7 and not any(key.endswith("score") for key in results)


@pytest.mark.parametrize("searcher", KINDS)
def test_a_search_starts_from_what_is_given(searcher: str) -> None:
    start = [(1, 0, 3, 1, 2, 3, 0, 1), (0,) * 8]
    asked = SEARCHERS[searcher](ORDERED, 0, start=start)
    assert [asked.ask().genes for _ in start] == start
    with pytest.raises(BadInput, match="no architecture of this space"):
        SEARCHERS[searcher](ORDERED, 0, start=[(7,) * 8])


def test_evolution_begins_with_mutations_of_its_start() -> None:
    results: dict[str, Any] = {}
    start = (1, 0, 3, 1, 2, 3, 0, 1)
    decisions = begun("evolution", results, macs=24.0, trials=12, start=[start])
    with_workers(decisions, results, 1, Random(0))
    found = [one.genes for one in decisions.found]
    assert found[0] == start and len(set(found)) == 12
    assert all(sum(a != b for a, b in zip(genes, start)) == 1 for genes in found[1:])


def test_a_condition_that_chance_does_not_meet_is_met_by_repair() -> None:
    within, rng = Within(ORDERED, lambda genes: sum(genes) <= 1, (0,) * 8), Random(0)
    drawn = [within.random(rng) for _ in range(10)]
    assert all(sum(genes) == 1 for genes in drawn) and len(set(drawn)) > 3
    assert within.mutated(drawn[0], rng) != drawn[0]
    assert within.cheapest == (0,) * 8


@pytest.mark.slow
def test_a_search_of_the_neighbourhood_starts_at_the_whole_network_and_keeps_its_limit(tmp_path: Path) -> None:
    data, space = task(), neighbourhood(tiny(), task())
    whole = (0,) * len(space.choices)
    macs = total_macs(space.build(whole), data.example_inputs) // 3
    plan = SearchPlan(trials=3, epochs=1, final_epochs=1, lr=0.01, start=(whole,))
    found = search(space, data, goal=gossamer.Goal(macs=macs), plan=plan, out=tmp_path, verbose=False)
    assert total_macs(found.model, data.example_inputs) <= macs
    assert found.found[0].genes == whole and not found.found[0].trained  # outside, and repaired
    assert sum(one.trained for one in found.found) == 3
    again = search(space, data, goal=gossamer.Goal(macs=macs), plan=plan, out=tmp_path, verbose=False)
    assert again.found == found.found
