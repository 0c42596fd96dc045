"""Optimal Brain Surgeon (OBS): prune weights one by one with the full inverse Hessian and update all others.

What it does: computes the inverse of the full matrix of second derivatives, drops the weight that costs least, moves
all remaining weights to the minimum of the quadratic model of the loss, and repeats. For small networks, where it is
the most accurate method.
Cost: memory for the square of the number of weights, and time for its square with every weight that is dropped.
When it fails: above 8,192 weights (refused; `prune.layerwise` does the same layer by layer), and where so many weights
are dropped that the loss is no longer quadratic: use more rounds.
Equation: L_q = w_q^2 / (2 [H^-1]_qq), dw = -w_q / [H^-1]_qq H^-1 e_q.
Source: Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 5.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.curvature import gauss_newton_rows
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight
from gossamer.core.batches import inputs_and_target
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.edits.assign import assign
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import note_edits, selected_weights

# Beyond this many weights the matrix takes more than 0.5 GB, and dropping most of them hours.
MOST_WEIGHTS = 8192


def inverse_hessian(rows: Iterable[Tensor], patterns: int, alpha: float, size: int) -> Tensor:
    """Return (alpha I + sum of X^T X / patterns)^-1, by the recursion over patterns.

    Several rows at a time are the same recursion by Woodbury's identity.

    Args:
        rows: tensors X of shape (any number, size): gradients of single outputs.
        patterns: number of samples that the rows are from.
        alpha: the recursion starts with H_0^-1 = I / alpha. The source uses 1e-8 to 1e-4.
        size: number of weights.

    Returns:
        Shape (size, size), float64, on the CPU.

    Source: Hassibi & Stork 1993, section 3.
    """
    inverse = torch.eye(size, dtype=torch.float64) / alpha
    for x in rows:
        for part in torch.split(x.double().cpu(), 256):
            image = part @ inverse
            inner = patterns * torch.eye(len(part), dtype=torch.float64) + image @ part.mT
            inverse -= image.mT @ torch.linalg.solve(inner, image)
    return (inverse + inverse.mT) / 2


def surgery(weight: Tensor, inverse: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Drop weights one by one and update the others.

    Args:
        weight: shape (n,).
        inverse: inverse Hessian by these weights, shape (n, n), float64. After every step the reduced Hessian is used.
        count: how many weights to drop.

    Returns:
        The new weights (n,), the mask (n,) with True for kept weights, and the loss of every step (count,). The
        arguments are not changed.

    Source: Hassibi & Stork 1993, section 2.
    """
    weight, inverse = weight.double().clone(), inverse.clone()
    keep = torch.ones_like(weight, dtype=torch.bool)
    losses = torch.zeros(count, dtype=torch.float64)
    for step in range(count):
        saliencies = (weight.square() / (2 * inverse.diagonal())).masked_fill(~keep, torch.inf)
        q = int(saliencies.argmin())
        losses[step] = saliencies[q]
        column = inverse[:, q].clone()
        weight -= weight[q] / column[q] * column
        inverse.addr_(column, column / column[q], alpha=-1)
        keep[q] = False
        weight[q] = 0
        # Rounding leaves tiny numbers in the row and column of a weight that is gone.
        inverse[q], inverse[:, q] = 0, 0
    return weight * keep, keep, losses


def refuse_large(count: int, limit: int = MOST_WEIGHTS) -> None:
    """Raise BadInput for a network with too many weights for the exact method.

    Args:
        count: weights that are not zero.
        limit: the largest number that is admitted.
    """
    if count > limit:
        raise BadInput(
            f"prune.obs: {count:,} weights need two matrices of {count:,} x {count:,}, {count**2 * 16 / 1e9:,.1f} GB, "
            f"and hours; the limit is {limit:,}. Use prune.layerwise, which does the same layer by layer, or choose "
            "fewer layers"
        )


@dataclass(frozen=True, kw_only=True)
class OptimalBrainSurgeon(Method):
    """Optimal Brain Surgeon (Hassibi & Stork 1993).

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1).
        rounds: the sparsity is reached in so many equal steps, each with a new Hessian.
        batches: batches of labelled training data for the Hessian.
        alpha: added to the diagonal of the Hessian, in (0, 1]. The source uses 1e-8 to 1e-4; a larger value keeps the
            weights where the loss is still quadratic.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1"). Together they may have at most 8,192
            nonzero weights.
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: the selected layers have too many weights.
        NoEffect: they already have so many zeros.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.OptimalBrainSurgeon(sparsity=0.5, batches=1, layers=("fc2",))
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc2.weight == 0).sum()), pruned.fc2.weight.numel()
        (24, 48)
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"sparsity": 0.8, "layers": ("stem", "head")}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    rounds: Annotated[int, Range(1, 1000)] = 1
    batches: Annotated[int, Range(1, 100_000)] = 8
    alpha: Annotated[float, Range(0, 1, open_=("low",))] = 1e-2
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        before = selected_weights(model, self.layers, self.ignore)
        alive = torch.cat([(w != 0).flatten().cpu() for w in before.values()])
        refuse_large(int(alive.sum()))
        total, count = len(alive), round(self.sparsity * len(alive)) - int((~alive).sum())
        if count <= 0:
            raise NoEffect(f"{self.name()}: sparsity = {self.sparsity} of {total} weights is reached already")
        result, batches = model, list(islice(task.train, self.batches))
        for step in context.progress.bar(range(self.rounds), label=self.name(), total=self.rounds):
            drop = count * (step + 1) // self.rounds - count * step // self.rounds
            values, alive = self._round(result, task, batches, list(before), alive, drop)
            result = assign(result, values)
        parts = torch.split(alive, [w.numel() for w in before.values()])
        masks = {name: part.view_as(w).to(w.device) for part, (name, w) in zip(parts, before.items())}
        result = constrain(result, {name: Mask(mask) for name, mask in masks.items()})
        note_edits(model, result, masks, context, self.name(), EditKind.ASSIGN)
        return result

    def _round(
        self, model: nn.Module, task: Task, batches: list[Any], names: list[str], alive: Tensor, drop: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weights, and which are left, after `drop` more were dropped."""
        patterns = sum(len(inputs_and_target(batch)[0][0]) for batch in batches)
        rows = gauss_newton_rows(model, partial(loss_of, task), batches, [layer_name(name) for name in names])
        inverse = inverse_hessian((x.cpu()[:, alive] for x in rows), patterns, self.alpha, int(alive.sum()))
        effective = {name: effective_weight(model, name).cpu() for name in names}
        flat = torch.cat([w.flatten() for w in effective.values()])
        found, keep, _ = surgery(flat[alive], inverse, drop)
        flat[alive] = found.to(flat.dtype)
        left = alive.clone()
        left[alive] = keep
        parts = torch.split(flat, [w.numel() for w in effective.values()])
        return dict(zip(effective, parts)), left
