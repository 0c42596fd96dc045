"""Optimal Brain Damage (OBD): prune by second-order saliency with a diagonal Hessian.

What it does: estimates the second derivative of the loss by every weight, and drops the weights whose removal would
raise the loss least, over all layers together. Kept weights do not change: follow it with `distill.recover`, and repeat
the two.
Cost: for every round one forward pass over some training batches and one backward pass for each output of the network.
When it fails: at high sparsity in one step, because weights that are dropped together compensate for one another, which
a diagonal ignores. Use more rounds, `prune.obs` on a small network, or `prune.layerwise`.
Equation: saliency of w_k = h_kk w_k^2 / 2, with h_kk = d2 loss / d w_k^2.
Source: LeCun, Denker, Solla 1990, "Optimal Brain Damage", NIPS 2, equations 5 to 11.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, ClassVar

from torch import Tensor, nn

from gossamer.calibration.curvature import Curvature, diagonal
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.errors import NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import joint_masks, note_edits, selected_weights


def saliency(weight: Tensor, second: Tensor) -> Tensor:
    """Return h w^2 / 2, the estimated rise of the loss when a weight becomes zero.

    Args:
        weight: any shape.
        second: second derivatives of the loss by the weight, of the same shape.

    Source: LeCun, Denker, Solla 1990, equation 5.
    """
    return second * weight.square() / 2


@dataclass(frozen=True, kw_only=True)
class OptimalBrainDamage(Method):
    """Optimal Brain Damage (LeCun et al. 1990).

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1).
        rounds: the sparsity is reached in so many equal steps, each with new derivatives.
        batches: batches of labelled training data for the derivatives.
        curvature: estimate of the second derivatives: "gauss_newton", "fisher", or "exact" (slow).
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Raises:
        NoEffect: the network already has so many zeros.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.OptimalBrainDamage(sparsity=0.5, batches=2, layers=("fc1",))
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (128, 256)
    """

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
        before = selected_weights(model, self.layers, self.ignore)
        batches = list(islice(task.train, self.batches))
        total = sum(w.numel() for w in before.values())
        start, count = sum(int((w == 0).sum()) for w in before.values()), round(self.sparsity * total)
        if count <= start:
            raise NoEffect(f"{self.name()}: sparsity = {self.sparsity} drops {count} weights, {start} are zero already")
        result, layers = model, [layer_name(name) for name in before]
        for step in context.progress.bar(range(1, self.rounds + 1), label=self.name(), total=self.rounds):
            second = diagonal(result, partial(loss_of, task), batches, layers, self.curvature)
            weights = selected_weights(result, self.layers, self.ignore)
            # What is dropped already goes first.
            scores = {n: saliency(w, second[layer_name(n)]).masked_fill(w == 0, -1.0) for n, w in weights.items()}
            masks = joint_masks(scores, start + (count - start) * step // self.rounds)
            result = constrain(model, {name: Mask(mask) for name, mask in masks.items()})
        note_edits(model, result, masks, context, self.name())
        return result
