"""A tournament of shapes by successive halving: short trainings decide which shape the whole recovery is for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from gossamer.core.context import Context
from gossamer.core.progress import LabelledProgress
from gossamer.core.record import Trial
from gossamer.core.task import Task
from gossamer.measure.accuracy import evaluate
from gossamer.search.checkpoint_store import CheckpointStore, take_steps
from gossamer.search.cost_model import CostEstimate
from gossamer.search.failures import FailureGuard

if TYPE_CHECKING:
    from gossamer.methods.distill.recover import RecoveryDistillation
    from gossamer.search.axes import Steps

SHARES = (0.05, 0.15)  # of the batches of the recovery that follows: for all candidates, and for the two best of them
MIN_STEPS, MAX_STEPS = 40, 8000  # of a round; of the recovery that a round is a share of
TIE = 0.1  # of the score of the best: what is nearer is as good
SHORT_LR = 0.2  # times the learning rate of a recovery: large steps need its length to pay off
LONG_RECOVERY = 1000  # steps of a recovery after which most of a lead in the tournament is gone
MIN_LOSS = 0.1  # points behind the original that are told apart
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class ShapeCandidate:
    """A shape that meets the goal, by measurement."""

    name: str
    steps: "Steps"
    estimate: CostEstimate


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """Trains all candidates for a short while, all alike, and the two best of them for a longer one.

    Args:
        original: the uncompressed network.
        task: its data.
        context: of the job; trials are put into its log.
        store: where finished trainings are kept.
        recover: the recovery that the winner gets.
        reference: value of the original on validation data.
        recovery_steps: of that recovery; None: its epochs say it.
        runtime: on which costs were measured.
    """

    original: nn.Module
    task: Task
    context: Context
    store: CheckpointStore
    recover: "RecoveryDistillation"
    reference: float
    recovery_steps: int | None
    runtime: str

    @property
    def trials(self) -> FailureGuard:
        """What fails is left out."""
        return FailureGuard(self.store, self.context.progress)

    def winner(self, candidates: Sequence[ShapeCandidate]) -> ShapeCandidate | None:
        """The best after a short training of all, and a longer one of the two that lead: what keeps the original's
        outputs best at first is not always what learns best. What was trained is trained on, in the next round and in
        the recovery of the winner. None where nothing is left to go on with."""
        for number in range(1, len(SHARES) + 1 if self.recover.trains else 2):
            if len(candidates) > 1:
                candidates = self.round(candidates, number)[:2]
        return candidates[0] if candidates else None

    def round(self, candidates: Sequence[ShapeCandidate], number: int) -> list[ShapeCandidate]:
        """The candidates that can be trained, the best first, after a share of the recovery's batches."""
        share = f"after {100 * SHARES[number - 1]:.0f} % of the training"
        note = share if self.recover.trains else "without training"
        scores: list[tuple[float, ShapeCandidate]] = []
        metric = self.task.metric
        for before in candidates:
            one = replace(before, steps=(*before.steps, self.training(number)))
            value, name = self._value(one, number), f"tournament, round {number}: {one.name}"
            if value is None:
                continue
            self.context.progress.say(f"{name}: {metric.name} {metric.text(value)} on validation")
            trial = trial_row(name, one.estimate, metric.shown(value), self.runtime, note=note)
            self.context.log.trials.append(replace(trial, brief=True))
            scores.append((self._score(value, one.estimate), one))
        best = max((score for score, _ in scores), default=0.0)
        # What a short training cannot tell apart, capacity decides: it is what the recovery can make use of.
        alike = [(-one.estimate.macs, -score, one) for score, one in scores if score >= (1 + TIE) * best]
        rest = [(-score, one) for score, one in scores if score < (1 + TIE) * best]
        first = [one for *_, one in sorted(alike, key=lambda row: row[:2])]
        return [*first, *(one for _, one in sorted(rest, key=lambda row: row[0]))]

    def training(self, number: int) -> "RecoveryDistillation":
        """The training of a round: a share of the recovery, with a whole schedule of its own; where that trains
        nothing, it itself."""
        if not self.recover.trains:
            return self.recover
        steps = max(round(SHARES[number - 1] * min(self._whole_steps, MAX_STEPS)), MIN_STEPS)
        return replace(self.recover, epochs=None, steps=steps, lr=SHORT_LR * self.usual_lr)

    @property
    def usual_lr(self) -> float:
        """Of a recovery, as far as it can be said without trials, which would take as long as a round. Batch norms let
        a network take large steps; without them the loss explodes at the same rate."""
        return self.recover.lr or (0.1 if any(isinstance(m, BATCH_NORMS) for m in self.original.modules()) else 0.02)

    @property
    def _whole_steps(self) -> int:
        return self.recovery_steps or self.recover.passes(self.task) * len(self.task.train)

    def _score(self, value: float, estimate: CostEstimate) -> float:
        """-(points behind the original) x (cost ratio)^2; higher is better.

        What a shape saves beyond the goal counts, because most of a lead after a short training is gone after the whole
        one: ResNet-14 at a goal of 3x, three blocks less (4.4x) against two and some width (3.2x), points behind after
        10, 20, 35 and 100 % of four epochs: 3.8, 1.8, 1.1, 0.3 against 2.2, 1.2, 0.7, 0.5. In a short recovery more of
        a lead stays, so that the cost ratio itself counts there.
        """
        power = 2 if self._whole_steps >= LONG_RECOVERY else 1
        return -max(self.task.metric.lost(self.reference, value), MIN_LOSS) * estimate.worst_ratio**power

    def _value(self, candidate: ShapeCandidate, number: int) -> float | None:
        """The metric's value after the training of a round, which is done once; None where it fails."""
        key = f"tournament, round {number}: {candidate.steps}"
        train = partial(self._trained_value, candidate)
        return self.trials(candidate.name, key, lambda: float(self.store.get_or_compute(key, train)))

    def _trained_value(self, candidate: ShapeCandidate) -> float:
        """The metric's value after all steps of the candidate: what it learns is asked, not what the cut left."""
        progress = LabelledProgress(self.context.progress, f"tournament, {candidate.name}")
        scratch = self.context.fork(progress=progress)
        model = take_steps(self.original, candidate.steps, self.task, scratch, self.store)
        if not self.recover.trains:
            return evaluate(model.eval(), self.task).value
        return self.task.metric.from_shown([x for x in scratch.log.curves[-1].score if x is not None][-1])


def trial_row(
    name: str,
    estimate: CostEstimate,
    score: float | None,
    runtime: str,
    *,
    drop: float | None = None,
    accepted: bool = False,
    note: str = "",
) -> Trial:
    """A row of the Pareto plot."""
    return Trial(
        name=name,
        score=score,
        drop=drop,
        latency_ms={runtime: estimate.latency_ms} if estimate.latency_ms is not None else {},
        macs=estimate.macs,
        params=estimate.params,
        file_bytes=None,
        accepted=accepted,
        note=note,
    )
