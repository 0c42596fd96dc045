"""SNIP: prune at initialization by connection sensitivity (single-shot network pruning).

What it does: takes the gradient of the loss on a few batches with respect to every weight of an untrained network,
keeps the connections to which the loss is most sensitive and sets the others to zero. Train afterwards.
Cost: one gradient of a few batches.
When it fails: at high sparsity whole layers can lose all connections, and nothing can be learned; `prune.synflow`
avoids that. On a trained network gradients are small and noisy: use `prune.magnitude`.
Equation: score = |w dL/dw|, one ranking over all layers.
Source: Lee et al. 2019, arXiv:1810.02340, section 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from gossamer.calibration.curvature import summed_gradients
from gossamer.constraints.apply import materialize
from gossamer.core.conditions import own_randomness
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import joint_masks, mask_weights, selected_weights
from gossamer.train.batches import batches_of_epoch


def connection_scores(model: nn.Module, task: Task, batches: Iterable[Any], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the connection sensitivity |w sum of g| over the batches, g the gradient of a batch's mean loss.

    Args:
        model: is not changed; the gradients are taken in training mode.
        task: gives the loss.
        batches: of labelled data.
        names: of the weights to score ("conv1.weight").

    Returns:
        Scores by name, of the weights' shapes.

    Source: Lee et al. 2019, arXiv:1810.02340, equation 5, without its normalization, which does not change the ranking.
    """
    plain = materialize(model).train()
    weights = {name: p for name, p in plain.named_parameters() if name in set(names)}
    sums, _ = summed_gradients(plain, task.loss, batches, weights)
    return {name: (w.detach() * sums[name]).abs() for name, w in weights.items()}


@dataclass(frozen=True, kw_only=True)
class SNIP(Method):
    """SNIP, pruning at initialization (Lee et al. 2019).

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1).
        batches: batches of labelled training data from which the gradients are taken.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> pruned, edits = gossamer.methods.prune.SNIP(sparsity=0.5, layers=("fc1",), batches=2)(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (128, 256)
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"sparsity": 0.6, "batches": 2}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    batches: Annotated[int, Range(1, 100_000)] = 8
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = selected_weights(model, self.layers, self.ignore)
        with own_randomness():
            first = (batch for _, batch in batches_of_epoch(task.train, context.seed, 0, 0, 0))
            scores = connection_scores(model, task, islice(first, self.batches), weights)
        drop = round(self.sparsity * sum(s.numel() for s in scores.values()))
        return mask_weights(model, joint_masks(scores, drop), context, self.name())
