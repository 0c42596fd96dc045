"""One candidate that fails is left out by its name; the search goes on without it, and a job that goes on, too."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer import Context, Goal
from gossamer.core.progress import Silent
from gossamer.errors import BadInput, Diverged, MissingExtra
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.methods.restructure.resolution import ResolutionMultiplier
from gossamer.modules.blocks import find_blocks, remove_blocks
from gossamer.search.axes import SearchAxis, block_order, cheapest_first, swap_losses
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostEstimate, CostModel
from gossamer.search.failures import FailureGuard, failure_reason
from gossamer.search.plan import Planner, shape_key
from gossamer.search.replacements import Replacement, compared
from gossamer.search.tournament import ShapeCandidate, Tournament

RECOVER = RecoveryDistillation(epochs=1, lr=0.01)


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no kernel for this")


def planner(folder: Path, store: CheckpointStore | None = None) -> tuple[Planner, CostEstimate]:
    """Of a goal that does not depend on how fast this machine is."""
    model, store = learned(), store or CheckpointStore(None, "")
    cost_model = CostModel(model, stripes(), Goal(max_drop=5, macs=90_000), store, folder, int8=False)
    context = Context(original=model)
    return Planner(model, stripes(), context, store, cost_model, RECOVER, reference=95.0), cost_model(
        "original", lambda: model
    )


@pytest.mark.slow
def test_what_fails_is_named_once_and_not_tried_again(tmp_path: Path) -> None:
    said, tried = list[str](), list[str]()

    class Said(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    def fails() -> None:
        tried.append("")
        raise ValueError("too large\nand more")

    trials = FailureGuard(CheckpointStore(tmp_path, "x"), Said())
    assert trials("width", "width 1", lambda: 7) == 7
    assert trials("width", "width 2", fails) is None
    again = FailureGuard(CheckpointStore(tmp_path, "x"), Said())  # after a kill
    assert again("width", "width 2", fails) is None and len(tried) == 1
    assert len(said) == 1 and said[0].startswith("left out: width: ValueError: too large")
    [row] = again.rows()
    assert (row.target, row.after) == ("width", "left alone") and "too large" in row.note


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), MissingExtra("onnxruntime is not installed"), KeyboardInterrupt()]
)
def test_what_has_nothing_to_do_with_a_candidate_ends_the_job(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        FailureGuard(CheckpointStore(None, ""), Silent())("width", "w", fails)


def test_a_reason_is_one_line() -> None:
    assert failure_reason(BadInput("this is wrong\nhere")) == "this is wrong"
    assert failure_reason(MemoryError()).startswith("MemoryError") and len(failure_reason(ValueError("x" * 999))) < 310


class Dropped(nn.Module):
    """A block that its network calls with more than its input, as EfficientNets are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: Tensor, rate: float, scale: Tensor | None = None) -> Tensor:
        return x + (1 - rate) * self.conv(x)


class Called(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.block, self.head, self.how = nn.Conv2d(1, 8, 3), Dropped(), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "by place":
            x = self.block(x, 0.1)
        elif self.how == "by name":
            x = self.block(x, rate=0.1, scale=x)
        else:
            x = self.block(rate=0.1, x=x) if self.how == "rate first" else self.block(x=x, rate=0.1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["by place", "by name", "all by name"])
def test_blocks_are_removed_whatever_else_they_are_called_with(how: str) -> None:
    torch.manual_seed(0)
    model, x = Called(how).eval(), torch.randn(2, 1, 6, 6)
    blocks = find_blocks(model, (x,))
    assert [block.name for block in blocks] == ["block"]
    small = remove_blocks(model, blocks)
    expected = model.head(model.stem(x).mean((2, 3)))
    assert torch.equal(small(x), expected)


def test_blocks_called_with_their_input_alone_become_plain_identities() -> None:
    model = tiny()
    small = remove_blocks(model, find_blocks(model, (torch.randn(2, 1, 6, 6),)))
    assert {type(block) for block in small.body} == {nn.Identity}


@pytest.mark.slow
def test_a_block_that_the_network_does_not_run_without_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(model: nn.Module, blocks: Any) -> nn.Module:
        return broken() if blocks[0].name == "body.1" else remove_blocks(model, blocks)  # type: ignore[no-any-return]

    monkeypatch.setattr("gossamer.search.axes.remove_blocks", remove)
    trials = FailureGuard(CheckpointStore(None, ""), Silent())
    assert sorted(block_order(learned(), stripes(), trials=trials)) == ["body.0", "body.2"]
    assert [row.target for row in trials.rows()] == ["removing body.1"]


@pytest.mark.slow
def test_a_swap_that_fails_is_none_of_the_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Replacement(layer="head", step=SVD(ranks={"head": 2}, layers=("head",)), ratio=0.5, saved=0.1, macs=1)
    bad = Replacement(layer="stem", step=ResolutionMultiplier(share=0.5), ratio=0.5, saved=0.2, macs=1)
    monkeypatch.setattr(ResolutionMultiplier, "__call__", broken)
    swaps = {"head": [good], "stem": [bad]}
    assert cheapest_first(swaps, swap_losses(learned(), stripes(), swaps, Context())) == [good]


@pytest.mark.slow
def test_a_method_that_fails_on_a_layer_alone_is_left_out_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SVD, "__call__", broken)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    trials = FailureGuard(CheckpointStore(None, ""), Silent())
    table = compared(model, ["0"], (torch.randn(4, 40),), lambda groups, _: [[1.0] * len(g) for g in groups], trials)
    assert "-1" in table["0"]
    assert {row.target for row in trials.rows()} == {"lowrank.svd of 0"}


@pytest.mark.slow
def test_a_shape_that_cannot_be_measured_is_left_out_of_its_axis(tmp_path: Path) -> None:
    """The others of its axis still compete."""
    plan, whole = planner(tmp_path)
    steps = [(BlockRemoval(names=tuple(f"body.{i}" for i in range(count))),) for count in (1, 2, 3)]
    axis = SearchAxis("depth", (1 / 3, 2 / 3, 1.0), lambda ratio: steps[round(3 * ratio) - 1])

    class Failing:
        def __init__(self, bad: Any) -> None:
            self.bad = bad

        def __call__(self, key: str, build: Any) -> CostEstimate:
            return broken() if key == repr(self.bad) else plan.cost_model(key, build)  # type: ignore[no-any-return]

    def found(bad: Any) -> Any:
        cost_model: Any = Failing(bad)
        return replace(plan, cost_model=cost_model, store=CheckpointStore(None, "")).largest(axis, whole, 1.0)

    assert found(None).steps == steps[0]
    assert found(steps[0]).steps == steps[1]


@pytest.mark.parametrize("place", ["make", "measure", "tournament"])
@pytest.mark.slow
def test_whatever_fails_on_one_axis_leaves_the_others(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole = planner(tmp_path)

    def train(self: Tournament, one: ShapeCandidate) -> float:
        if place != "tournament" or one.name == "depth":
            return 80.0
        raise Diverged("the loss rose") if "smaller" in one.name else torch.cuda.OutOfMemoryError("none left")

    monkeypatch.setattr(Tournament, "_trained_value", train)
    if place == "make":
        monkeypatch.setattr("gossamer.search.plan.width_axis", broken)
    elif place == "measure":
        monkeypatch.setattr(ChannelPruning, "__call__", broken)
    steps = plan.plan(whole)
    assert steps is not None and isinstance(
        steps[0], BlockRemoval if place == "tournament" else BlockRemoval | ResolutionMultiplier
    )
    targets = " ".join(row.target for row in plan.left(steps))
    assert "width" in targets


@pytest.mark.slow
def test_a_shape_that_failed_in_its_training_is_not_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tournament, "_trained_value", lambda self, one: 80.0)
    plan, whole = planner(tmp_path)
    seen = set[str]()
    while (steps := plan.plan(whole)) is not None:
        assert repr(steps) not in seen
        seen.add(repr(steps))
        plan.trials("a shape", shape_key(steps), broken)
    assert len(seen) > 1


@pytest.mark.slow
def test_where_everything_fails_nothing_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("block_order", "width_axis"):
        monkeypatch.setattr(f"gossamer.search.plan.{name}", broken)
    monkeypatch.setattr(ResolutionMultiplier, "__call__", broken)
    monkeypatch.setattr("gossamer.search.replacement_search.compared", broken)
    plan, whole = planner(tmp_path)
    assert plan.plan(whole) is None
    assert {"depth", "even width"} <= {row.target for row in plan.left(())}
