"""Choose the steps for a goal: shapes that meet it by measurement, then a tournament that training decides."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic as clock
from typing import Any

from torch import nn

from gossamer.core.context import Context
from gossamer.core.record import Edit
from gossamer.core.task import Task
from gossamer.methods import catalogue
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.modules.blocks import find_blocks
from gossamer.search.axes import (
    SearchAxis,
    Steps,
    apply_steps,
    block_order,
    depth_axis,
    shape_only,
    width_axis,
)
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import SAFETY_MARGIN, CostEstimate, CostModel
from gossamer.search.failures import FailureGuard, left_unchanged
from gossamer.search.network_rewrites import rewrite_axes
from gossamer.search.output_invariant import OutputInvariant
from gossamer.search.replacement_search import ReplacementSearch
from gossamer.search.tournament import ShapeCandidate, Tournament

MAX_ESTIMATES = 7  # at most, on one search axis
SHALLOWER = (0.5, 0.75)  # of the blocks that depth alone would remove: the rest of the goal in width
SLACK = 0.85  # a cost ratio below this share of the limit makes the lighter neighbour worth a second measurement
CHOSEN = "channels by OSSCAR"  # the name of that kind
END = object()
REST = " and width"  # ends the name of what is narrowed as well


@dataclass(frozen=True)
class Planner:
    """Looks for steps. Each search axis gives the largest network that still meets the goal; these are trained for
    a short while, all alike, and the best one on validation goes on. So neither layers nor rates nor methods have to be
    chosen by hand."""

    original: nn.Module
    task: Task
    context: Context
    store: CheckpointStore
    cost_model: CostModel
    recover: RecoveryDistillation
    reference: float  # value of the original on validation data
    recovery_steps: int | None = None  # of the recovery that follows; None: its epochs say it
    margin: float = SAFETY_MARGIN  # of what the goal allows
    seconds: float = math.inf  # after which no further shapes are looked at, once there is one
    dropped: dict[str, str] = field(default_factory=dict)  # rewrites that the last plan did without, and why
    won: set[str] = field(default_factory=set)  # the kind of shape that won the last tournament
    kinds: set[str] = field(default_factory=set)  # that are looked at; none: all

    def plan(self, whole: CostEstimate, *, relaxation: float = 1.0, kinds: Iterable[str] = ()) -> Steps | None:
        """The steps to the shape and the short trainings that it has had in the tournament, or None where no shape
        meets the goal. whole: the estimate of the uncut network. relaxation: how far costs may exceed the goal's.
        kinds: of shapes that are looked at, without a tournament; none: all."""
        self.kinds.clear()
        self.kinds.update(kinds)
        candidates = self._candidates(whole, self.margin * relaxation)
        found = _distinct([c for c in candidates if not self.trials.failed(shape_key(c.steps))])
        for candidate in found:
            self.context.progress.say(f"{candidate.name}: {candidate.estimate.summary()}")
        # At equal measured cost more capacity is better.
        winner = (
            max(found, key=lambda one: one.estimate.macs, default=None) if self.kinds else self.tournament.winner(found)
        )
        if winner is None:
            return None
        self.won.clear()
        self.won.add(kind_of_shape(winner.name))
        self.dropped.pop(winner.name.removesuffix(REST), None)
        return winner.steps

    def macs(self, steps: Steps) -> int:
        """Multiply-adds of the shape that these steps lead to, which was estimated."""
        shape = shape_of(steps)
        return self.cost_model(repr(shape), partial(self._shape, shape, Context(seed=self.context.seed))).macs

    @property
    def trials(self) -> FailureGuard:
        """What fails is left out."""
        return FailureGuard(self.store, self.context.progress)

    @property
    def tournament(self) -> Tournament:
        """Decides between the shapes that meet the goal."""
        return Tournament(
            original=self.original,
            task=self.task,
            context=self.context,
            store=self.store,
            recover=self.recover,
            reference=self.reference,
            recovery_steps=self.recovery_steps,
            runtime=self.cost_model.goal.runtime,
        )

    def _candidates(self, whole: CostEstimate, limit: float) -> list[ShapeCandidate]:
        """Of each axis the lightest cut that is within the limit."""
        order = self._block_order() if self._wanted("depth") else []
        depth = depth_axis(order)
        deep = self.largest(depth, whole, limit) if order else None
        deepest = len(_removed(deep) if deep else order)
        some = sorted({round(share * deepest) for share in SHALLOWER} - {0})
        shapes = [deep] if deep else []
        begun = clock()
        ways: list[tuple[str, Iterator[ShapeCandidate | None]]] = [
            ("width", self._largest_of(self._width_axes([depth.steps(n / len(order)) for n in some]), whole, limit)),
            ("cheaper layers", self._largest_of(self._layer_axes(whole, limit), whole, limit)),
            ("rewrites of the whole network", self._rewritten(whole, limit)),
        ]
        for name, candidates in ways:
            for number in itertools.count():
                if shapes and self._late(f"{name} {number}, limit {limit}", begun):
                    self.context.progress.say(f"{name}: no time for more shapes")
                    break
                candidate = next(candidates, END)
                if candidate is END:
                    break
                shapes += [candidate] if isinstance(candidate, ShapeCandidate) else []
        return [*shapes, *self._reselected(shapes)]

    def _largest_of(
        self, axes: Iterator[SearchAxis], whole: CostEstimate, limit: float
    ) -> Iterator[ShapeCandidate | None]:
        return (self.largest(axis, whole, limit) for axis in axes)

    def _late(self, moment: str, begun: float) -> bool:
        """Whether looking at shapes has taken its time; a job that goes on decides as it did."""
        if self.seconds == math.inf:
            return False
        late: bool = self.store.get_or_compute(f"late at {moment}", lambda: clock() - begun > self.seconds)
        return late

    def _reselected(self, shapes: Sequence[ShapeCandidate]) -> list[ShapeCandidate]:
        """The largest narrowed shape, with channels chosen by what the layers behind can do without: where nothing is
        trained, that counts. It costs what the shape costs, so nothing is measured again."""
        narrowed = [one for one in shapes if len(one.steps) == 1 and isinstance(one.steps[0], ChannelPruning)]
        if self.recover.trains or not narrowed or not self._wanted(CHOSEN):
            return []
        largest = max(narrowed, key=lambda one: one.estimate.macs)
        widths = largest.steps[0].options()["widths"]
        return [ShapeCandidate(CHOSEN, (catalogue()["prune.osscar"](widths=widths),), largest.estimate)]

    def _wanted(self, name: str) -> bool:
        return not self.kinds or kind_of_shape(name) in self.kinds

    def _block_order(self) -> list[str]:
        def ask() -> list[str]:
            trials, progress = self.trials, self.context.progress
            found = trials(
                "depth", "block order", block_order, self.original, self.task, trials=trials, progress=progress
            )
            return found or []

        order: list[str] = self.store.get_or_compute("block order", ask)
        return order

    def _width_axes(self, shallower: Sequence[Steps]) -> Iterator[SearchAxis]:
        """Channels by importance per cost, rounded to what kernels like; the same share of all layers; and some of the
        depth with the rest in width."""
        multiple = self._multiple
        for round_to in sorted({multiple, 2 * multiple if self.cost_model.timed else 1}):
            name = f"width, multiples of {round_to}"
            yield from self._narrower(name, costs=self.cost_model.layer_costs, round_to=round_to)
        yield from self._narrower("even width")
        for before in shallower:
            yield from self._narrower(f"depth {len(before[0].options()['names'])}{REST}", before)

    def _narrower(
        self, name: str, before: Steps = (), *, costs: Callable[[], dict[str, float]] | None = None, round_to: int = 0
    ) -> Iterator[SearchAxis]:
        """Cuts in width of the network that `before` leaves; nothing where that fails. In plain networks what is behind
        a cut is fitted again, and where nothing is trained: those with residual blocks learn as much without."""

        if not self._wanted(name):
            return

        def make() -> SearchAxis:
            return width_axis(
                self.original,
                self.task,
                name=name,
                before=before,
                costs=costs() if costs else None,
                round_to=round_to or self._multiple,
                reconstruct=self._plain,
                seed=self.context.seed,
            )

        axis = self.trials(name, f"axis {name} {before!r}", make)
        if axis is not None:
            yield axis

    @cached_property
    def _plain(self) -> bool:
        return not self.recover.trains or not find_blocks(self.original, self.task.example_inputs)

    def _layer_axes(self, whole: CostEstimate, limit: float) -> Iterator[SearchAxis]:
        """Cheaper modules for single layers; and some of these with the rest in width, where they alone are too few."""
        replacement_search, trials = self.replacement_search(), self.trials
        name = "cheaper layers"
        if not self._wanted(name):
            return
        layers = trials(name, f"axis {name}", replacement_search.axis, whole.worst_ratio, limit)
        if layers is not None:
            yield layers
            return
        some = trials(name, f"axis {name}{REST}", replacement_search.some, whole.worst_ratio, limit)
        if some is not None:
            yield from self._narrower(f"{name}{REST}", some)

    def _rewritten(self, whole: CostEstimate, limit: float) -> Iterator[ShapeCandidate]:
        """The whole network rewritten. Where that is not enough: half of the way so (in ratios), and the rest in width;
        what does not come as far is dropped, because nearly all of the way would be width, which competes by itself."""
        self.dropped.clear()
        for axis in rewrite_axes(self.original, self.task, self.store, self.trials):
            kind, part = axis.name, None
            if not self._wanted(kind):
                continue
            found = self.largest(axis, whole, limit)
            if found is None:
                part = self.largest(axis, whole, math.sqrt(whole.worst_ratio * limit))
            if part is not None:
                axes = self._narrower(f"{kind}{REST}", part.steps)
                found = next((c for f in axes if (c := self.largest(f, whole, limit))), None)
            if found is not None:
                self.dropped[kind] = f"{found.estimate.summary()}, but another shape did better"
                yield found
                continue
            heaviest = self._measured(axis, axis.grid[-1])
            if heaviest is None:
                continue
            times = whole.worst_ratio / heaviest.estimate.worst_ratio
            why = f"measured, {times:.2f} times cheaper, where the goal needs {whole.worst_ratio / limit:.2f}"
            self.dropped[kind] = f"{why}; no width brings the rest" if part is not None else why

    def left(self, steps: Sequence[Any]) -> list[Edit]:
        """What the plan leaves as it is, and why, for the history: layers, and rewrites of the whole network."""
        layers = self.trials("cheaper layers", "layers that are left", self.replacement_search().left, steps) or []
        return [*layers, *(left_unchanged(kind, why) for kind, why in self.dropped.items()), *self.trials.rows()]

    @property
    def _multiple(self) -> int:
        """Of what widths are multiples: of what kernels like where time is asked for."""
        return 8 if self.cost_model.timed else 1

    def replacement_search(self) -> ReplacementSearch:
        """Cheaper modules for single layers, as far as they are measured."""
        return ReplacementSearch(self.original, self.task, self.context, self.store, self.cost_model)

    def largest(self, axis: SearchAxis, whole: CostEstimate, limit: float) -> ShapeCandidate | None:
        """The lightest cut of an axis whose worst cost ratio is within the limit, by interpolation over its grid."""
        grid = list(axis.grid)
        low, high = -1, len(grid)
        cost_ratio = {low: whole.worst_ratio}
        found: ShapeCandidate | None = None
        sides = list[bool]()
        for _ in range(MAX_ESTIMATES):
            if high - low <= 1:
                break
            index = _guess(low, high, cost_ratio, limit, end=len(grid))
            if len(sides) > 1 and sides[-1] == sides[-2]:  # the line bends: from one side it would creep
                index = (low + high) // 2
            candidate = self._measured(axis, grid[index])
            if candidate is None:  # it failed: the axis without this shape
                del grid[index]
                if high in cost_ratio:
                    cost_ratio[high - 1] = cost_ratio[high]
                high -= 1
                continue
            cost_ratio[index] = candidate.estimate.worst_ratio
            sides.append(cost_ratio[index] <= limit)
            if sides[-1]:
                high, found = index, candidate
            else:
                low = index
        # What else the machine did may have spoiled one measurement, and with it the choice.
        if found is not None and low >= 0 and found.estimate.worst_ratio < SLACK * limit:
            again = self._measured(axis, grid[low], again=True)
            found = again if again is not None and again.estimate.worst_ratio <= limit else found
        return found

    def _measured(self, axis: SearchAxis, ratio: float, *, again: bool = False) -> ShapeCandidate | None:
        """A shape of an axis with its estimate; `again` measures a second time what may be in the store. None where it
        cannot be made, deployed or measured."""
        steps = axis.steps(ratio)
        scratch = Context(seed=self.context.seed, original=self.original)
        key = repr(steps) + (" again" if again else "")

        def measure() -> CostEstimate:
            return self.cost_model(key, partial(self._shape, steps, scratch))

        with self.context.progress.busy(f"measuring {axis.name}"):
            estimate = self.trials(f"{axis.name}, ratio {ratio:.2f}", f"measuring {key}", measure)
        return None if estimate is None else ShapeCandidate(axis.name, steps, estimate)

    def _shape(self, steps: Steps, scratch: Context) -> nn.Module:
        """The network after the steps, fitted as little as they can. What gives other outputs than the original is no
        candidate."""
        model = apply_steps(self.original, shape_only(steps), self.task, scratch)
        self.invariant.check(model)
        return model

    @cached_property
    def invariant(self) -> OutputInvariant:
        """Structure, shapes and dtypes of what the original gives."""
        return OutputInvariant(self.original, self.task.example_inputs)


def _guess(low: int, high: int, cost_ratio: dict[int, float], limit: float, *, end: int) -> int:
    """Where the cost ratio should just be within the limit: on the line through the ends of the bracket, in ratios."""
    if high in cost_ratio:
        share = math.log(cost_ratio[low] / limit) / max(math.log(cost_ratio[low] / cost_ratio[high]), 1e-9)
        index = low + round(share * (high - low) + 0.3)  # rather a little too far: that is a find, not a miss
    elif low < 0:
        index = round(end * (1 - math.sqrt(limit / cost_ratio[low])))  # cost falls with the square of the width
    else:
        index = end - 1  # out of reach, perhaps: this one tells
    return min(max(index, low + 1), high - 1)


def shape_of(steps: Steps) -> Steps:
    """Steps without the trainings at their end."""
    return steps if not steps or not isinstance(steps[-1], RecoveryDistillation) else shape_of(steps[:-1])


def kind_of_shape(name: str) -> str:
    """What shapes of a kind have in common: "depth" of "depth 3 and width"."""
    return name.removesuffix(REST).rstrip("0123456789").rstrip()


def shape_key(steps: Steps) -> str:
    """Under which a shape stands that failed in its training or its deployment."""
    return f"shape {shape_of(steps)!r}"


def _removed(candidate: ShapeCandidate) -> Sequence[str]:
    return list(candidate.steps[0].options()["names"])


def _distinct(candidates: Sequence[ShapeCandidate]) -> list[ShapeCandidate]:
    """Per kind of cut the one with the most multiply-adds: at equal measured cost more capacity is better."""
    best: dict[str, ShapeCandidate] = {}
    for candidate in candidates:
        kind = candidate.name.split(",")[0]
        if kind not in best or candidate.estimate.macs > best[kind].estimate.macs:
            best[kind] = candidate
    return list(best.values())
