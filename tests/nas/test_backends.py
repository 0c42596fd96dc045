"""Workers on one search: they share its trials, come and go, are killed, and find what one process alone finds."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from places import importing
from test_nas import SMALL, Toy, small_task
from test_study import Hand, Said, killed, suicide

import gossamer
from gossamer.core.context import Context
from gossamer.errors import BadInput, MissingExtra
from gossamer.nas import MobileSpace, SearchPlan, join_search, search
from gossamer.nas.backends import RayCluster, ThisProcess
from gossamer.nas.job import decisions_of, follow
from gossamer.nas.plan import LIMITS
from gossamer.nas.result import Found
from gossamer.nas.study import Study, describe_study, process
from gossamer.nas.trials import TrialRunner, TrialStep

TOY, TASK = Toy(), gossamer.data.tiny_task()
PLAN = SearchPlan(searcher="evolution", trials=12, concurrent=4)


class ToyRunner(TrialRunner):
    """Knows what comes of a step without work, and lets something else happen during one training."""

    def __init__(self, said: Said | None = None) -> None:
        super().__init__(TOY, TASK, gossamer.Goal(), PLAN, Context(progress=said or Said()))
        self.meanwhile: Any = None

    def __call__(self, step: TrialStep) -> dict[str, Any]:
        if self.meanwhile is not None and step.kind == "train":
            act, self.meanwhile = self.meanwhile, None
            act()
        result: dict[str, Any] = {"genes": list(step.genes), "seconds": 1.0}
        if step.kind == "measure":
            return result | {"costs": dict.fromkeys(LIMITS, 1.0), "words": ""}
        return result | {"epochs": step.epochs, "value": TOY.value(step.genes)}


def toy_backend(folder: Path, hand: Hand | None = None, **how: Any) -> ThisProcess:
    """A worker on the toy space, on a machine of which the others cannot see whether it lives."""
    runner = ToyRunner(how.pop("said", None))
    plan = replace(PLAN, trials=how.pop("trials", PLAN.trials))
    description = describe_study(TOY, runner.task, runner.goal, plan, 0)
    study = Study.start(folder, description, clock=(hand or Hand()).clock(), progress=runner.context.progress)
    study.owner["place"] = str(id(study))
    return ThisProcess(study, runner, **how)


def alone(folder: Path) -> list[Found]:
    """What one process finds."""
    return follow(toy_backend(folder)).found


def test_a_worker_that_comes_in_the_middle_of_a_step_takes_another_one(tmp_path: Path) -> None:
    """Of four trials at a time it gets the other three, and waits then."""
    hand = Hand()
    one, other = toy_backend(tmp_path / "two"), toy_backend(tmp_path / "two", hand)

    def meanwhile() -> None:
        decisions = decisions_of(other.study, other.runner)
        while not hand.time:
            other.study.refresh()
            other.advance(decisions.ready())

    one.runner.meanwhile = meanwhile  # type: ignore[attr-defined]
    assert follow(one).found == alone(tmp_path / "one")
    assert other.done == 3 and one.done == 21


def test_two_workers_in_turn_find_what_one_finds(tmp_path: Path) -> None:
    backends = [toy_backend(tmp_path / "two") for _ in range(2)]
    both = [decisions_of(backend.study, backend.runner) for backend in backends]
    while not all(decisions.finished for decisions in both):
        for backend, decisions in zip(backends, both):
            backend.study.refresh()
            if ready := decisions.ready():
                backend.advance(ready)
    assert both[0].found == both[1].found == alone(tmp_path / "one")
    assert backends[0].done == backends[1].done == 12


def test_the_trial_of_a_worker_that_is_gone_is_done_again(tmp_path: Path) -> None:
    """Its machine is not seen: its lease expires by the clock of the one that waits."""
    hand, lost = Hand(), toy_backend(tmp_path / "two")
    step = decisions_of(lost.study, lost.runner).ready()[0]
    assert lost.study.take(step.key) is not None  # and nothing is released, as after SIGKILL
    other = toy_backend(tmp_path / "two", hand, said=(said := Said()))
    assert follow(other).found == alone(tmp_path / "one")
    assert hand.time > 90 and other.done == 24
    assert any("waiting for other workers: 00000-000-costs" in line for line in said.lines)


def dying(folder: Path, trials: int, links: int, after: bool) -> None:
    """A worker that is killed at one of its next files, before it is there or after."""
    link, left = os.link, links

    def fatal(*args: Any) -> None:
        nonlocal left
        left -= 1
        if not left and not after:
            suicide()
        link(*args)
        if not left:
            suicide()

    os.link = fatal
    backend = toy_backend(folder, trials=trials)
    backend.study.owner.update(process(os.getpid()))  # others of this machine see that it is gone
    follow(backend)


@pytest.mark.slow
def test_fifty_kills_cost_nothing_but_steps_that_ran(tmp_path: Path) -> None:
    rng, kills = Random(0), 0
    while killed(lambda: dying(tmp_path / "killed", 30, rng.randint(1, 4), rng.random() < 0.5)):
        kills += 1
        rng.random()
    assert kills >= 50
    found = follow(toy_backend(tmp_path / "killed", trials=30)).found
    assert found == follow(toy_backend(tmp_path / "one", trials=30)).found


def test_times_are_measured_only_by_workers_that_may(tmp_path: Path) -> None:
    hand, said = Hand(), Said()
    busy, quiet = toy_backend(tmp_path, hand, measure=False, said=said), toy_backend(tmp_path)
    done: list[str] = []
    busy.runner.__class__ = type("Recording", (ToyRunner,), {"__call__": recording(done)})

    def measure() -> None:
        """Another worker comes, and measures one architecture."""
        quiet.study.refresh()
        steps = [s for s in decisions_of(quiet.study, quiet.runner).ready() if s.kind == "measure"]
        if steps:
            quiet.advance(steps)

    hand.then = [lambda: None] * 40 + [measure] * 40
    assert len(follow(busy).found) == 12
    assert len(done) == 12 and all(key.endswith("score") for key in done)
    assert "waiting for a worker with --measure, or the search itself: 00000-000-costs" in said.lines


def recording(done: list[str]) -> Any:
    def call(self: ToyRunner, step: TrialStep) -> dict[str, Any]:
        done.append(step.key)
        return ToyRunner.__call__(self, step)

    return call


class Ending(list[object]):
    """Batches that end the process by SIGKILL at one of them, counted over all trainings."""

    at, given = 0, 0

    def __iter__(self) -> Iterator[object]:
        for batch in super().__iter__():
            Ending.given += 1
            if Ending.given == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


GOAL = gossamer.Goal(params=60_000, threads=1, batch=4)
TINY = SearchPlan(searcher="evolution", trials=4, epochs=1, final_epochs=1, concurrent=3)


def tiny_search(folder: Path, at: int = 0) -> gossamer.nas.SearchResult:
    """A whole search; at: the batch at which its process is killed."""
    TrialRunner._latency = lambda self, model: 1.0  # type: ignore[method-assign]
    Ending.at, task = at, small_task()
    return search(SMALL, replace(task, train=Ending(task.train)), goal=GOAL, plan=TINY, out=folder, verbose=False)


@pytest.mark.slow
def test_a_search_that_is_killed_is_finished_by_a_worker_and_delivered_by_the_next_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialRunner, "_latency", lambda self, model: 1.0)
    code = "import sys; from pathlib import Path; from test_backends import *; tiny_search(Path(sys.argv[1]), at=9)"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], env=importing(Path(__file__).parent), capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    assert not (tmp_path / "a" / "search.json").exists()
    done = join_search(tmp_path / "a", SMALL, small_task(), measure=True, verbose=False)
    assert done > 0
    assert join_search(tmp_path / "a", SMALL, small_task(), verbose=False) == 0
    resumed, whole = tiny_search(tmp_path / "a"), tiny_search(tmp_path / "b")
    assert [replace(one, seconds=0.0) for one in resumed.found] == [replace(one, seconds=0.0) for one in whole.found]
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_worker_of_another_space_or_task_is_refused_before_work(tmp_path: Path) -> None:
    task = small_task()
    Study.start(tmp_path, describe_study(SMALL, task, GOAL, TINY, 0))
    with pytest.raises(BadInput, match="study of another space"):
        join_search(tmp_path, MobileSpace(channels=1, classes=4, side=28), task)
    with pytest.raises(BadInput, match="study of another data"):
        join_search(tmp_path, SMALL, replace(task, name="other"))
    with pytest.raises(BadInput, match="study of another plan"):
        search(SMALL, task, goal=GOAL, plan=replace(TINY, lr=0.2), out=tmp_path, verbose=False)


def test_without_ray_one_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"gossamer\[distributed\]"):
        RayCluster(toy_backend(tmp_path).study, ToyRunner(), "local")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_ray_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", importing(Path(__file__).parent)["PYTHONPATH"])  # of the processes of Ray
    here = toy_backend(tmp_path / "ray")
    found = follow(RayCluster(here.study, here.runner, "local")).found
    assert found == alone(tmp_path / "one")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_a_ray_cluster_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    here = toy_backend(tmp_path)
    with pytest.raises(BadInput, match="no Ray cluster at"):
        RayCluster(here.study, here.runner, "ray://127.0.0.1:1")
