"""Choose the steps for a goal: shapes that meet it by measurement, then a race that training decides."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from gossamer.core.context import Context
from gossamer.core.progress import LabelledProgress
from gossamer.core.record import Edit, Trial
from gossamer.core.task import Task
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.modules.blocks import find_blocks
from gossamer.search.axes import (
    SearchAxis,
    Steps,
    apply_steps,
    block_order,
    depth_family,
    shape_only,
    width_family,
)
from gossamer.search.checkpoint_store import CheckpointStore, take_steps
from gossamer.search.cost_model import AIM, CostEstimate, CostModel
from gossamer.search.failures import FailureGuard, left_alone
from gossamer.search.network_rewrites import rewrite_families
from gossamer.search.output_invariant import OutputInvariant
from gossamer.search.replacement_search import ReplacementSearch

QUOTES = 7  # at most, for one family of shapes
SHALLOWER = (0.5, 0.75)  # of the blocks that depth alone would remove: the rest of the goal in width
SLACK = 0.85  # a need below this share of the limit makes the lighter neighbour worth a second measurement
HEATS = (0.05, 0.15)  # of the batches of the recovery that follows: for all candidates, and for the two best of them
GENTLE = 0.2  # times the learning rate of a recovery: large steps need its length to pay off
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
REST = " and width"  # ends the name of what is narrowed as well
LEVELLED = 1000  # steps of a recovery that levels leads of the race
LEAST_LOSS = 0.1  # points behind the original that are told apart
RACE_LEAST, RACE_MOST = 40, 8000  # batches; the most is of the recovery that a heat is a share of


@dataclass(frozen=True)
class ShapeCandidate:
    """A shape that meets the goal, by measurement."""

    name: str
    steps: Steps
    quote: CostEstimate


@dataclass(frozen=True)
class Planner:
    """Looks for steps. Each family of shapes gives the largest network that still meets the goal; these are trained for
    a short while, all alike, and the best one on validation goes on. So neither layers nor rates nor methods have to be
    chosen by hand."""

    original: nn.Module
    task: Task
    context: Context
    journal: CheckpointStore
    pricer: CostModel
    recover: RecoveryDistillation
    reference: float  # value of the original on validation data
    recovery_steps: int | None = None  # of the recovery that follows; None: its epochs say it
    aim: float = AIM  # of what the goal allows
    dropped: dict[str, str] = field(default_factory=dict)  # rewrites that the last plan did without, and why
    won: set[str] = field(default_factory=set)  # the kind of shape that won the last race
    kinds: set[str] = field(default_factory=set)  # that are looked at; none: all

    def plan(self, whole: CostEstimate, *, ease: float = 1.0, kinds: Iterable[str] = ()) -> Steps | None:
        """The steps to the shape and the short trainings that it has had in the race, or None where no shape meets the
        goal. whole: the quote of the uncut network. ease: how far the needs may exceed the goal's. kinds: of shapes
        that are looked at, without a race; none: all."""
        self.kinds.clear()
        self.kinds.update(kinds)
        candidates = self._candidates(whole, self.aim * ease)
        found = _distinct([c for c in candidates if not self.trials.failed(shape_key(c.steps))])
        for candidate in found:
            self.context.progress.say(f"{candidate.name}: {candidate.quote.summary()}")
        # At equal measured cost more capacity is better.
        winner = max(found, key=lambda one: one.quote.macs, default=None) if self.kinds else self._race(found)
        if winner is None:
            return None
        self.won.clear()
        self.won.add(kind_of_shape(winner.name))
        self.dropped.pop(winner.name.removesuffix(REST), None)
        return winner.steps

    def macs(self, steps: Steps) -> int:
        """Multiply-adds of the shape that these steps lead to, which was quoted."""
        shape = shape_of(steps)
        return self.pricer(repr(shape), partial(self._shape, shape, Context(seed=self.context.seed))).macs

    @property
    def trials(self) -> FailureGuard:
        """What fails is left out."""
        return FailureGuard(self.journal, self.context.progress)

    def _candidates(self, whole: CostEstimate, limit: float) -> list[ShapeCandidate]:
        """Of each family the lightest cut that is within the limit."""
        order = self._block_order() if self._wanted("depth") else []
        depth = depth_family(order)
        deep = self.largest(depth, whole, limit) if order else None
        deepest = len(_removed(deep) if deep else order)
        some = sorted({round(share * deepest) for share in SHALLOWER} - {0})
        families = [
            *self._width_families([depth.steps(count / len(order)) for count in some]),
            *self._layer_families(whole, limit),
        ]
        found = [deep, *(self.largest(family, whole, limit) for family in families), *self._rewritten(whole, limit)]
        return [candidate for candidate in found if candidate is not None]

    def _wanted(self, name: str) -> bool:
        return not self.kinds or kind_of_shape(name) in self.kinds

    def _block_order(self) -> list[str]:
        def ask() -> list[str]:
            trials = self.trials
            return trials("depth", "block order", block_order, self.original, self.task, trials=trials) or []

        order: list[str] = self.journal.remember("block order", ask)
        return order

    def _width_families(self, shallower: Sequence[Steps]) -> Iterator[SearchAxis]:
        """Channels by importance per cost, rounded to what kernels like; the same share of all layers; and some of the
        depth with the rest in width."""
        multiple = self._multiple
        for round_to in sorted({multiple, 2 * multiple if self.pricer.timed else 1}):
            name = f"width, multiples of {round_to}"
            yield from self._narrower(name, costs=self.pricer.layer_costs, round_to=round_to)
        yield from self._narrower("even width")
        for before in shallower:
            yield from self._narrower(f"depth {len(before[0].options()['names'])}{REST}", before)

    def _narrower(
        self, name: str, before: Steps = (), *, costs: Callable[[], dict[str, float]] | None = None, round_to: int = 0
    ) -> Iterator[SearchAxis]:
        """Cuts in width of the network that `before` leaves; nothing where that fails. In plain networks what is behind
        a cut is fitted again: those with residual blocks learn as much without."""

        if not self._wanted(name):
            return

        def make() -> SearchAxis:
            return width_family(
                self.original,
                self.task,
                name=name,
                before=before,
                costs=costs() if costs else None,
                round_to=round_to or self._multiple,
                reconstruct=self._plain,
                seed=self.context.seed,
            )

        family = self.trials(name, f"family {name} {before!r}", make)
        if family is not None:
            yield family

    @cached_property
    def _plain(self) -> bool:
        return not find_blocks(self.original, self.task.example_inputs)

    def _layer_families(self, whole: CostEstimate, limit: float) -> Iterator[SearchAxis]:
        """Cheaper modules for single layers; and some of these with the rest in width, where they alone are too few."""
        thrift, trials = self.thrift(), self.trials
        name = "cheaper layers"
        if not self._wanted(name):
            return
        layers = trials(name, f"family {name}", thrift.family, whole.worst, limit)
        if layers is not None:
            yield layers
            return
        some = trials(name, f"family {name}{REST}", thrift.some, whole.worst, limit)
        if some is not None:
            yield from self._narrower(f"{name}{REST}", some)

    def _rewritten(self, whole: CostEstimate, limit: float) -> Iterator[ShapeCandidate]:
        """The whole network rewritten. Where that is not enough: half of the way so (in ratios), and the rest in width;
        what does not come as far is dropped, because nearly all of the way would be width, which has its own race."""
        self.dropped.clear()
        for family in rewrite_families(self.original, self.task, self.journal, self.trials):
            kind, part = family.name, None
            if not self._wanted(kind):
                continue
            found = self.largest(family, whole, limit)
            if found is None:
                part = self.largest(family, whole, math.sqrt(whole.worst * limit))
            if part is not None:
                families = self._narrower(f"{kind}{REST}", part.steps)
                found = next((c for f in families if (c := self.largest(f, whole, limit))), None)
            if found is not None:
                self.dropped[kind] = f"{found.quote.summary()}, but another shape did better"
                yield found
                continue
            heaviest = self._measured(family, family.grid[-1])
            if heaviest is None:
                continue
            times = whole.worst / heaviest.quote.worst
            why = f"measured, {times:.2f} times cheaper, where the goal needs {whole.worst / limit:.2f}"
            self.dropped[kind] = f"{why}; no width brings the rest" if part is not None else why

    def left(self, steps: Sequence[Any]) -> list[Edit]:
        """What the plan leaves as it is, and why, for the history: layers, and rewrites of the whole network."""
        layers = self.trials("cheaper layers", "layers that are left", self.thrift().left, steps) or []
        return [*layers, *(left_alone(kind, why) for kind, why in self.dropped.items()), *self.trials.rows()]

    @property
    def _multiple(self) -> int:
        """Of what widths are multiples: of what kernels like where time is asked for."""
        return 8 if self.pricer.timed else 1

    def thrift(self) -> ReplacementSearch:
        """Cheaper modules for single layers, as far as they are measured."""
        return ReplacementSearch(self.original, self.task, self.context, self.journal, self.pricer)

    def largest(self, family: SearchAxis, whole: CostEstimate, limit: float) -> ShapeCandidate | None:
        """The lightest cut of a family whose worst need is within the limit, by interpolation over its grid."""
        grid = list(family.grid)
        low, high = -1, len(grid)
        need = {low: whole.worst}
        found: ShapeCandidate | None = None
        sides = list[bool]()
        for _ in range(QUOTES):
            if high - low <= 1:
                break
            index = _guess(low, high, need, limit, end=len(grid))
            if len(sides) > 1 and sides[-1] == sides[-2]:  # the line bends: from one side it would creep
                index = (low + high) // 2
            candidate = self._measured(family, grid[index])
            if candidate is None:  # it failed: the family without this shape
                del grid[index]
                if high in need:
                    need[high - 1] = need[high]
                high -= 1
                continue
            need[index] = candidate.quote.worst
            sides.append(need[index] <= limit)
            if sides[-1]:
                high, found = index, candidate
            else:
                low = index
        # What else the machine did may have spoiled one measurement, and with it the choice.
        if found is not None and low >= 0 and found.quote.worst < SLACK * limit:
            again = self._measured(family, grid[low], again=True)
            found = again if again is not None and again.quote.worst <= limit else found
        return found

    def _measured(self, family: SearchAxis, strength: float, *, again: bool = False) -> ShapeCandidate | None:
        """A shape of a family with its quote; `again` measures anew what may be in the journal. None where it cannot be
        made, deployed or measured."""
        steps = family.steps(strength)
        scratch = Context(seed=self.context.seed, original=self.original)
        key = repr(steps) + (" again" if again else "")

        def measure() -> CostEstimate:
            return self.pricer(key, partial(self._shape, steps, scratch))

        with self.context.progress.busy(f"measuring {family.name}"):
            quote = self.trials(f"{family.name}, strength {strength:.2f}", f"measuring {key}", measure)
        return None if quote is None else ShapeCandidate(family.name, steps, quote)

    def _shape(self, steps: Steps, scratch: Context) -> nn.Module:
        """The network after the steps, roughly fitted. What gives other outputs than the original is no candidate."""
        model = apply_steps(self.original, shape_only(steps), self.task, scratch)
        self.invariant.check(model)
        return model

    @cached_property
    def invariant(self) -> OutputInvariant:
        """Structure, shapes and dtypes of what the original gives."""
        return OutputInvariant(self.original, self.task.example_inputs)

    def _race(self, candidates: Sequence[ShapeCandidate]) -> ShapeCandidate | None:
        """The best after a short training of all, and a longer one of the two that lead: what keeps the original's
        outputs best at first is not always what learns best. What was trained is trained on, in the next heat and in
        the recovery of the winner. None where nothing is left to go on with."""
        for heat in range(1, len(HEATS) + 1):
            if len(candidates) > 1:
                candidates = self._heat(candidates, heat=heat)[:2]
        return candidates[0] if candidates else None

    def _heat(self, candidates: Sequence[ShapeCandidate], *, heat: int) -> list[ShapeCandidate]:
        """The candidates that can be trained, the best first, after a share of the recovery's batches."""
        note = f"after {100 * HEATS[heat - 1]:.0f} % of the training"
        merits: list[tuple[float, ShapeCandidate]] = []
        metric = self.task.metric
        for before in candidates:
            one = replace(before, steps=(*before.steps, self._short(heat)))
            score, name = self._score(one, heat=heat), f"race, heat {heat}: {one.name}"
            if score is None:
                continue
            self.context.progress.say(f"{name}: {metric.name} {metric.text(score)} on validation")
            mark = state(name, one.quote, metric.shown(score), self.pricer, note=note)
            self.context.log.trials.append(replace(mark, brief=True))
            merits.append((self._merit(score, one.quote), one))
        return [one for _, one in sorted(merits, key=lambda pair: -pair[0])]

    def _merit(self, score: float, quote: CostEstimate) -> float:
        """What orders a race: less is lost the smaller the points behind the original times the square of the need.
        What a shape saves beyond the goal counts, because most of a lead after a short training is gone after the whole
        one: ResNet-14 at a goal of 3x, three blocks less (4.4x) against two and some width (3.2x), points behind after
        10, 20, 35 and 100 % of four epochs: 3.8, 1.8, 1.1, 0.3 against 2.2, 1.2, 0.7, 0.5. In a short recovery more of
        a lead stays, so that there the need itself counts."""
        whole = self.recovery_steps or self.recover.passes(self.task) * len(self.task.train)
        power = 2 if whole >= LEVELLED else 1
        return -max(self.task.metric.lost(self.reference, score), LEAST_LOSS) * quote.worst**power

    def _score(self, candidate: ShapeCandidate, *, heat: int) -> float | None:
        """Accuracy after the training of a heat, which is done once; None where it fails."""
        key = f"race, heat {heat}: {candidate.steps}"
        train = partial(self._trained_score, candidate)
        return self.trials(candidate.name, key, lambda: float(self.journal.remember(key, train)))

    def _trained_score(self, candidate: ShapeCandidate) -> float:
        """The metric's value after all steps of the candidate: what it learns is asked, not what the cut left."""
        progress = LabelledProgress(self.context.progress, f"race, {candidate.name}")
        scratch = self.context.apart(progress=progress)
        take_steps(self.original, candidate.steps, self.task, scratch, self.journal)
        return self.task.metric.from_shown([x for x in scratch.log.curves[-1].score if x is not None][-1])

    def _short(self, heat: int) -> RecoveryDistillation:
        """The training of a heat: a share of the recovery, with a whole schedule of its own."""
        size, recovery = len(self.task.train), self.recover
        whole = self.recovery_steps or recovery.passes(self.task) * size
        steps = max(round(HEATS[heat - 1] * min(whole, RACE_MOST)), RACE_LEAST)
        return replace(recovery, epochs=None, steps=steps, lr=GENTLE * self.usual_lr)

    @property
    def usual_lr(self) -> float:
        """Of a recovery, as far as it can be said without trials, which would take as long as a heat. Batch norms let a
        network take large steps; without them the loss explodes at the same rate."""
        return self.recover.lr or (0.1 if any(isinstance(m, BATCH_NORMS) for m in self.original.modules()) else 0.02)


def _guess(low: int, high: int, need: dict[int, float], limit: float, *, end: int) -> int:
    """Where the need should just be within the limit: on the line through the ends of the bracket, in ratios."""
    if high in need:
        share = math.log(need[low] / limit) / max(math.log(need[low] / need[high]), 1e-9)
        index = low + round(share * (high - low) + 0.3)  # rather a little too far: that is a find, not a miss
    elif low < 0:
        index = round(end * (1 - math.sqrt(limit / need[low])))  # cost falls with the square of the width
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
        if kind not in best or candidate.quote.macs > best[kind].quote.macs:
            best[kind] = candidate
    return list(best.values())


def state(
    name: str,
    quote: CostEstimate,
    score: float | None,
    pricer: CostModel,
    *,
    drop: float | None = None,
    accepted: bool = False,
    note: str = "",
) -> Trial:
    """A row of the Pareto plot."""
    times: dict[str, float] = {pricer.goal.runtime: quote.latency_ms} if quote.latency_ms is not None else {}
    return Trial(
        name=name,
        score=score,
        drop=drop,
        latency_ms=times,
        macs=quote.macs,
        params=quote.params,
        file_bytes=None,
        accepted=accepted,
        note=note,
    )
