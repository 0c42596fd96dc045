"""Choose the steps for a goal: shapes that meet it by measurement, then a race that training decides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from gossamer.methods.distill.recover import Recover
from gossamer.record import State
from gossamer.run import Run
from gossamer.search.journal import Journal
from gossamer.search.price import AIM, Pricer, Quote
from gossamer.search.shapes import Family, Steps, apply_steps, block_order, depth_family, width_family
from gossamer.task import Loader, Task
from gossamer.train import Distillation, Training, fit, recalibrate

RACE_BATCHES = 200


@dataclass(frozen=True)
class Candidate:
    """A shape that meets the goal, by measurement."""

    name: str
    steps: Steps
    quote: Quote


def plan(
    original: nn.Module,
    task: Task,
    run: Run,
    journal: Journal,
    pricer: Pricer,
    *,
    recover: Recover,
    ease: float = 1.0,
) -> Steps | None:
    """The steps to take, or None where no shape meets the goal. ease: how far the needs may exceed the goal's.

    Each family of shapes gives the largest network that still meets the goal, found by bisection on its measured cost.
    These are trained for a few hundred batches, all alike, and the best one on validation goes on. So neither layers
    nor rates nor methods have to be chosen by hand.
    """
    tag = f"{ease:.3f}"
    order = journal.remember("block order", lambda: block_order(original, task))
    costs = pricer.layer_costs()
    candidates = [
        found
        for family in _families(original, task, costs, order, run.seed)
        if (found := largest(original, task, run, pricer, family, limit=AIM * ease)) is not None
    ]
    if order and (mixed := _half_depth(original, task, run, pricer, costs, candidates, order, limit=AIM * ease)):
        candidates.append(mixed)
    candidates = _distinct(candidates)
    if not candidates:
        return None
    for candidate in candidates:
        run.progress.say(f"shape {candidate.name}: {describe(candidate.quote)}")
    winner = candidates[0]
    if len(candidates) > 1:
        scores: dict[str, float] = {}
        for candidate in candidates:
            compute = partial(_race, original, task, run, candidate, recover)
            scores[candidate.name] = journal.remember(f"race {tag} {candidate.name}", compute)
        for candidate in candidates:
            run.progress.say(f"race {candidate.name}: validation {scores[candidate.name]:.2f} %")
            run.states.append(state(f"race {candidate.name}", candidate.quote, scores[candidate.name], pricer))
        winner = max(candidates, key=lambda c: scores[c.name])
    return (*winner.steps, recover)


def _families(
    original: nn.Module, task: Task, costs: Mapping[str, float], order: Sequence[str], seed: int
) -> list[Family]:
    families = [depth_family(order)] if order else []
    for round_to in (8, 16):
        for ranked in (False, True):
            name = f"{'ranked' if ranked else 'uniform'} width, multiples of {round_to}"
            families.append(width_family(original, task, costs, name=name, ranked=ranked, round_to=round_to, seed=seed))
    return families


def _half_depth(
    original: nn.Module,
    task: Task,
    run: Run,
    pricer: Pricer,
    costs: Mapping[str, float],
    candidates: Sequence[Candidate],
    order: Sequence[str],
    *,
    limit: float,
) -> Candidate | None:
    """Half as many blocks removed as depth alone would need, the rest in channels."""
    depth = depth_family(order)
    alone = next((c for c in candidates if c.name == "depth"), None)
    count = len(alone.steps[0].options()["names"]) // 2 if alone else len(order) // 2
    if not count:
        return None
    before = depth.steps(count / len(order))
    family = width_family(
        original, task, costs, before=before, name="depth and width", ranked=False, round_to=8, seed=run.seed
    )
    return largest(original, task, run, pricer, family, limit=limit)


def largest(
    original: nn.Module, task: Task, run: Run, pricer: Pricer, family: Family, *, limit: float
) -> Candidate | None:
    """The lightest cut of a family whose worst need is within the limit: a bisection over its grid."""

    def quote(index: int) -> tuple[Steps, Quote]:
        steps = family.steps(family.grid[index])
        scratch = Run(seed=run.seed, original=original)
        with run.progress.busy(f"measuring {family.name}"):
            return steps, pricer(repr(steps), apply_steps(original, steps, task, scratch))

    low, high = 0, len(family.grid) - 1
    if high < 0:
        return None
    found = quote(high)
    if found[1].worst > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        steps, price = quote(middle)
        if price.worst <= limit:
            high, found = middle, (steps, price)
        else:
            low = middle + 1
    return Candidate(family.name, *found)


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Per kind of cut the one with the most multiply-adds: at equal measured cost more capacity is better."""
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        kind = candidate.name.split(",")[0]
        if kind not in best or candidate.quote.macs > best[kind].quote.macs:
            best[kind] = candidate
    return list(best.values())


class Limited:
    """The first batches of every epoch of a loader."""

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader, self.batches = loader, min(batches, len(loader))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _ in zip(self.loader, range(self.batches)))


def _race(original: nn.Module, task: Task, run: Run, candidate: Candidate, recover: Recover) -> float:
    """Validation score of a candidate after a short training."""
    scratch = Run(
        seed=run.seed, accelerator=run.accelerator, devices=run.devices, original=original, progress=run.progress
    )
    model = apply_steps(original, candidate.steps, task, scratch)
    recalibrate(model, task.calibration)
    short = replace(task, train=Limited(task.train, RACE_BATCHES))
    training = Training(epochs=1, lr=recover.lr, weight_decay=recover.weight_decay)
    teach = [Distillation(original, temperature=recover.temperature, alpha=recover.alpha)]
    return fit(model, short, training, scratch, teach=teach, label=f"race {candidate.name}").top1 or 0.0


def state(
    name: str,
    quote: Quote,
    top1: float | None,
    pricer: Pricer,
    *,
    drop: float | None = None,
    accepted: bool = False,
    note: str = "",
) -> State:
    """A row of the Pareto plot."""
    times: dict[str, float] = {pricer.goal.runtime: quote.latency_ms} if quote.latency_ms is not None else {}
    return State(
        name=name,
        top1=top1,
        drop=drop,
        latency_ms=times,
        macs=quote.macs,
        params=quote.params,
        file_bytes=quote.file_bytes,
        accepted=accepted,
        note=note,
    )


def describe(quote: Quote) -> str:
    """Cost in words, for the log."""
    parts = [f"{quote.macs / 1e6:.2f} M MACs", f"{quote.params:,} parameters"]
    if quote.latency_ms is not None and quote.original_ms is not None:
        parts.insert(0, f"{quote.latency_ms:.2f} ms ({quote.original_ms / quote.latency_ms:.1f}x)")
    if quote.file_bytes is not None:
        parts.append(f"{quote.file_bytes:,} bytes")
    return ", ".join(parts)
