"""Drop, before training, the connections that the loss feels least.

What it does: takes the gradient of a few batches with respect to every connection of an untrained network and holds
the rest at zero; train afterwards.
Cost: one gradient of a few batches.
When it fails: at high sparsity whole layers can lose all connections, and nothing can be learned; `prune.synflow`
avoids that. On a trained network gradients are small and noisy: use magnitudes.
Equation: score = |w dL/dw|, one ranking over all layers.
Source: Lee et al. 2019, arXiv:1810.02340, section 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from gossamer.calibration.curvature import summed_gradients
from gossamer.constraints.base import materialize
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import held_weights, hold, joint_masks
from gossamer.train.batches import batches_of_epoch, own_randomness


def connection_scores(model: nn.Module, task: Task, batches: Iterable[Any], names: Iterable[str]) -> dict[str, Tensor]:
    """|w sum of g| over the batches, by name of the weight; g is the gradient of the mean loss of a batch, in training
    mode. The model is not touched."""
    plain = materialize(model).train()
    weights = {name: p for name, p in plain.named_parameters() if name in set(names)}
    sums, _ = summed_gradients(plain, task.loss, batches, weights)
    return {name: (w.detach() * sums[name]).abs() for name, w in weights.items()}


@dataclass(frozen=True, kw_only=True)
class SNIP(Method):
    """sparsity: of all named layers together. batches: of labelled training data."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"sparsity": 0.6, "batches": 2}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    batches: Annotated[int, Range(1, 100_000)] = 8
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = held_weights(model, self.layers, self.ignore)
        with own_randomness():
            first = (batch for _, batch in batches_of_epoch(task.train, context.seed, 0, 0, 0))
            scores = connection_scores(model, task, islice(first, self.batches), weights)
        drop = round(self.sparsity * sum(s.numel() for s in scores.values()))
        return hold(model, joint_masks(scores, drop), context, self.name())
