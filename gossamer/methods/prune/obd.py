"""Drop the weights that the loss minds least, by its diagonal second derivatives: Optimal Brain Damage.

What it does: estimates how the loss curves along every weight, and drops those whose removal would raise it least, over
all layers together. Weights that are kept are not changed: follow it with `distill.recover`, and repeat the two.
Cost: for every round one run forwards over some training batches and one backwards for each output of the network.
When it fails: at high sparsity in one step, where weights that are dropped together make up for one another; use more
rounds, `prune.obs` on a small network, or `prune.layerwise`.
Equation: saliency of w_k = h_kk w_k^2 / 2, with h_kk = d2 loss / d w_k^2.
Source: LeCun, Denker, Solla 1990, "Optimal Brain Damage", NIPS 2, equations 5 to 11.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.calibration.curvature import Curvature, diagonal
from gossamer.constraints.base import Mask, constrain
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.errors import NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import held_weights, joint_masks, note_edits


def saliency(weight: Tensor, second: Tensor) -> Tensor:
    """h w^2 / 2: how much the loss rises when a weight goes to zero (equation 5). Same shape."""
    return second * weight.square() / 2


@dataclass(frozen=True, kw_only=True)
class OptimalBrainDamage(Method):
    """sparsity: fraction of zeros over all chosen layers together. rounds: how often the derivatives are estimated anew
    on the way there. batches: of labelled training data. curvature: "gauss_newton", "fisher", or "exact" (slow)."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"sparsity": 0.8, "batches": 2}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    rounds: Annotated[int, Range(1, 1000)] = 1
    batches: Annotated[int, Range(1, 100_000)] = 8
    curvature: Curvature = "gauss_newton"
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        before = held_weights(model, self.layers, self.ignore)
        batches = list(islice(task.train, self.batches))
        total = sum(w.numel() for w in before.values())
        start, count = sum(int((w == 0).sum()) for w in before.values()), round(self.sparsity * total)
        if count <= start:
            raise NoEffect(f"{self.name()}: sparsity = {self.sparsity} drops {count} weights, {start} are zero already")
        result, layers = model, [layer_name(name) for name in before]
        for step in context.progress.bar(range(1, self.rounds + 1), label=self.name(), total=self.rounds):
            second = diagonal(result, partial(loss_of, task), batches, layers, self.curvature)
            weights = held_weights(result, self.layers, self.ignore)
            # What is dropped already goes first.
            scores = {n: saliency(w, second[layer_name(n)]).masked_fill(w == 0, -1.0) for n, w in weights.items()}
            masks = joint_masks(scores, start + (count - start) * step // self.rounds)
            result = constrain(model, {name: Mask(mask) for name, mask in masks.items()})
        note_edits(model, result, masks, context, self.name())
        return result
