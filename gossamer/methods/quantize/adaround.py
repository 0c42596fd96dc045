"""Adaptive rounding (AdaRound): learn on unlabelled data whether to round each weight up or down.

What it does: layer by layer, in the order of execution, learns the direction of rounding so that the layer's outputs
match those of the unquantized network, on inputs from the layers quantized before. Nothing else is trained.
Cost: two runs over the calibration data for every layer, then `iterations` products of a layer's weights with the
second moments of its inputs, and as many turns as it has inputs, each a column of these moments for every output.
When it fails: with fewer calibration samples than inputs of a layer; and at 2 or 3 bits, where only training helps.
Equation: min over V of |W Z - W' X|^2 + a sum(1 - |2h - 1|^b), W' = s clamp(floor(W/s) + h), h = clamp(1.2 sigmoid(V) -
0.1, 0, 1), b falling from 20 to 2. The learned, the nearest and the sequentially rounded codes are then improved by
turns of single weights as long as the error falls, and the best ones by turns of pairs: no output has a larger error
than nearest rounding gives it.
Source: Nagel et al. 2020, arXiv:2004.10568, equations 21 to 25, without the activation function; the turns are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.moments import call_order, moments
from gossamer.constraints.apply import constrain
from gossamer.constraints.grid import (
    Granularity,
    Grid,
    PerChannel,
    bits_by_layer,
    grid_dim,
    grid_scale,
    mse_scales,
    qmax,
    rows,
)
from gossamer.constraints.weights import TABLES, effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.assign import assign
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.quantize._rounding import (
    flip_pairs,
    flip_rounding,
    reconstruction_error,
    sequential_rounding,
)

PENALTY = 3.0  # of a weight that is halfway, against a reconstruction error in units of rounding noise
WARM_UP = 0.2  # share of the iterations without the penalty


def learn_rounding(
    weight_GOD: Tensor, scale_GOD: Tensor, high: int, same_GDD: Tensor, cross_GDD: Tensor, iterations: int
) -> Tensor:
    """Learn the direction of rounding of each weight.

    Args:
        weight_GOD: weights by group of the convolution, output and input.
        scale_GOD: step of the grid; broadcasts with the weight.
        high: largest code.
        same_GDD: X^T X, X the inputs of the quantized layer.
        cross_GDD: Z^T X, Z the inputs in the original network.
        iterations: steps of Adam.

    Returns:
        Codes of shape (G, O, D): integers in [-high, high], each floor(w / scale) or one above; 0 where a weight is
        zero.

    Source: Nagel et al. 2020, arXiv:2004.10568, equations 21 to 25.
    """
    ratio = weight_GOD / scale_GOD
    floor, used = ratio.floor(), weight_GOD != 0
    # Of the size of the error that rounding noise of variance scale^2 / 12 makes, shared among the weights.
    noise = scale_GOD.square() / 12 * same_GDD.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-30
    target_GOD = weight_GOD @ cross_GDD
    part = ((ratio - floor).clamp(0.01, 0.99) + 0.1) / 1.2
    logits = torch.logit(part).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    for step in range(iterations):
        h = (1.2 * logits.sigmoid() - 0.1).clamp(0, 1)
        value_GOD = scale_GOD * (floor + h).clamp(-high, high).where(used, 0.0)
        with torch.no_grad():
            slope_GOD = (value_GOD @ same_GDD - target_GOD) / noise
        loss = (slope_GOD * value_GOD).sum()
        done = (step / iterations - WARM_UP) / (1 - WARM_UP)
        if done > 0:
            loss = loss + PENALTY * (1 - (2 * h - 1).abs().pow(20 - 18 * done)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    codes = (floor + (logits.detach() >= 0)).clamp(-high, high)
    return codes.where(used, 0.0)


def best_rounding(
    weight_GOD: Tensor, scale_GOD: Tensor, high: int, same_GDD: Tensor, cross_GDD: Tensor, iterations: int
) -> Tensor:
    """Return for every output the best of the learned, the sequential and the nearest codes, after all turns.

    Arguments and result as of `learn_rounding`.
    """
    own = weight_GOD.dtype
    learned = learn_rounding(weight_GOD, scale_GOD, high, same_GDD.to(own), cross_GDD.to(own), iterations)
    nearest = (weight_GOD / scale_GOD).round().clamp(-high, high)
    found = sequential_rounding(weight_GOD, scale_GOD, high, same_GDD, cross_GDD).to(own)
    at = (weight_GOD, scale_GOD, high, same_GDD, cross_GDD)
    tried = torch.stack([flip_rounding(codes, *at) for codes in (learned, found, nearest)])
    errors = torch.stack(
        [reconstruction_error((scale_GOD * one).double(), weight_GOD.double(), same_GDD, cross_GDD) for one in tried]
    )
    best = tried.gather(0, errors.argmin(0)[None, ..., None].expand(1, *weight_GOD.shape))[0]
    return flip_pairs(best, *at)


@dataclass(frozen=True, kw_only=True)
class AdaRound(Method):
    """Adaptive rounding (Nagel et al. 2020).

    Args:
        bits: bits of a code, in [2, 8].
        granularity: one scale per tensor (`PerTensor`), per channel (`PerChannel`, the default) or per group
            (`PerGroup`).
        iterations: optimization steps for each layer.
        batches: batches of calibration data.
        layer_bits: other bits for some layers, by name or pattern, such as {"conv1": 8}.
        layers: names or patterns of the layers to quantize, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.quantize.AdaRound(bits=3, iterations=20, layers=("fc1",))
        >>> quantized, edits = method(model, task)
        >>> edits[0].after
        '7 values, 16 scales'
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    needs: ClassVar[Needs] = "samples"
    example: ClassVar[Settings] = {"bits": 3, "iterations": 20, "batches": 2}

    bits: Annotated[int, Range(2, 8)] = 4
    granularity: Granularity = field(default_factory=PerChannel)
    iterations: Annotated[int, Range(1, 1_000_000)] = 500
    batches: Annotated[int, Range(1, 100_000)] = 32
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        names = {layer_name(name): name for name in weights_of(model, self.layers, self.ignore, tables=True)}
        bits = bits_by_layer(names, self.bits, self.layer_bits)
        tables = [layer for layer in names if isinstance(model.get_submodule(layer), TABLES)]
        original = model
        model = self._tables(model, {layer: names[layer] for layer in tables}, bits, context)
        layers = [layer for layer in names if layer not in tables]
        order = call_order(model, task.example_inputs, layers) if layers else []
        for layer in context.progress.bar(order, label=self.name(), total=len(order)):
            same, cross = moments(model, original, [layer], task.calibration, self.batches)[layer]
            weight, high = effective_weight(original, names[layer]), qmax(bits[layer])
            groups = getattr(model.get_submodule(layer), "groups", 1)
            grid = self._grid(weight, high)
            scales = grid.scale
            shape = [-1 if d == grid.dim and scales.dim() else 1 for d in range(weight.dim())]
            scale = scales.view(shape).expand_as(weight)
            split = (groups, len(weight) // groups, -1)
            codes = best_rounding(weight.reshape(split), scale.reshape(split), high, same, cross, self.iterations)
            value = scale * codes.view_as(weight)
            model = constrain(assign(model, {names[layer]: value}), {names[layer]: grid})
            after = f"{2 * high + 1} values, {scales.numel()} scales"
            self.note(context, EditKind.ASSIGN, names[layer], before="32-bit floats", after=after)
        return model

    def _grid(self, weight: Tensor, high: int) -> Grid:
        """Of the least squared error."""
        scales = grid_scale(mse_scales(rows(weight, self.granularity), high), self.granularity)
        return Grid(scales, -high, high, dim=grid_dim(self.granularity))

    def _tables(
        self, model: nn.Module, names: Mapping[str, str], bits: Mapping[str, int], context: Context
    ) -> nn.Module:
        """Embeddings on their grids: a row is read alone, so that no weight can make up for another's rounding."""
        grids = {name: self._grid(effective_weight(model, name), qmax(bits[layer])) for layer, name in names.items()}
        for name, grid in grids.items():
            after = f"{2 * grid.qmax + 1} values, {grid.scale.numel()} scales"
            self.note(context, EditKind.ASSIGN, name, before="32-bit floats", after=after)
        return constrain(model, grids) if grids else model
