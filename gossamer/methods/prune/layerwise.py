"""Optimal Brain Compression (OBC, ExactOBS) and SparseGPT: prune layer by layer and reconstruct each layer's outputs.

What it does: estimates the second moments of a layer's inputs on calibration data (no labels), drops weights, and
updates the remaining ones so that the layer's outputs change least. Layers are pruned in the order of execution, so
each one sees the outputs of the pruned ones before it. Linear layers and convolutions, grouped ones too.
Cost: "exact" takes O * D^3 operations for O outputs of D inputs, "one_shot" D^3 + O * D^2; a run over the calibration
data for every layer.
When it fails: with fewer calibration samples than inputs of a layer the moments are inaccurate; raise dampening.
Equation: per output, "exact" repeatedly drops argmin w_p^2 / [H^-1]_pp, H = X^T X, and solves least squares for the
rest; "one_shot" makes one pass over the inputs, by w^2 / [chol(H^-1)]_jj^2, and updates only later weights.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, algorithm 1 (OBC); Frantar, Alistarh 2023, arXiv:2301.00774
(SparseGPT).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import call_order, input_moments
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.assign import assign
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import note_edits

Solver = Literal["auto", "exact", "one_shot"]
# O * D^3 up to which "auto" is exact, and up to which it solves least squares after one pass: seconds on one core.
EXACT_OPERATIONS, SOLVE_OPERATIONS = 1e10, 5e11
ROWS_BYTES = 128 << 20  # of inverses that the exact solver holds at a time
Kept = tuple[int, int]
Pruned = tuple[Tensor, Tensor]


def dampened(moments_DD: Tensor, dampening: float) -> Tensor:
    """Return the matrix with `dampening` times its mean diagonal added to the diagonal.

    Args:
        moments_DD: second moments of a layer's inputs, H = X^T X.
        dampening: >= 0; at least 1e-8 is used.

    Returns:
        Shape (D, D), float64.

    Raises:
        BadInput: all moments are zero.
    """
    h_DD = moments_DD.double()
    mean = float(h_DD.diagonal().mean())
    if not mean > 0:
        raise BadInput("its inputs are nothing but zeros in the calibration data; list it under `ignore`")
    return h_DD + max(dampening, 1e-8) * mean * torch.eye(len(h_DD), dtype=h_DD.dtype, device=h_DD.device)


def greedy_order(weight_OD: Tensor, h_DD: Tensor, n_of_m: Kept | None = None) -> Pruned:
    """Return, for every output alone, the order in which its weights are best dropped, and the cost of each.

    Args:
        weight_OD: weights of O outputs.
        h_DD: dampened second moments of the inputs, float64.
        n_of_m: only weights that n-of-m sparsity allows to drop. None: all.

    Returns:
        Indices and costs, both of shape (O, steps). steps is D, or D / m * (m - n) with n_of_m. A cost is in units of
        dw @ h @ dw, given that all weights before it were dropped and the others updated.

    Source: Frantar et al. 2022, arXiv:2208.11580, algorithm 1.
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


def cheapest_mask(order: Tensor, cost: Tensor, width: int, count: int) -> Tensor:
    """Return the mask that drops `count` weights over all outputs where that costs least.

    Within an output, weights are dropped in its order: a cheap one that comes after an expensive one waits for it.

    Args:
        order: of `greedy_order`, shape (O, steps).
        cost: of `greedy_order`, shape (O, steps).
        width: number of inputs, D.
        count: weights to drop in all.

    Returns:
        Bool tensor of shape (O, D); True keeps.
    """
    waiting = cost.cummax(1).values
    taken = torch.zeros(waiting.numel(), dtype=torch.bool, device=cost.device)
    taken[waiting.flatten().argsort(stable=True)[:count]] = True
    taken = taken.view(order.shape)
    keep = torch.ones(len(order), width, dtype=torch.bool, device=order.device)
    return keep.scatter(1, order, ~taken)


def least_squares_weights(weight_OD: Tensor, mask_OD: Tensor, h_DD: Tensor) -> Tensor:
    """Return the kept weights that change every output least: minimize (v - w) @ h @ (v - w), v zero where masked.

    Args:
        weight_OD: weights w before pruning.
        mask_OD: bool; True keeps.
        h_DD: dampened second moments of the inputs, float64.

    Returns:
        Shape (O, D), float64.
    """
    parts = []
    eye_DD = torch.eye(len(h_DD), dtype=h_DD.dtype, device=h_DD.device)
    rows = max(ROWS_BYTES // (8 * len(h_DD) ** 2), 1)
    for w_RD, keep_RD in zip(torch.split(weight_OD.double(), rows), torch.split(mask_OD, rows)):
        kept_RDD = torch.where(keep_RD[:, :, None] & keep_RD[:, None], h_DD, eye_DD)
        target_RD = (w_RD @ h_DD).where(keep_RD, 0.0)
        parts.append(torch.linalg.solve(kept_RDD, target_RD[..., None])[..., 0])
    return torch.cat(parts).where(mask_OD, 0.0)


def exact(weight_GOD: Tensor, h_GDD: Tensor, count: int, n_of_m: Kept | None = None) -> Pruned:
    """Prune by the greedy choice over all groups together, then solve least squares (ExactOBS).

    Args:
        weight_GOD: weights by group of the convolution, output and input.
        h_GDD: dampened second moments of each group's inputs, float64.
        count: weights to drop in all. Weights that are zero already are dropped first.
        n_of_m: keep n of every m inputs instead.

    Returns:
        The new weights and the mask, both of shape (G, O, D).

    Source: Frantar et al. 2022, arXiv:2208.11580, algorithm 1.
    """
    groups, rows, width = weight_GOD.shape
    orders, costs = zip(*(greedy_order(w_OD, h_DD, n_of_m) for w_OD, h_DD in zip(weight_GOD, h_GDD)))
    order, cost = torch.cat(orders), torch.cat(costs)
    count = order.numel() if n_of_m else max(count, int((weight_GOD == 0).sum()))
    mask_GOD = cheapest_mask(order, cost, width, count).view(groups, rows, width) & (weight_GOD != 0)
    fitted = [least_squares_weights(w_OD, mask_OD, h_DD) for w_OD, mask_OD, h_DD in zip(weight_GOD, mask_GOD, h_GDD)]
    return torch.stack(fitted), mask_GOD


def one_shot(weight_OD: Tensor, h_DD: Tensor, count: int, n_of_m: Kept | None = None, block: int = 128) -> Pruned:
    """Prune in one pass over the inputs (SparseGPT).

    Errors update the weights of later inputs. Those of later blocks are updated together at the end of a block, which
    only saves time.

    Args:
        weight_OD: weights of O outputs.
        h_DD: dampened second moments of the inputs, float64.
        count: weights to drop in all; every block drops its part when the pass comes to it.
        n_of_m: keep n of every m inputs instead.
        block: inputs in a block.

    Returns:
        The new weights and the mask, both of shape (O, D).

    Source: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1.
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
    """Layer-wise pruning with reconstruction: OBC (Frantar et al. 2022) or SparseGPT. Give `sparsity` or `n_of_m`.

    Args:
        sparsity: fraction of zeros in every selected layer, in (0, 1).
        n_of_m: (n, m): keep n of every m consecutive inputs.
        solver: "exact" (OBC) for small layers, "one_shot" (SparseGPT) for large ones. "auto" chooses by size, and
            solves least squares after the one pass where that takes seconds.
        batches: batches of calibration data.
        dampening: fraction of the mean diagonal of H that is added to its diagonal, in [0, 10].
        block: inputs that "one_shot" treats together; a multiple of m.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: neither or both of sparsity and n_of_m are given, or they do not fit a layer.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.LayerwisePruning(sparsity=0.5, layers=("fc1",))
        >>> pruned, edits = method(model, task)
        >>> int((pruned.fc1.weight == 0).sum()), pruned.fc1.weight.numel()
        (128, 256)
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
            note_edits(model, result, [name], context, self.name(), EditKind.ASSIGN)
            model = result
        return model

    def solve(self, weight: Tensor, h_GDD: Tensor, groups: int) -> Pruned:
        """Prune one layer.

        Args:
            weight: shape (O, I / groups, ...).
            h_GDD: second moments of each group's inputs, in the order of `weight.flatten(1)`.
            groups: of the convolution; 1 for linear layers.

        Returns:
            The new weight and its mask, both of the weight's shape.

        Raises:
            BadInput: the number of inputs is not a multiple of m, or the layer received only zeros.
        """
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
            if self.solver == "auto" and operations <= SOLVE_OPERATIONS:
                value = torch.stack([least_squares_weights(*part) for part in zip(w_GOD, mask, h_GDD)])
        back = order.argsort()
        return value[..., back].to(weight.dtype).view_as(weight), mask[..., back].view_as(weight)
