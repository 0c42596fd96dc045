"""Prune layer by layer so that every layer's outputs change least: Optimal Brain Compression, and SparseGPT's one shot.

What it does: gathers the second moments of a layer's inputs over calibration data (no labels), drops weights, and moves
the remaining ones to where the layer's outputs are nearest to what they were. Layers go in the order of a run, so each
one sees what the pruned ones before it give. Linear layers and convolutions, grouped ones too.
Cost: "exact" takes O * D^3 operations for O outputs of D inputs, "one_shot" D^3 + O * D^2; a run over the calibration
data for every layer.
When it fails: with fewer calibration samples than inputs of a layer the moments are rough; raise dampening.
Equation: per output, "exact" drops argmin w_p^2 / [H^-1]_pp, H = X^T X, again and again, and solves least squares on
what is left; "one_shot" goes through the inputs once, by w^2 / [chol(H^-1)]_jj^2, and moves only later weights.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1; Frantar, Alistarh 2023, arXiv:2301.00774.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import call_order, input_moments
from gossamer.constraints.base import Mask, constrain, effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.assign import assign
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import note_edits

Solver = Literal["auto", "exact", "one_shot"]
# O * D^3 up to which "auto" is exact, and up to which it solves least squares after one pass: seconds on one core.
EXACT_OPERATIONS, REFIT_OPERATIONS = 1e10, 5e11
ROWS_BYTES = 128 << 20  # of inverses that the exact solver holds at a time
Kept = tuple[int, int]
Pruned = tuple[Tensor, Tensor]


def dampened(moments_DD: Tensor, dampening: float) -> Tensor:
    """H with `dampening` times its mean diagonal added to the diagonal, float64. Raises BadInput where all is zero."""
    h_DD = moments_DD.double()
    mean = float(h_DD.diagonal().mean())
    if not mean > 0:
        raise BadInput("the layer saw nothing but zeros in the calibration data; list it under `ignore`")
    return h_DD + max(dampening, 1e-8) * mean * torch.eye(len(h_DD), dtype=h_DD.dtype, device=h_DD.device)


def greedy_order(weight_OD: Tensor, h_DD: Tensor, n_of_m: Kept | None = None) -> Pruned:
    """For every output alone, the weights in the order in which they are best dropped, and how much each one costs.

    Shapes (O, steps): steps is D, or with n_of_m the D / m * (m - n) that may go. Costs are in the units of
    dw @ h @ dw, given that all before it were dropped and the rest moved (arXiv:2208.11580, algorithm 1).
    """
    width = weight_OD.shape[1]
    inverse_DD = torch.linalg.inv(h_DD)
    rows = max(ROWS_BYTES // (8 * width**2), 1)
    parts = [_greedy_rows(part, inverse_DD, n_of_m) for part in torch.split(weight_OD.double(), rows)]
    return torch.cat([order for order, _ in parts]), torch.cat([cost for _, cost in parts])


def _greedy_rows(w_RD: Tensor, inverse_DD: Tensor, n_of_m: Kept | None) -> Pruned:
    w_RD, inverse_RDD = w_RD.clone(), inverse_DD.expand(len(w_RD), -1, -1).clone()
    n, m = n_of_m or (0, 1)
    width, each = w_RD.shape[1], torch.arange(len(w_RD), device=w_RD.device)
    steps = width // m * (m - n)
    blocked = torch.zeros_like(w_RD, dtype=torch.bool)
    dropped = torch.zeros_like(blocked)
    order = torch.zeros(len(w_RD), steps, dtype=torch.long, device=w_RD.device)
    cost = torch.zeros(len(w_RD), steps, dtype=w_RD.dtype, device=w_RD.device)
    for step in range(steps):
        scores = (w_RD.square() / inverse_RDD.diagonal(dim1=1, dim2=2)).masked_fill(blocked, torch.inf)
        cost[:, step], order[:, step] = scores.min(1)
        q = order[:, step]
        column_RD = inverse_RDD[each, :, q]
        pivot_R1 = column_RD[each, q][:, None]
        w_RD -= w_RD[each, q][:, None] / pivot_R1 * column_RD
        inverse_RDD.baddbmm_(column_RD[:, :, None], (column_RD / pivot_R1)[:, None], alpha=-1)
        dropped[each, q] = True
        w_RD[dropped] = 0
        full = dropped.view(len(w_RD), -1, m).sum(2, keepdim=True) == m - n
        blocked = dropped | full.expand(-1, -1, m).reshape(dropped.shape)
    return order, cost


def cheapest(order: Tensor, cost: Tensor, width: int, count: int) -> Tensor:
    """Mask (O, width), True keeps, that drops `count` weights of all outputs together where that costs least.

    An output's weights go in its order: one that is cheap only after a dear one waits for it.
    """
    waiting = cost.cummax(1).values
    taken = torch.zeros(waiting.numel(), dtype=torch.bool, device=cost.device)
    taken[waiting.flatten().argsort(stable=True)[:count]] = True
    taken = taken.view(order.shape)
    keep = torch.ones(len(order), width, dtype=torch.bool, device=order.device)
    return keep.scatter(1, order, ~taken)


def refit(weight_OD: Tensor, mask_OD: Tensor, h_DD: Tensor) -> Tensor:
    """The kept weights of every output that change its values least: minimize (v - w) @ h @ (v - w), v zero where
    the mask is False."""
    parts = []
    eye_DD = torch.eye(len(h_DD), dtype=h_DD.dtype, device=h_DD.device)
    rows = max(ROWS_BYTES // (8 * len(h_DD) ** 2), 1)
    for w_RD, keep_RD in zip(torch.split(weight_OD.double(), rows), torch.split(mask_OD, rows)):
        kept_RDD = torch.where(keep_RD[:, :, None] & keep_RD[:, None], h_DD, eye_DD)
        target_RD = (w_RD @ h_DD).where(keep_RD, 0.0)
        parts.append(torch.linalg.solve(kept_RDD, target_RD[..., None])[..., 0])
    return torch.cat(parts).where(mask_OD, 0.0)


def exact(weight_GOD: Tensor, h_GDD: Tensor, count: int, n_of_m: Kept | None = None) -> Pruned:
    """(new weights, mask), shapes (groups, O, D), after the greedy choice over all groups together and least squares.

    Weights that are zero already are dropped first.
    """
    groups, rows, width = weight_GOD.shape
    orders, costs = zip(*(greedy_order(w_OD, h_DD, n_of_m) for w_OD, h_DD in zip(weight_GOD, h_GDD)))
    order, cost = torch.cat(orders), torch.cat(costs)
    count = order.numel() if n_of_m else max(count, int((weight_GOD == 0).sum()))
    mask_GOD = cheapest(order, cost, width, count).view(groups, rows, width) & (weight_GOD != 0)
    fitted = [refit(w_OD, mask_OD, h_DD) for w_OD, mask_OD, h_DD in zip(weight_GOD, mask_GOD, h_GDD)]
    return torch.stack(fitted), mask_GOD


def one_shot(weight_OD: Tensor, h_DD: Tensor, count: int, n_of_m: Kept | None = None, block: int = 128) -> Pruned:
    """(new weights, mask) after one pass over the inputs (arXiv:2301.00774, algorithm 1).

    A block's share of the `count` is chosen when the pass comes to it, with n_of_m every m inputs. Errors move the
    weights of later inputs, those of later blocks all at once at the end of a block, which only saves time.
    """
    w_OD, held_OD = weight_OD.double().clone(), weight_OD != 0
    upper_DD = torch.linalg.cholesky(torch.linalg.inv(h_DD), upper=True)
    width = w_OD.shape[1]
    mask_OD = torch.ones_like(held_OD)
    step = n_of_m[1] if n_of_m else block
    for start in range(0, width, block):
        end = min(start + block, width)
        u_BB, errors_OB = upper_DD[start:end, start:end], torch.zeros_like(w_OD[:, start:end])
        for j in range(start, end):
            if (j - start) % step == 0:
                stop = min(j + step, end)
                part = slice(j, stop)
                scores = (w_OD[:, part] / upper_DD.diagonal()[part]).square().masked_fill(~held_OD[:, part], -1.0)
                # So that all blocks together drop `count`.
                share = count * stop // width - count * j // width
                mask_OD[:, part] = _choose(scores, share, n_of_m) & held_OD[:, part]
            at = j - start
            pruned_O = w_OD[:, j].where(mask_OD[:, j], 0.0)
            errors_OB[:, at] = (w_OD[:, j] - pruned_O) / u_BB[at, at]
            w_OD[:, j:end] -= errors_OB[:, at, None] * u_BB[at, at:]
            w_OD[:, j] = pruned_O
        w_OD[:, end:] -= errors_OB @ upper_DD[start:end, end:]
    return w_OD, mask_OD


def _choose(scores: Tensor, count: int, n_of_m: Kept | None) -> Tensor:
    keep = torch.ones_like(scores, dtype=torch.bool)
    if n_of_m:
        lowest = scores.argsort(dim=1, stable=True)[:, : n_of_m[1] - n_of_m[0]]
        return keep.scatter(1, lowest, False)
    keep.view(-1)[scores.flatten().argsort(stable=True)[:count]] = False
    return keep


@dataclass(frozen=True, kw_only=True)
class LayerwisePruning(Method):
    """Give sparsity (fraction of zeros in every layer), or n_of_m: keep n of every m consecutive inputs.

    solver: "exact" for small layers, "one_shot" for large ones; "auto" by size, and solves least squares after one pass
    where that takes seconds. batches: of calibration data.
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "samples"
    example: ClassVar[Settings] = {"sparsity": 0.8, "batches": 2}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    n_of_m: tuple[int, int] | None = None
    solver: Solver = "auto"
    batches: Annotated[int, Range(1, 100_000)] = 32
    dampening: Annotated[float, Range(0, 10)] = 0.01
    block: Annotated[int, Range(1, 100_000)] = 128
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.n_of_m is None):
            raise BadInput(f"{self.name()}: give either sparsity or n_of_m")
        if self.n_of_m is not None and not 0 < self.n_of_m[0] < self.n_of_m[1]:
            raise BadInput(f"{self.name()}: n_of_m = {list(self.n_of_m)}: needs 0 < n < m (keep n of every m)")
        if self.n_of_m is not None and self.block % self.n_of_m[1]:
            raise BadInput(f"{self.name()}: block = {self.block} must be a multiple of m = {self.n_of_m[1]}")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        wanted = {layer_name(name): name for name in weights_of(model, self.layers, self.ignore)}
        order = call_order(model, task.example_inputs, list(wanted))
        for layer in context.progress.bar(order, label=self.name(), total=len(order)):
            name = wanted[layer]
            h_GDD = input_moments(model, [layer], task.calibration, self.batches)[layer]
            before, module = effective_weight(model, name), model.get_submodule(layer)
            try:
                value, mask = self.solve(before, h_GDD.to(before.device), getattr(module, "groups", 1))
            except BadInput as error:
                raise BadInput(f"{self.name()}: layer {layer!r}: {error}") from error
            result = constrain(assign(model, {name: value}), {name: Mask(mask)})
            note_edits(model, result, [name], context, self.name())
            model = result
        return model

    def solve(self, weight: Tensor, h_GDD: Tensor, groups: int) -> Pruned:
        """(new weight, mask) of one layer, both of the weight's shape."""
        m = self.n_of_m[1] if self.n_of_m else 1
        if weight.shape[1] % m:
            raise BadInput(f"its {weight.shape[1]} inputs are not a multiple of m = {m}; list it under `ignore`")
        # Input channels run fastest, as n of m counts along them.
        order = torch.arange(weight[0].numel(), device=weight.device).view(weight.shape[1], -1).T.flatten()
        w_GOD = weight.reshape(groups, len(weight) // groups, -1)[..., order]
        h_GDD, width = h_GDD[:, order][:, :, order], len(order)
        h_GDD = torch.stack([dampened(h_DD, self.dampening) for h_DD in h_GDD])
        count = round((self.sparsity or 0.0) * weight.numel())
        operations = w_GOD[..., 0].numel() * width**3
        if self.solver == "exact" or (self.solver == "auto" and operations <= EXACT_OPERATIONS):
            value, mask = exact(w_GOD, h_GDD, count, self.n_of_m)
        else:
            shares = [count * (g + 1) // groups - count * g // groups for g in range(groups)]
            found = [one_shot(*part, self.n_of_m, self.block) for part in zip(w_GOD, h_GDD, shares)]
            value, mask = (torch.stack(parts) for parts in zip(*found))
            if self.solver == "auto" and operations <= REFIT_OPERATIONS:
                value = torch.stack([refit(*part) for part in zip(w_GOD, mask, h_GDD)])
        back = order.argsort()
        return value[..., back].to(weight.dtype).view_as(weight), mask[..., back].view_as(weight)
