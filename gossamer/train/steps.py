"""Single steps of a training, and its score on validation data: what the loop and the search for a rate are made of."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.core.metric import Evaluation, Evidence
from gossamer.core.task import Task, evaluation
from gossamer.train.batches import Placement
from gossamer.train.distillation import LossTerm
from gossamer.train.hyperparameters import Training, set_rate
from gossamer.train.objective import Objective
from gossamer.train.state import TrainingState

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Stepper:
    """Takes steps of an optimizer, in one process or in several that average their gradients."""

    def __init__(
        self,
        fabric: "Fabric",
        state: TrainingState,
        task: Task,
        training: Training,
        loss_terms: Sequence[LossTerm],
        place: Placement,
    ) -> None:
        self.fabric, self.state, self.task, self.clip, self.place = fabric, state, task, training.clip, place
        self.module, self.optimizer = fabric.setup(state.model, state.optimizer)
        self.objective = Objective(self.module, task, loss_terms, fabric.autocast, training.label_smoothing)

    def take(self, batch: Any, lr: float) -> Tensor:
        """One step at this rate; the loss of this process's part of the batch."""
        set_rate(self.state.optimizer, lr)
        part, weight = self.place(batch)
        loss = self.objective(part) * weight
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
        self.optimizer.step()
        return loss.detach()

    def mean(self, value: Tensor | float) -> float:
        """The mean over all processes, so that all decide alike."""
        if self.fabric.world_size == 1:
            return float(value)
        reduced: Any = self.fabric.all_reduce(torch.as_tensor(value, dtype=torch.float64).to(self.fabric.device))
        return float(reduced)

    def score(self) -> float | None:
        """The metric's value on validation data, in float32, as the result will run; None where there are no such
        data. Every process measures its share of the batches; the evidence of all is put together."""
        task = self.task
        if not len(task.validation):
            return None
        found: Evaluation | None = None
        world = min(self.fabric.world_size, len(task.validation))
        if self.fabric.global_rank < world:
            self.state.model.eval()
            with self.state.averaged(), torch.no_grad():
                part = islice(task.validation, self.fabric.global_rank, None, world)
                found = evaluation(task, self.state.model, self.place.whole(part))
        return task.metric.value(self.gathered({} if found is None else found.evidence))

    def gathered(self, evidence: Evidence) -> Evidence:
        """The evidence of all processes, so that all decide alike; {} from those that had no batch."""
        if self.fabric.world_size == 1:
            return evidence
        every: list[dict[str, Tensor]] = [{} for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather_object(every, dict(evidence))
        return {name: torch.cat([part[name] for part in every if part]) for name in every[0]}
