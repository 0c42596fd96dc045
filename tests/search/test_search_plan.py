"""Planning: what a goal needs, which shape is taken, where estimates are spent."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import learned, stripes, task, tiny
from torch import nn

import gossamer
from gossamer import Context, Goal
from gossamer.errors import BadInput, Diverged
from gossamer.measure import evaluate
from gossamer.methods._training import Limited
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.osscar import Osscar
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.methods.restructure.global_pool import GlobalAveragePooling
from gossamer.methods.restructure.resolution import ResolutionMultiplier
from gossamer.methods.restructure.separable import DepthwiseSeparable
from gossamer.methods.restructure.stride import PoolingToStride
from gossamer.modules.cost import total_macs
from gossamer.search.axes import (
    SearchAxis,
    Steps,
    apply_steps,
    block_order,
    cheapest_first,
    depth_axis,
    layer_axis,
    shape_only,
    swap_losses,
    width_axis,
)
from gossamer.search.checkpoint_store import CheckpointStore, job_fingerprint
from gossamer.search.cost_model import CostEstimate, CostModel, cost_ratios, first_samples
from gossamer.search.plan import MAX_ESTIMATES, Planner, _distinct
from gossamer.search.replacement_search import ReplacementSearch
from gossamer.search.replacements import Replacement
from gossamer.search.sensitivity import sensitivity
from gossamer.search.tournament import LONG_RECOVERY, MAX_STEPS, MIN_STEPS, SHARES, SHORT_LR, ShapeCandidate, Tournament


def estimate(cost_ratio: float, macs: int = 1) -> CostEstimate:
    return CostEstimate(
        macs=macs,
        params=1,
        latency_ms=None,
        speedup=None,
        precision="float32",
        cost_ratios={"macs": cost_ratio},
    )


class Curve:
    """A cost model of a made-up axis: the shape of ratio r costs cost_ratio(r)."""

    def __init__(self, needs_by_steps: dict[str, float]) -> None:
        self.cost_ratios, self.asked = needs_by_steps, 0

    def __call__(self, key: str, build: Any) -> CostEstimate:
        self.asked += not key.endswith(" again")
        return estimate(self.cost_ratios[key.removesuffix(" again")])


def planner(curve: dict[str, float] | None = None, *, timed: bool = True, **recover: Any) -> Planner:
    cost_model: Any = Curve(curve or {})
    cost_model.goal, cost_model.timed, cost_model.layer_costs = Goal(macs=1), timed, dict
    return Planner(
        tiny(), task(), Context(), CheckpointStore(None, ""), cost_model, RecoveryDistillation(**recover), reference=0.9
    )


def test_without_training_the_largest_narrow_shape_competes_with_channels_by_reconstruction() -> None:
    few, more = ({"body.0.conv1": width} for width in (2, 5))
    shapes = [
        ShapeCandidate("even width", (ChannelPruning(widths=few),), estimate(0.8, 10)),
        ShapeCandidate("width, multiples of 1", (ChannelPruning(widths=more),), estimate(0.9, 20)),
        ShapeCandidate("depth", (BlockRemoval(names=("body.0",)),), estimate(0.9, 90)),
    ]
    untrained = planner(steps=0)
    [found] = untrained._reselected(shapes)
    assert found.steps == (Osscar(widths=more),) and found.estimate == shapes[1].estimate
    assert found.name not in {one.name for one in shapes} and len(_distinct([*shapes, found])) == 4
    assert [p.shape for p in apply_steps(tiny(), shape_only(found.steps), task(), Context()).parameters()] == [
        p.shape for p in apply_steps(tiny(), shapes[1].steps, task(), Context()).parameters()
    ]
    assert planner()._reselected(shapes) == [] and untrained._reselected(shapes[2:]) == []
    untrained.kinds.add("depth")
    assert untrained._reselected(shapes) == []


@pytest.mark.parametrize(("seconds", "found"), [(0.0, ["first"]), (math.inf, ["first", "second", "layers", "whole"])])
def test_shapes_are_looked_at_for_as_long_as_there_is_time_and_at_least_one_is_found(
    seconds: float, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def largest(_: Planner, axis: SearchAxis, *__: Any) -> ShapeCandidate | None:
        asked.append(axis.name)
        return None if axis.name == "none" else ShapeCandidate(axis.name, (BlockRemoval(names=("a",)),), estimate(0.9))

    def axes(*names: str) -> Any:
        return lambda *_: (SearchAxis(name, (), lambda _: ()) for name in names)

    monkeypatch.setattr(Planner, "_block_order", lambda _: [])
    monkeypatch.setattr(Planner, "_width_axes", axes("none", "first", "second"))
    monkeypatch.setattr(Planner, "_layer_axes", axes("layers"))
    whole = SearchAxis("whole", (), lambda _: ())
    monkeypatch.setattr(Planner, "_rewritten", lambda self, *_: (largest(self, axis) for axis in [whole]))
    monkeypatch.setattr(Planner, "largest", largest)
    limited = replace(planner(), seconds=seconds)
    assert [one.name for one in limited._candidates(estimate(2.0), 1.0)] == found
    assert asked == ["none", *found]
    # A job that goes on decides as it did, however fast it comes here now.
    again = replace(limited, seconds=min(seconds, 1e9))
    monkeypatch.setattr("gossamer.search.plan.clock", lambda: 0.0)
    assert [one.name for one in again._candidates(estimate(2.0), 1.0)] == found


def axis_of(count: int) -> SearchAxis:
    def steps(ratio: float) -> Steps:
        return (BlockRemoval(names=(f"block {round(ratio * count)}",)),)

    return SearchAxis("made up", tuple(k / count for k in range(1, count + 1)), steps)


@given(
    falls=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=31),
    start=st.floats(1.1, 12.0),
    limit=st.floats(0.5, 1.5),
)
@pytest.mark.slow
def test_the_shape_found_meets_the_limit_and_is_nearly_the_lightest(
    falls: list[float], start: float, limit: float
) -> None:
    axis = axis_of(len(falls))
    cost_ratio, curve = start, {}
    for ratio, fall in zip(axis.grid, falls, strict=True):
        cost_ratio *= 1 - 0.3 * fall
        curve[repr(axis.steps(ratio))] = cost_ratio
    plan = planner(curve)
    found = plan.largest(axis, estimate(start), limit)
    assert plan.cost_model.asked <= MAX_ESTIMATES  # type: ignore[attr-defined]
    met = [name for name, value in curve.items() if value <= limit]
    if found is None:
        assert start <= limit or len(met) <= len(falls) / 4  # missed only where a last few heavy cuts would do
        return
    assert repr(found.steps) in met
    if len(falls) <= 4:
        assert repr(found.steps) == met[0]


def test_a_need_that_falls_at_once_does_not_make_the_search_creep() -> None:
    """As where a first step swaps layers: interpolation alone would come from the heavy end, cut by cut."""
    axis = axis_of(15)
    curve = {repr(axis.steps(s)): 1.1 * 0.93**k for k, s in enumerate(axis.grid)}
    found = planner(curve).largest(axis, estimate(12.0), 1.0)
    assert found is not None and repr(found.steps) == next(
        name for name, cost_ratio in curve.items() if cost_ratio <= 1
    )


def test_one_spoiled_measurement_does_not_choose_the_shape() -> None:
    axis = axis_of(8)
    true = {repr(axis.steps(s)): 2.0 * 0.8 ** (k + 1) for k, s in enumerate(axis.grid)}
    lightest = next(name for name, cost_ratio in true.items() if cost_ratio <= 1)

    def spoiled(key: str, build: Any) -> CostEstimate:
        return estimate(true[key.removesuffix(" again")] * (1.5 if key == lightest else 1.0))

    cost_model: Any = spoiled
    plan = replace(planner(), cost_model=cost_model)
    found = plan.largest(axis, estimate(2.0), 1.0)
    assert found is not None and repr(found.steps) == lightest


def test_needs_are_cost_over_what_is_allowed() -> None:
    goal = Goal(speedup=4, latency_ms=2, macs=100, file_bytes=50)
    found = cost_ratios(goal.gains, latency_ms=3.0, speedup=10 / 3, macs=120, params=7, file_bytes=25)
    assert found == pytest.approx({"speedup": 1.2, "latency_ms": 1.5, "macs": 1.2, "file_bytes": 0.5})


def test_first_samples_cross_batches_and_repeat_where_there_are_too_few() -> None:
    loader = [(torch.arange(3.0), None), (torch.arange(3.0, 5.0), None)]
    assert first_samples(loader, 4)[0].tolist() == [0, 1, 2, 3]
    assert first_samples(loader, 7)[0].tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_of_one_kind_the_larger_network_competes() -> None:
    candidates = [
        ShapeCandidate(n, (), estimate(1, macs=m)) for n, m in (("width, 8", 5), ("depth", 1), ("width, 16", 7))
    ]
    assert [c.name for c in _distinct(candidates)] == ["width, 16", "depth"]


def candidates_of(names: str) -> list[ShapeCandidate]:
    return [ShapeCandidate(name, (BlockRemoval(names=(name,)),), estimate(1)) for name in names]


def test_the_two_that_lead_the_first_round_have_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leads at first does not go on when it learns less; what is last at first is not trained again; and the
    longer training goes on from the shorter one."""
    first, later = {"a": 0.80, "b": 0.75, "c": 0.60}, {"a": 0.85, "b": 0.88}
    trained = list[tuple[str, int]]()

    def train(self: Tournament, candidate: ShapeCandidate) -> float:
        number = len(candidate.steps) - 1
        trained.append((candidate.name, number))
        return (first if number == 1 else later)[candidate.name]

    monkeypatch.setattr(Tournament, "_trained_value", train)
    plan = planner()
    winner = plan.tournament.winner(candidates_of("cab"))
    assert winner is not None and winner.name == "b"
    assert winner.steps[1:] == (plan.tournament.training(1), plan.tournament.training(2))
    assert sorted(trained) == [*product("ab", (1, 2)), ("c", 1)]
    assert [row.name for row in plan.context.log.trials[3:]] == ["tournament, round 2: a", "tournament, round 2: b"]


@pytest.mark.parametrize(
    ("steps", "width", "winner"),
    [
        (LONG_RECOVERY, 88.4, "depth"),
        (LONG_RECOVERY, 88.6, "width"),
        (LONG_RECOVERY - 1, 87.8, "depth"),
        (LONG_RECOVERY - 1, 88.0, "width"),
    ],
)
def test_what_saves_more_than_is_asked_for_may_be_further_behind(
    steps: int, width: float, winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points behind times the square of the cost ratio: three points at 0.7 are worth about 1.5 at 1. In a short
    recovery, in
    which more of a lead stays, about 2.1."""
    monkeypatch.setattr(Tournament, "_value", lambda self, one, number: {"depth": 0.87, "width": width / 100}[one.name])
    candidates = [ShapeCandidate("depth", (), estimate(0.7)), ShapeCandidate("width", (), estimate(1))]
    best = replace(planner(), recovery_steps=steps).tournament.winner(candidates)
    assert best is not None and best.name == winner


@pytest.mark.parametrize(("behind", "winner"), [(0.002, "large"), (0.02, "small")])
def test_what_a_short_training_cannot_tell_apart_capacity_decides(
    behind: float, winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"small": 0.85, "large": 0.85 - behind}  # 5 points lost, and 4 or 40 % of that more
    monkeypatch.setattr(Tournament, "_value", lambda self, one, number: values[one.name])
    shapes = [ShapeCandidate(name, (), estimate(1.0, macs)) for name, macs in (("small", 1), ("large", 2))]
    found = planner().tournament.winner(shapes)
    assert found is not None and found.name == winner


def test_a_round_trains_its_share_of_the_recovery() -> None:
    """And never less than is needed to tell anything."""
    size = len(task().train)
    epochs = 200 * MIN_STEPS // size
    assert planner(epochs=epochs).tournament.training(2).steps == round(SHARES[1] * min(epochs * size, MAX_STEPS))
    assert planner(epochs=1).tournament.training(1).steps == MIN_STEPS
    assert replace(planner(), recovery_steps=2000).tournament.training(1).steps == 100
    assert planner().tournament.training(1).lr == pytest.approx(SHORT_LR * 0.1)
    assert planner(lr=0.3).tournament.training(1).lr == pytest.approx(SHORT_LR * 0.3)


@pytest.mark.parametrize(("steps", "passes"), [(5, 1), (8, 1), (9, 2), (30, 4)])
def test_a_recovery_of_so_many_steps_has_passes_of_equal_length(steps: int, passes: int) -> None:
    given = replace(task(), train=list(range(8)))
    recovery = RecoveryDistillation(steps=steps)
    taken = recovery.passes(given) * len(recovery.data(given).train)
    assert recovery.passes(given) == passes and steps <= taken < steps + passes
    with pytest.raises(BadInput, match="either steps or epochs"):
        RecoveryDistillation(steps=steps, epochs=1)


@pytest.mark.parametrize(("timed", "multiples"), [(True, {8, 16}), (False, {1})])
def test_widths_are_multiples_of_what_kernels_like_where_time_is_asked_for(timed: bool, multiples: set[int]) -> None:
    axes = list(planner(timed=timed)._width_axes([]))
    named = {axis.name for axis in axes}
    assert named == {f"width, multiples of {n}" for n in multiples} | {"even width"}
    widths = {w for f in axes for s in f.grid for step in f.steps(s) for w in step.options()["widths"].values()}
    assert all(w % 8 == 0 for w in widths) == timed


@pytest.mark.slow
def test_what_diverges_is_out_of_the_tournament(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*rest: Any, **options: Any) -> Any:
        raise Diverged("the loss rose to 32, from 0.6 at the start")

    monkeypatch.setattr("gossamer.methods._training.fit", fit)
    plan = planner()
    assert plan.tournament.round([ShapeCandidate("x", (), estimate(1))], 1) == []
    assert "the loss rose to 32" in plan.trials.rows()[0].note


def test_limited_gives_the_first_batches_again_and_again() -> None:
    loader = Limited(["a", "b", "c"], 2)  # type: ignore[arg-type]
    assert len(loader) == 2
    assert list(loader) == list(loader) == ["a", "b"]


def test_networks_are_evaluated_on_the_first_batches_of_a_loader_that_knows_its_samples() -> None:
    whole = gossamer.load_task("digits", batch_size=32)
    model = gossamer.models.build_for("lenet5", whole)
    few, all_of_it = (replace(whole, validation=Limited(whole.validation, n)) for n in (2, 10**6))
    assert len(evaluate(model, few)) == 64
    assert len(evaluate(model, all_of_it)) == len(evaluate(model, whole))


def test_a_block_that_does_nothing_is_the_least_missed() -> None:
    model = learned()
    torch.nn.init.zeros_(model.body[2].bn2.weight)
    torch.nn.init.zeros_(model.body[2].bn2.bias)
    order = block_order(model, stripes())
    assert order[0] == "body.2"
    assert sorted(order) == ["body.0", "body.1", "body.2"]
    assert depth_axis(order).steps(1 / 3) == (BlockRemoval(names=("body.2",)),)


def test_width_families_grow_heavier_along_their_grid() -> None:
    costs = {"stem": 1.0, "body.0.conv1": 5.0, "body.1.conv1": 5.0, "body.2.conv1": 5.0}
    axis = width_axis(tiny(), task(), name="width", costs=costs, round_to=1, reconstruct=False, seed=0)
    kept = [sum(axis.steps(s)[0].options()["widths"].values()) for s in axis.grid]
    assert len(kept) > 5
    assert all(len(axis.steps(s)) == 1 for s in axis.grid)


def swap(layer: str, saved: float, ratio: float = 0.5) -> Replacement:
    step = SVD(ranks={layer: round(1000 * saved)}, layers=(layer,))
    return Replacement(layer=layer, step=step, ratio=ratio, saved=saved, macs=1)


def test_the_swaps_missed_least_for_what_they_save_come_first() -> None:
    a, b, c = swap("a", 0.1), swap("a", 0.2), swap("a", 0.3)
    d = swap("d", 0.2)
    moves = cheapest_first({"a": [a, b, c], "d": [d]}, {"a": [0.1, 0.05, 0.5], "d": [0.1]})
    assert moves == [b, d, c]  # a is above the line from nothing to b
    axis = layer_axis(moves)
    assert axis.grid == (1 / 3, 2 / 3, 1.0)
    assert axis.steps(1 / 3) == (b.step,)
    assert axis.steps(1.0) == (SVD(ranks={"d": 200, "a": 300}, layers=("d", "a")),) or axis.steps(1.0) == (
        SVD(ranks={"a": 300, "d": 200}, layers=("a", "d")),
    )


def test_a_swap_that_ruins_the_network_raises_the_loss_most() -> None:
    model, task = learned(), stripes()
    swaps = {
        "body.0.conv1": [
            Replacement(
                layer="body.0.conv1", step=DepthwiseSeparable(layers=("body.0.conv1",)), ratio=1, saved=0, macs=1
            )
        ],
        "head": [Replacement(layer="head", step=SVD(ranks={"head": 1}, layers=("head",)), ratio=1, saved=0, macs=1)],
    }
    rises = swap_losses(model, task, swaps, Context())
    assert rises["head"][0] > rises["body.0.conv1"][0] >= 0  # three classes are more than one direction


def replacement_search(goal: Goal, tmp_path: Path, store: CheckpointStore | None = None) -> ReplacementSearch:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(64 * 36, 3)).eval()
    store = store or CheckpointStore(None, "")
    return ReplacementSearch(
        model, stripes(), Context(), store, CostModel(model, stripes(), goal, store, tmp_path, int8=False)
    )


@pytest.mark.slow
def test_cheaper_layers_are_planned_only_where_they_can_reach_the_goal(tmp_path: Path) -> None:
    store = CheckpointStore(None, "")
    few = replacement_search(Goal(macs=1), tmp_path, store)
    assert few.axis(worst=5.0, limit=1.0) is None
    assert list(store.results) == []  # and nothing was measured to find that out
    [edit] = [edit for edit in few.left(()) if "2" in edit.target]
    assert "even four times cheaper" in edit.note and edit.after == "left alone"
    axis = few.axis(worst=2.0, limit=1.0)
    assert axis is not None and len(axis.grid) >= 2
    heaviest = apply_steps(few.original, shape_only(axis.steps(1.0)), stripes(), Context())
    assert total_macs(heaviest, stripes().example_inputs) < total_macs(few.original, stripes().example_inputs) / 2
    notes = {edit.target: edit.note for edit in few.left(axis.steps(1.0))}
    assert "narrow" in notes["0, 5"] and "2" not in notes
    assert "another shape did better" in {edit.target: edit.note for edit in few.left(())}["2"]


@pytest.mark.slow
def test_layers_that_cannot_be_measured_are_left_with_the_reason(tmp_path: Path) -> None:
    some = replacement_search(Goal(macs=1), tmp_path)

    def refuses(*_: Any) -> Any:
        raise BadInput("no export")

    object.__setattr__(some, "_compare", refuses)
    assert some.axis(worst=1.1, limit=1.0) is None and some.some(worst=1.1, limit=1.0) is None
    assert "could not be measured" in {edit.target: edit.note for edit in some.left(())}["2"]


def test_cheaper_layers_leave_room_for_width(tmp_path: Path) -> None:
    some = replacement_search(Goal(macs=1), tmp_path).some(worst=20.0, limit=1.0)
    assert some and some[0].options()["layers"] == ("2",)


@pytest.mark.slow
def test_what_was_measured_of_layers_is_remembered(tmp_path: Path) -> None:
    first = replacement_search(Goal(speedup=2, batch=4, threads=1), tmp_path, CheckpointStore(tmp_path, "x"))
    first.cost_model.layer_costs = lambda: {"0": 1.0, "2": 99.0}  # type: ignore[method-assign]
    axis = first.axis(worst=1.1, limit=1.0)

    def never(*_: Any) -> Any:
        raise AssertionError("measured again")

    again = replacement_search(Goal(speedup=2, batch=4, threads=1), tmp_path, CheckpointStore(tmp_path, "x"))
    again.cost_model.layer_costs = first.cost_model.layer_costs  # type: ignore[method-assign]
    object.__setattr__(again, "_compare", never)
    second = again.axis(worst=1.1, limit=1.0)
    assert (axis is None) == (second is None)
    if axis is not None and second is not None:
        assert [axis.steps(s) for s in axis.grid] == [second.steps(s) for s in second.grid]


def with_head() -> nn.Module:
    """23,523 parameters; with a pooled first layer of the head 7,139; with a pooled head 4,931."""
    torch.manual_seed(0)
    maps = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1))
    return nn.Sequential(*maps, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 3)).eval()


def rewriter(model: nn.Module, folder: Path, **goal: Any) -> tuple[Planner, CostEstimate]:
    """A planner and the estimate of the whole network."""
    cost_model = CostModel(model, stripes(), Goal(**goal), CheckpointStore(None, ""), folder, int8=False)
    return replace(planner(), original=model, task=stripes(), cost_model=cost_model), cost_model(
        "original", lambda: model
    )


@pytest.mark.parametrize(
    ("goal", "name", "step"),
    [
        ({"params": 8_000}, "pooled head", GlobalAveragePooling(whole=False)),
        ({"params": 5_000}, "pooled head", GlobalAveragePooling()),
        ({"params": 2_000}, "pooled head and width", GlobalAveragePooling()),
        ({"macs": 62_000}, "strides for pools", PoolingToStride()),
    ],
)
@pytest.mark.slow
def test_a_rewrite_of_the_network_is_taken_as_far_as_the_goal_needs(
    goal: dict[str, int], name: str, step: Any, tmp_path: Path
) -> None:
    """The gentlest that is enough; and half of the way so, the rest in width, where none is."""
    plan, whole = rewriter(with_head(), tmp_path, **goal)
    found = {candidate.name: candidate for candidate in plan._rewritten(whole, 1.0)}
    assert found[name].steps[0] == step and len(found[name].steps) == 1 + name.endswith("width")
    assert all(candidate.estimate.worst_ratio <= 1 for candidate in found.values())
    assert total(apply_steps(with_head(), found[name].steps, stripes(), Context()), goal) <= next(iter(goal.values()))


def total(model: nn.Module, goal: dict[str, int]) -> int:
    return (
        sum(p.numel() for p in model.parameters()) if "params" in goal else total_macs(model, stripes().example_inputs)
    )


def test_images_are_as_large_as_the_goal_allows(tmp_path: Path) -> None:
    plan, whole = rewriter(tiny(), tmp_path, macs=60_000)
    [found] = plan._rewritten(whole, 1.0)
    assert found.name == "smaller images" and found.steps == (
        ResolutionMultiplier(share=0.75),
    )  # 56,472; 88,224 at 7/8


def test_what_does_not_bring_half_of_the_way_is_left_with_the_reason(tmp_path: Path) -> None:
    plan, whole = rewriter(with_head(), tmp_path, params=8_000)
    winner = ShapeCandidate("depth", (), estimate(1))
    assert [candidate.name for candidate in plan._rewritten(whole, 1.0)] == ["pooled head"]
    assert "1.00 times cheaper, where the goal needs 2.94" in plan.dropped["strides for pools"]
    rows = {edit.target: edit for edit in plan.left(winner.steps)}
    assert "7,139 parameters, but another shape did better" in rows["pooled head"].note
    assert rows["strides for pools"].after == "left alone" and rows["strides for pools"].method == "plan"


def test_a_network_that_takes_no_rewrite_is_not_measured_for_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    plan, whole = rewriter(model, tmp_path, params=10)
    asked = len(plan.cost_model.store.results)
    assert list(plan._rewritten(whole, 1.0)) == [] and plan.dropped == {}
    assert len(plan.cost_model.store.results) == asked


@pytest.mark.slow
def test_a_rewrite_that_leads_the_tournament_is_planned_and_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tournament, "_value", lambda self, one, number: 89.0 if one.name == "pooled head" else 50.0)
    plan, whole = rewriter(with_head(), tmp_path, params=8_000)
    assert plan.plan(whole) == (
        GlobalAveragePooling(whole=False),
        *(plan.tournament.training(number) for number in (1, 2)),
    )
    targets = {edit.target for edit in plan.left((GlobalAveragePooling(whole=False),))}
    assert "strides for pools" in targets and "pooled head" not in targets


@pytest.mark.slow
def test_prices_are_measured_once_and_remembered(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "x")
    cost_model = CostModel(tiny(), task(), Goal(speedup=2, batch=8, threads=1), store, tmp_path, int8=True)
    first = cost_model("a", tiny)
    assert first.precision == "int8"
    assert first.latency_ms and first.speedup
    assert first.cost_ratios["speedup"] == pytest.approx(2 / first.speedup)

    def never() -> torch.nn.Module:
        raise AssertionError("measured again")

    again = CostModel(tiny(), task(), Goal(speedup=2), CheckpointStore(tmp_path, "x"), tmp_path, int8=True)
    assert again("a", never) == first
    assert set(cost_model.layer_costs()) >= {"stem", "body.0.conv1", "head"}


def test_the_fingerprint_sees_weights_names_and_parts() -> None:
    model = tiny()
    same, other = job_fingerprint(model, "a"), job_fingerprint(model, "b")
    assert job_fingerprint(tiny(), "a") == same != other
    with torch.no_grad():
        model.stem.bias[0] += 1
    assert job_fingerprint(model, "a") != same


@pytest.mark.slow
def test_sensitivity_cuts_whole_groups() -> None:
    rows = sensitivity(learned(), stripes(), Context(), sparsities=(0.5,))
    assert {row.group: (row.size, row.kept) for row in rows} == {
        "stem": (8, 4),
        "body.0.conv1": (8, 4),
        "body.1.conv1": (8, 4),
        "body.2.conv1": (8, 4),
    }
    shared = next(row.drop for row in rows if row.group == "stem")
    assert shared >= max(row.drop for row in rows if row.group != "stem")  # it runs through every block
