"""Decisions of a search: the same for any number of workers and any order of arrival."""

import importlib.util
from random import Random
from typing import Any

import pytest
from test_nas import Toy, played

from gossamer.core.metrics import Top1
from gossamer.core.progress import Quiet
from gossamer.errors import BadInput
from gossamer.nas import SEARCHERS, Found, SearchPlan
from gossamer.nas.decisions import Decisions
from gossamer.nas.trials import TrialStep

TOY = Toy()
EPOCHS = 9
KINDS = ["random", "evolution", "halving"]
if importlib.util.find_spec("optuna"):
    KINDS += ["tpe", "nsga2"]


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def result_of(step: TrialStep) -> dict[str, Any]:
    """What comes of a step in the toy space, where a network costs the sum of its numbers."""
    if step.kind == "measure":
        cost = float(sum(step.genes))
        costs = {"params": cost, "macs": cost, "activation_bytes": cost, "latency_ms": cost}
        return {"genes": list(step.genes), "costs": costs, "words": "", "seconds": 1.0}
    return {"genes": list(step.genes), "epochs": step.epochs, "value": TOY.value(step.genes), "seconds": 60.0}


def begun(searcher: str, results: dict[str, Any], **how: Any) -> Decisions:
    """Decisions of a search in the toy space."""
    plan = SearchPlan(searcher=searcher, trials=how.pop("trials", 24), concurrent=how.pop("concurrent", 4))
    about = {"limits": {}, "minutes": None, "metric": Top1(), "progress": Quiet()} | how
    return Decisions(SEARCHERS[searcher](TOY, 3), plan, (EPOCHS, 5 * EPOCHS), results=results.get, **about)


def with_workers(decisions: Decisions, results: dict[str, Any], workers: int, order: Random) -> int:
    """Play to the end with so many workers, which end in any order; the most that ran at the same time."""
    running: dict[str, TrialStep] = {}
    most = 0
    while (ready := decisions.ready()) or not decisions.finished:
        for step in ready:
            if len(running) < workers:
                running.setdefault(step.key, step)
        most = max(most, sum(step.kind == "train" for step in running.values()))
        quick = [key for key, step in running.items() if step.kind == "measure"]
        done = running.pop(order.choice(quick or sorted(running)))
        results[done.key] = result_of(done)
    return most


@pytest.mark.parametrize("searcher", KINDS)
def test_any_number_of_workers_and_any_order_of_arrival_decide_the_same(searcher: str) -> None:
    found = []
    for workers, seed in ((1, 0), (2, 1), (8, 2), (8, 3)):
        results: dict[str, Any] = {}
        decisions = begun(searcher, results, limits={"macs": 13.0})
        with_workers(decisions, results, workers, Random(seed))
        found.append(decisions.found)
    assert found[0] == found[1] == found[2] == found[3]
    assert sum(one.trained for one in found[0]) == 24
    assert all((one.costs["macs"] <= 13) == one.trained for one in found[0])


@pytest.mark.parametrize("searcher", ["random", "evolution", "halving"])
def test_one_trial_at_a_time_is_the_plain_loop_of_asking_and_telling(searcher: str) -> None:
    results: dict[str, Any] = {}
    decisions = begun(searcher, results, concurrent=1)
    with_workers(decisions, results, 8, Random(0))
    plain = played(SEARCHERS[searcher](TOY, 3), 24)
    assert [(one.genes, one.epochs, one.value) for one in decisions.found] == [
        (one.genes, one.epochs, one.value) for one in plain
    ]


@pytest.mark.parametrize("concurrent", [1, 3, 8])
def test_so_many_trials_run_at_once_and_no_more(concurrent: int) -> None:
    results: dict[str, Any] = {}
    assert with_workers(begun("random", results, concurrent=concurrent), results, 20, Random(0)) == concurrent


def test_a_proposal_knows_the_trials_before_the_last_ones_however_many_are_done() -> None:
    """Trial 5 of four at a time is proposed from trials 0 to 2, also where 3 and 4 are known."""
    results: dict[str, Any] = {}
    decisions = begun("random", results)
    told: list[tuple[int, Found]] = []
    decisions.searcher.tell = lambda found: told.append((len(decisions.slots), found))  # type: ignore[method-assign]
    with_workers(decisions, results, 1, Random(0))
    assert [trials for trials, _ in told][:6] == [4, 5, 6, 7, 8, 9] and len(told) == 24
    assert [found for _, found in told] == decisions.found


def test_a_search_that_goes_on_asks_for_nothing_that_is_there() -> None:
    results: dict[str, Any] = {}
    first = begun("evolution", results)
    with_workers(first, results, 2, Random(0))
    again = begun("evolution", dict(results))
    assert again.ready() == [] and again.finished and again.found == first.found
    longer = begun("evolution", results, trials=30)
    with_workers(longer, results, 2, Random(0))
    assert longer.found[:24] == first.found and len(longer.found) == 30


def test_results_are_said_once_when_they_are_there() -> None:
    said, results = Said(), dict[str, Any]()
    decisions = begun("random", results, trials=3, progress=said)
    with_workers(decisions, results, 3, Random(5))
    decisions.ready()
    assert sorted(line.partition(":")[0] for line in said.lines) == ["trial 1", "trial 2", "trial 3"]


def test_the_time_ends_a_search_the_same_for_any_number_of_workers() -> None:
    found = []
    for workers in (1, 8):
        said, results = Said(), dict[str, Any]()
        decisions = begun("random", results, minutes=20.0, progress=said)
        with_workers(decisions, results, workers, Random(workers))
        found.append(decisions.found)
        assert any("the time ends after" in line for line in said.lines)
    assert found[0] == found[1] and 4 < len(found[0]) < 20
    # Of 20 minutes, 5 are for the final training; the trials take 61 seconds each.
    assert sum(one.seconds for one in found[0]) <= 15 * 60


def test_limits_that_nothing_keeps_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.nas.decisions.OUTSIDE", 3)
    results: dict[str, Any] = {}
    decisions = begun("random", results, limits={"macs": 0.5})
    with pytest.raises(BadInput, match="3 architectures in a row are outside of the limits; the nearest has"):
        with_workers(decisions, results, 1, Random(0))


@pytest.mark.parametrize("kind", ["costs", "score"])
def test_results_of_other_proposals_are_refused(kind: str) -> None:
    results: dict[str, Any] = {}
    with_workers(begun("random", results, trials=3), results, 1, Random(0))
    key = next(key for key in results if key.endswith(kind))
    results[key]["genes"] = [0] * 8
    with pytest.raises(BadInput, match="another architecture was proposed"):
        begun("random", results, trials=3).ready()


def test_keys_of_steps_are_in_the_order_of_the_trials() -> None:
    results: dict[str, Any] = {}
    decisions = begun("random", results, limits={"macs": 10.0}, trials=11)
    with_workers(decisions, results, 1, Random(0))
    scores = sorted(key for key in results if key.endswith("score"))
    assert [tuple(results[key]["genes"]) for key in scores] == [one.genes for one in decisions.found if one.trained]
