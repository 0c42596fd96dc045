"""Stepping back from a goal that costs too much: what is tried next, what is delivered, what is said."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import stripes, tiny
from torch import nn

from gossamer import Context, Goal
from gossamer.core.metric import Evaluation
from gossamer.core.metrics import Top1
from gossamer.core.progress import Silent
from gossamer.core.record import Record
from gossamer.errors import Diverged
from gossamer.jobs.exporting import other_runtimes
from gossamer.jobs.schedule import SEARCHED_FROM, JobSchedule, planned_share
from gossamer.jobs.shape_goal import TRAININGS, ShapeSearch
from gossamer.jobs.stages import PLANNED, Stages
from gossamer.jobs.trained_alternatives import sparse_steps, trained_otherwise, within_reach
from gossamer.measure import paired_drop, whole_samples
from gossamer.methods.binarize.react import ReActNetwork
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.search.axes import Steps
from gossamer.search.bisection import (
    DIVIDES,
    Point,
    bracket,
    near_miss,
    next_cost_ratio,
    within_budget,
)
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CAREFUL_MARGIN, SAFETY_MARGIN, CostEstimate
from gossamer.search.failures import FailureGuard
from gossamer.search.plan import shape_key

OUTCOME = ShapeSearch._outcome
RECOVER = RecoveryDistillation(epochs=1, lr=0.1)
WHOLE = 5 / 1.8  # of a goal of 5x where int8 alone gives 1.8x


def losses(cost_ratio: float) -> float:
    """Points that are lost by a network of this cost ratio: 1.88 at the goal, 0.64 at 3.5x."""
    cut = math.log(WHOLE / cost_ratio) / math.log(WHOLE)
    return 1.88 * cut**2.6 if cut > 0 else 0.0


@given(whole=st.floats(1.2, 12), worst=st.floats(0.6, 40), power=st.floats(1, 4))
def test_divided_in_what_was_lost_the_budget_is_soon_spent(whole: float, worst: float, power: float) -> None:
    """On any smooth curve of losses, by at most 7 networks; or no ratio lies between the ends."""
    budget = 0.5

    def lost(cost_ratio: float) -> float:
        return worst * (math.log(whole / cost_ratio) / math.log(whole)) ** power

    points = [Point(1.0, worst)]
    for _ in range(7):
        inside, outside = bracket(points, Point(whole, 0.0), budget)
        assert outside is not None
        cost_ratio = next_cost_ratio(inside, outside, budget)
        if cost_ratio is None:
            break
        assert outside.cost_ratio < cost_ratio < inside.cost_ratio
        points.append(Point(cost_ratio, lost(cost_ratio)))
    assert budget - inside.drop <= 0.1 or inside.cost_ratio < DIVIDES**1.5 * outside.cost_ratio


def test_the_bracket_is_the_fastest_inside_and_the_slowest_outside() -> None:
    points = [Point(1.0, 1.9), Point(1.4, 0.6), Point(2.0, 0.1), Point(1.8, 0.3), Point(2.2, 0.9)]
    assert bracket(points, Point(3.0, 0.0), 0.5) == (Point(1.8, 0.3), Point(1.4, 0.6))
    assert bracket(points[:2], Point(3.0, 0.0), 0.5) == (Point(3.0, 0.0), Point(1.4, 0.6))
    assert bracket(points[2:], Point(3.0, 0.0), 0.5) == (Point(1.8, 0.3), None)


def test_nothing_more_is_tried_where_the_budget_is_spent_or_nothing_lies_between() -> None:
    assert next_cost_ratio(Point(1.8, 0.41), Point(1.4, 0.6), 0.5) is None
    assert next_cost_ratio(Point(2.0, 0.5), Point(1.4, 0.6), 0.5) is not None  # far apart: there is something to find
    assert next_cost_ratio(Point(1.8, 0.1), Point(1.79, 0.6), 0.5) is None
    assert next_cost_ratio(Point(4.0, 0.0), Point(1.0, math.inf), 0.5) == pytest.approx(
        2.0
    )  # no shape at all: half of the way
    tight = next_cost_ratio(Point(2.0, 0.0), Point(1.0, 0.2), 0.05)
    assert tight is not None and 1.0 < tight < 2.0  # a small budget is not spent by rounding


def test_what_just_misses_is_near() -> None:
    assert near_miss(0.64, 0.5) and near_miss(0.09, 0.0)
    assert not near_miss(0.5, 0.5) and not near_miss(1.88, 0.5)


def shape(cost_ratio: float) -> Steps:
    return (BlockRemoval(names=(f"{cost_ratio:.4f}",)),)


def network(cost_ratio: float) -> Steps:
    return (*shape(cost_ratio), RECOVER)


class World:
    """A planner, a cost model and attempts of made-up networks: what a network of a cost ratio loses is known. outcome:
    ratio and
    drop by steps; grid: the ratios that shapes can have."""

    def __init__(self, outcome: Callable[[Steps], tuple[float, float]], grid: Sequence[float] | None = None) -> None:
        self.outcome, self.grid = outcome, grid
        self.trained, self.planned, self.said = list[Steps](), list[tuple[float, tuple[str, ...]]](), list[str]()
        self.won, self.recover = {"depth"}, RECOVER

    def plan(self, whole: CostEstimate, *, relaxation: float, kinds: Sequence[str] = ()) -> Steps | None:
        self.planned.append((relaxation, tuple(kinds)))
        if self.grid is None:
            return shape(SAFETY_MARGIN * relaxation)
        found = [n for n in self.grid if n <= SAFETY_MARGIN * relaxation and shape_key(shape(n)) not in self.store.left]
        return shape(max(found)) if found else None

    def macs(self, steps: Steps) -> int:
        return 1

    def left(self, steps: Steps) -> list[Any]:
        return []

    def shaping(self, store: CheckpointStore, **goal: Any) -> ShapeSearch:
        class Said(Silent):
            say = lambda _, message: self.said.append(message)  # noqa: E731

        self.store = store
        made = object.__new__(ShapeSearch)
        made.goal = Goal(max_drop=0.5, speedup=5, **goal)
        made.context = Context(progress=Said())
        attempts: Any = SimpleNamespace(store=store, seconds={}, untouched=lambda: "untouched", goal=made.goal)
        attempts.stages = Stages(made.context.progress, PLANNED)
        attempts.trials = FailureGuard(store, made.context.progress)
        planner: Any = self
        made.attempts, made.planner, made.recover, made.int8 = attempts, planner, self.recover, True
        made.whole = CostEstimate(
            macs=1, params=1, latency_ms=1.0, speedup=1.8, precision="int8", cost_ratios={"speedup": WHOLE}
        )
        cost_model: Any = SimpleNamespace(measure_again=lambda: None)
        made.cost_model = cost_model
        made.tried, made.bounds, made.trainings, made.pushed, made.gain, made.last = [], [], 0, False, math.inf, None
        made.out_of_time, made.margin, made.planned = False, SAFETY_MARGIN, SAFETY_MARGIN
        parts: Any = {"original": None, "task": None, "goal": made.goal, "context": made.context}
        made.schedule = JobSchedule(**parts, store=store, seconds=attempts.seconds, recover=self.recover)
        return made


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(self: Any, steps: Steps, name: str) -> dict[str, Any]:
        self.planner.trained.append(steps)
        cost_ratio, drop = self.planner.outcome(steps)
        self.attempts.seconds[name] = 60.0
        return {"cost_ratio": cost_ratio, "drop": drop, "edits": [], "states": [], "curves": []}

    monkeypatch.setattr(ShapeSearch, "_outcome", outcome)
    monkeypatch.setattr(ShapeSearch, "_exported", lambda self, attempt: attempt)


def smooth(steps: Steps) -> tuple[float, float]:
    if not steps:
        return WHOLE, 0.0
    cost_ratio = float(steps[0].options()["names"][0])
    return cost_ratio, losses(cost_ratio)


def test_a_short_job_leaves_more_room_for_how_times_differ() -> None:
    timed, counted = Goal(speedup=3), Goal(macs=1000)
    assert planned_share(timed, SEARCHED_FROM - 1) == CAREFUL_MARGIN < SAFETY_MARGIN
    assert planned_share(timed, SEARCHED_FROM) == planned_share(timed, None) == SAFETY_MARGIN
    assert planned_share(counted, 1) == SAFETY_MARGIN  # counts do not differ


def test_a_goal_that_costs_too_much_ends_at_the_budget_not_far_below() -> None:
    world = World(smooth)
    best = world.shaping(CheckpointStore(None, "")).search().result
    assert 0.4 <= best.drop <= 0.5  # type: ignore[attr-defined]
    assert len(world.trained) <= TRAININGS


def test_a_near_miss_is_trained_on_before_another_shape_is_tried() -> None:
    def trained_on(steps: Steps) -> tuple[float, float]:
        cost_ratio, drop = smooth(steps[:2])
        return cost_ratio, drop - 0.2 * (len(steps) - 2)

    world = World(trained_on, grid=(0.9, 1.4, 2.5))  # 1.4 misses by little
    found = world.shaping(CheckpointStore(None, "")).search()
    steps, best = found.steps, found.result
    assert steps == (*network(1.4), RECOVER)
    assert best.name == "attempt 3"  # type: ignore[attr-defined]


def test_where_shapes_are_few_the_fastest_within_the_budget_is_delivered() -> None:
    world = World(smooth, grid=(0.9, 1.2, 1.9, 2.2))
    steps = world.shaping(CheckpointStore(None, "")).search().steps
    assert steps[:2] == network(1.9)
    assert len({repr(s) for s in world.trained}) == len(world.trained)  # nothing is trained twice


@pytest.mark.parametrize("measured", [1.1, 1.6])
def test_where_int8_alone_turns_out_too_slow_it_is_measured_again_and_cut(measured: float) -> None:
    def estimate(cost_ratio: float) -> CostEstimate:
        return CostEstimate(
            macs=1, params=1, latency_ms=1, speedup=1, precision="int8", cost_ratios={"speedup": cost_ratio}
        )

    class Model:
        again = False

        def measure_again(self) -> None:
            self.again = True

        def __call__(self, *_: Any) -> CostEstimate:
            assert self.again
            return estimate(measured)

    world = World(lambda steps: (0.9, 0.2) if steps else (measured, 0.0))
    made = world.shaping(CheckpointStore(None, ""))
    made.whole, made.cost_model = estimate(0.8), Model()  # type: ignore[assignment]
    found = made.search()
    assert found.steps and world.trained[0] == () and len(world.trained) == 2


@pytest.mark.parametrize("competed", [True, False])
def test_without_time_for_a_recovery_what_the_tournament_trained_is_judged(
    competed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Competed(World):
        def plan(self, whole: CostEstimate, *, relaxation: float, kinds: Sequence[str] = ()) -> Steps | None:
            return network(0.9) if competed else shape(0.9)

    world = Competed(lambda steps: (0.9, 0.1) if steps else (WHOLE, 0.0))
    monkeypatch.setattr(JobSchedule, "recovery", lambda *_: None)
    found = world.shaping(CheckpointStore(None, "")).search()
    if competed:
        assert found.steps == network(0.9) and world.trained == [network(0.9)]
        assert any("judged as the tournament left it" in line for line in world.said)
    else:
        assert network(0.9) not in world.trained and shape(0.9) not in world.trained


@pytest.mark.parametrize("failing", [(0.9,), (0.9, 1.2), (0.9, 1.2, 1.6, 1.9, 2.2)])
@pytest.mark.slow
def test_what_fails_in_its_training_is_left_out_and_the_job_delivers(failing: Sequence[float]) -> None:
    def some_fail(steps: Steps) -> tuple[float, float]:
        if steps and smooth(steps)[0] in failing:
            raise Diverged("the loss rose")
        return smooth(steps)

    world = World(some_fail, grid=(0.9, 1.2, 1.6, 1.9, 2.2))
    found = world.shaping(CheckpointStore(None, "")).search()
    steps, best = found.steps, found.result
    if len(failing) == 5:
        assert steps == () and best.name == "deployment alone"  # type: ignore[attr-defined]
    else:
        assert steps[:2] == network(1.6)
    assert len(world.store.left) == len(failing)


@pytest.mark.slow
def test_where_deployment_fails_as_well_the_original_is_delivered() -> None:
    def fail(steps: Steps) -> tuple[float, float]:
        raise MemoryError

    assert World(fail).shaping(CheckpointStore(None, "")).search() == "untouched"


@pytest.mark.parametrize(("second", "best"), [(0.9, "attempt 2"), (3.0, "attempt 1")])
def test_what_is_within_the_budget_but_too_slow_is_cut_further_once(second: float, best: str) -> None:
    costs = iter((1.15, second))
    world = World(lambda steps: (next(costs), 0.0))
    found = world.shaping(CheckpointStore(None, "")).search()
    assert found.result.name == best  # type: ignore[attr-defined]
    assert [relaxation for relaxation, _ in world.planned] == [1.0, pytest.approx(1 / 1.15)]


def test_a_job_that_goes_on_decides_the_same_and_trains_nothing_again(tmp_path: Path) -> None:
    first = World(smooth)
    one = first.shaping(CheckpointStore(tmp_path, "x")).search()
    again = World(smooth)
    assert again.shaping(CheckpointStore(tmp_path, "x")).search() == one
    assert first.trained and not again.trained


@pytest.mark.parametrize("kills", [1, 2])
def test_a_job_killed_in_an_attempt_ends_as_if_it_had_not_been(kills: int, tmp_path: Path) -> None:
    def killed(steps: Steps) -> tuple[float, float]:
        if len(world.trained) > kills:
            raise KeyboardInterrupt
        return smooth(steps)

    world = World(killed)
    with pytest.raises(KeyboardInterrupt):
        world.shaping(CheckpointStore(tmp_path, "x")).search()
    assert (
        World(smooth).shaping(CheckpointStore(tmp_path, "x")).search()
        == World(smooth).shaping(CheckpointStore(None, "")).search()
    )


def test_the_kind_of_shape_that_won_is_taken_for_easier_goals() -> None:
    world = World(smooth)
    world.shaping(CheckpointStore(None, "")).search()
    assert world.planned[0] == (1.0, ()) and {kinds for _, kinds in world.planned[1:]} == {("depth",)}


def test_no_attempt_starts_that_would_end_too_late() -> None:
    world = World(smooth)
    world.shaping(CheckpointStore(None, ""), time_budget=3.5).search()
    assert len([steps for steps in world.trained if steps]) == 2  # each takes a minute
    assert any("minutes are left" in line for line in world.said)


@pytest.mark.parametrize(("minutes", "drop", "kind"), [(60, 0.3, "width"), (60, 0.9, "width"), (3, 0.3, "width")])
def test_what_lost_too_much_by_a_cut_is_trained_otherwise_where_there_is_time(
    minutes: float, drop: float, kind: str
) -> None:
    """Once, after the first cut, and it wins if it is within the budget."""

    def outcome(steps: Steps) -> tuple[float, float]:
        return (0.99, drop) if trained_otherwise(steps) else (smooth(steps)[0], 1.2 * losses(smooth(steps)[0]) / 1.88)

    world = World(outcome)
    world.won = {kind}
    shaping = world.shaping(CheckpointStore(None, ""), time_budget=minutes)
    data: Any = SimpleNamespace(task=stripes(), **vars(shaping.attempts))
    shaping.attempts = data
    schedule: Any = shaping.schedule
    shaping.schedule = replace(schedule, original=tiny(), task=stripes())
    shaping.attempts.store.get_or_compute("seconds per step", lambda: 5.0)  # a training takes a minute
    found = shaping.search()
    sparse = [steps for steps in world.trained if trained_otherwise(steps)]
    assert len(sparse) == (minutes > 3)
    if sparse:
        assert world.trained.index(sparse[0]) == 1 and (sparse[0][0].options()["epochs"], sparse[0][0].lr) == (1, 0.1)  # type: ignore[attr-defined]
    assert trained_otherwise(found.steps) == (minutes > 3 and drop <= 0.5)


@pytest.mark.parametrize(("ratio", "runtime"), [(0.9, "binary"), (1.1, "binary"), (0.9, "onnxruntime")])
def test_binary_layers_are_trained_where_the_runtime_has_kernels_and_they_meet_the_goal(
    ratio: float, runtime: str
) -> None:
    world = World(lambda steps: (0.8, 0.4) if trained_otherwise(steps) else smooth(steps))
    shaping = world.shaping(CheckpointStore(None, ""), time_budget=60, runtime=runtime)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    data: Any = SimpleNamespace(task=stripes(), original=model, **vars(shaping.attempts))
    price: Any = lambda key, build: made_quote(ratio)  # noqa: E731
    shaping.attempts, shaping.cost_model, shaping.recover = data, price, replace(RECOVER, epochs=4)
    schedule = replace(shaping.schedule, original=tiny(), task=stripes(), recover=shaping.recover)
    shaping.schedule = schedule
    shaping.attempts.store.get_or_compute("seconds per step", lambda: 1.0)
    found = shaping.search()
    if (ratio, runtime) == (0.9, "binary"):
        assert found.steps == (ReActNetwork(epochs=2),)
    else:
        assert not any(trained_otherwise(steps) for steps in world.trained)


def test_only_what_can_be_reached_by_channels_and_has_not_lost_far_too_much_is_trained_otherwise() -> None:
    time, macs = Goal(speedup=2), Goal(macs=1000)
    assert within_reach(0.8, 0.5, {"even width"}, time) and within_reach(0.8, 0.5, {"depth"}, macs)
    assert not within_reach(0.8, 0.5, {"depth"}, time)
    assert not within_reach(0.5, 0.5, {"even width"}, macs) and not within_reach(1.6, 0.5, {"even width"}, macs)


def test_the_target_of_sparse_training_is_what_the_goal_counts() -> None:
    recovery, data = RecoveryDistillation(steps=30, lr=0.02, alpha=0.5), stripes()  # 12 batches
    [step] = sparse_steps(recovery, 7000, Goal(speedup=2), data)
    assert step.options() | {"macs": 7000, "epochs": 2, "lr": 0.02, "alpha": 0.5} == step.options()
    [step] = sparse_steps(recovery, 7000, Goal(params=900), data)
    assert (step.options()["params"], step.options()["macs"]) == (900, None)
    assert sparse_steps(replace(recovery, steps=11), 7000, Goal(speedup=2), data) == ()


def test_a_missed_goal_says_what_is_reachable_at_which_loss_and_what_int8_gains() -> None:
    shaping = World(smooth).shaping(CheckpointStore(None, ""))
    shaping.search()
    rows = [latency("openvino", 2.0), latency("openvino", 10.0, "original")]
    tried, other, limit = shaping.why(rows)
    assert other == "this network reaches it on openvino (5.00x)"
    assert tried.startswith("tried, with what was lost on validation: ") and "5.15x at" in tried
    assert "int8 alone runs 1.80 times as fast as float32 on onnxruntime" in limit


def latency(runtime: str, value: float, subject: str = "result int8") -> Record:
    return Record(subject=subject, what="latency", value=value, unit="ms", conditions={"runtime": runtime})


def test_the_runtime_that_reaches_the_goal_is_named() -> None:
    rows = [latency("onnxruntime", 4.0), latency("openvino", 2.0), latency("torch", 9.0, "result")]
    rows += [latency(name, 10.0, "original") for name in ("onnxruntime", "openvino", "torch")]
    assert other_runtimes(Goal(speedup=5), rows) == ["this network reaches it on openvino (5.00x)"]
    assert other_runtimes(Goal(speedup=6), rows) == ["elsewhere it runs 5.00x on openvino, 1.11x on torch"]
    assert other_runtimes(Goal(latency_ms=3), rows) == ["this network reaches it on openvino (5.00x)"]
    assert other_runtimes(Goal(macs=3), rows) == []


def test_the_budget_is_kept_to_the_point() -> None:
    assert within_budget(0.5, 0.5) and not within_budget(0.51, 0.5)
    whole, lost = hits(torch.ones(300)), hits(torch.cat([torch.zeros(2), torch.ones(298)]))
    assert within_budget(paired_drop(whole, lost).points, whole_samples(0.5, whole))  # two of 300 samples


def hits(scores: torch.Tensor) -> Evaluation:
    return Evaluation(Top1(), {"score": scores})


def made_quote(cost_ratio: float) -> CostEstimate:
    return CostEstimate(
        macs=1, params=1, latency_ms=1.0, speedup=1.0, precision="int8", cost_ratios={"speedup": cost_ratio}
    )


@pytest.mark.parametrize(("precision", "cost_ratio"), [("int8", 1.5), ("float32", 0.9)])
def test_what_lost_the_budget_in_float32_costs_what_it_would_in_int8(precision: str, cost_ratio: float) -> None:
    """Else the step back would begin at the cost of another precision."""

    class Prices:
        goal = Goal(speedup=5)

        def shipped(self, *network: Any, planned: float) -> CostEstimate:
            return made_quote(1.5)

        def __call__(self, key: str, build: Any) -> CostEstimate:
            return made_quote(0.9)

    shaping = World(smooth).shaping(CheckpointStore(None, ""))
    drop = SimpleNamespace(points=1.3)
    result = SimpleNamespace(precision=precision, deployed=None, model=None, scores=hits(torch.ones(3)), drop=drop)
    attempts: Any = shaping.attempts
    attempts.take, attempts.deploy = lambda *steps: None, lambda *network, **how: result
    prices: Any = Prices()
    shaping.cost_model = prices
    assert OUTCOME(shaping, (), "attempt 1")["cost_ratio"] == cost_ratio


def test_the_learning_rate_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all recoveries of the job have it."""
    found = iter([0.03])
    monkeypatch.setattr("gossamer.jobs.shape_goal.find_rate", lambda *network, **how: next(found))
    monkeypatch.setattr("gossamer.jobs.shape_goal.take_steps", lambda *steps: None)
    monkeypatch.setattr("gossamer.jobs.shape_goal.recalibrate", lambda *network: None)
    world = World(smooth)
    world.recover = RecoveryDistillation(epochs=1)
    shaping = world.shaping(CheckpointStore(None, ""))
    attempts: Any = shaping.attempts
    attempts.task, attempts.original = stripes(), None
    shaping.search()
    assert len(world.trained) > 1 and {steps[-1] for steps in world.trained if steps} == {
        RecoveryDistillation(epochs=1, lr=0.03)
    }


def test_without_time_for_another_training_the_job_ends() -> None:
    world = World(smooth)
    world.recover = RecoveryDistillation(lr=0.1)
    shaping = world.shaping(CheckpointStore(None, ""), time_budget=3)
    shaping.schedule = replace(shaping.schedule, original=tiny(), task=stripes())
    shaping.attempts.store.results["seconds per step"] = 0.2
    shaping.search()
    lengths = [steps[-1].options()["steps"] for steps in world.trained if steps]
    assert lengths == sorted(lengths, reverse=True) and 1 <= len(lengths) <= 3
    assert any("too little time is left" in line for line in world.said)
