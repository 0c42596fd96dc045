"""Results in one line, and in a few."""

import torch
from nets import task, tiny
from sample_document import sample

import gossamer
from gossamer import Goal, Recipe
from gossamer.core.goal import NO_BUDGET
from gossamer.graph import find_groups, prune
from gossamer.jobs.job import Artifact
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.search.cost_model import CostEstimate


def test_goals_show_what_was_asked_for_and_are_none_the_less_told_apart() -> None:
    goal = Goal(max_drop=1, speedup=4, threads=2)
    assert repr(goal) == "Goal(max_drop=1, speedup=4, runtime='onnxruntime', threads=2, batch=64)"
    assert eval(repr(goal)) == goal
    assert Goal(max_drop=NO_BUDGET, macs=5000).summary().startswith("any loss\nmacs: at most 5,000\n")
    assert Goal(max_drop=NO_BUDGET, macs=1).row()["max_drop"] is None and goal.row()["max_drop"] == 1


def test_recipes() -> None:
    recipe = Recipe(name="sparse", steps=(Magnitude(sparsity=0.75),))
    assert repr(recipe) == "Recipe('sparse', 1 steps, int8)"
    assert recipe.summary() == "recipe sparse, seed 0\n  1. prune.magnitude: sparsity=0.75\n  int8"


def test_artifacts() -> None:
    made = Artifact(tiny(), sample(), gossamer.data.__path__[0])  # type: ignore[arg-type]
    assert repr(made).startswith("Artifact(Tiny, goal met, ")
    assert made.summary().startswith("Goal met: ") and "| Top-1 on test (10,000 samples) | 93.20 %" in made.summary()


def test_pruned_networks_and_analyses() -> None:
    groups = find_groups(tiny(), task().example_inputs)
    [first, *_] = groups.prunable()
    scores = {group.name: torch.arange(float(group.size)) for group in groups.groups}
    small = prune(groups, {first.name: 0.5}, scores)
    assert repr(small) == "PruningResult(Tiny, 1 groups cut, 0 left whole)"
    assert f"{first.name}: 8 to 4 channels" in small.summary() and "largest relative difference" in small.summary()
    found = gossamer.analyze(tiny(), task().example_inputs)
    assert len(repr(found).splitlines()) == 1 and "stem: Conv2d 1 to 8, 80 parameters" in found.summary()


def test_estimates_of_costs() -> None:
    found = CostEstimate(
        macs=420_000, params=3210, latency_ms=1.2, speedup=2.4, precision="int8", cost_ratios={"speedup": 1.6}
    )
    assert found.summary() == "1.20 ms (2.4x), 0.42 M MACs, 3,210 parameters"
    assert repr(found) == f"CostEstimate({found.summary()}, int8, cost ratio 1.6)"
