"""Rate-constrained quantization (entropy-constrained): train the network into a compact file of a given size.

What it does: puts all weights on grids with trained step sizes, and adds to the loss the estimated code length of the
integers under an adaptive entropy coder, times a Lagrange multiplier. The multiplier is adjusted until the file has the
requested size. It decides which weights become zero, which rows are removed, and how fine the grid of each layer is.
Batch norms are folded into two vectors, and vectors are put on grids as well.
Cost: a training of the network, with one forward pass of the teacher per batch.
When it fails: a size that is too small for the network costs accuracy. The size itself is nearly always reached.
Equation: min loss + rate * sum_i length(q_i), w_i = step * q_i; length(0) = -log(1 - d_i), length(q) = -log d_i + log 2
+ |q| - 1 geometric, d_i = row density * column density / density of the tensor.
Source: entropy-constrained quantization, Choi et al. 2017, arXiv:1612.01543, section 4, by gradient descent as in Oktay
et al. 2020, arXiv:1906.06624, with the densities that an adaptive coder estimates instead of a learned model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import nn

from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.writing import Captured, storable_graph, stored_bytes
from gossamer.constraints.apply import constrain, constrained_stacks, constraints, finalize, materialize
from gossamer.constraints.grid import Grid
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.batches import as_inputs
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods._training import Retrain
from gossamer.modules.cost import dense_bytes
from gossamer.train.hyperparameters import Training
from gossamer.train.length_price import Rate, RateGrid

VECTOR_BITS = 8
WORTH = 6.0  # bits that a weight is thought to save when it becomes zero


def file_bytes(model: nn.Module, task: Task | None = None) -> int:
    """Return the size of the network as a compact file, in bytes.

    Args:
        model: is not changed.
        task: whose example inputs give the graph, which is stored as well where a file can hold it. None: no graph.
    """
    return _size(model, _graph(model, task) if task else None)


def least_bytes(model: nn.Module, task: Task, layers: Sequence[str] = ("*",), ignore: Sequence[str] = ()) -> int:
    """Return the size of the file if all selected weights were zero, in bytes: no training makes it smaller."""
    return _least(model, list(weights_of(model, layers, ignore, every=True)), _graph(model, task))


def _least(model: nn.Module, names: list[str], graph: Captured | None) -> int:
    return _size(_zeroed(model, names), graph)


def _graph(model: nn.Module, task: Task) -> Captured | None:
    """The graph of its file, which is the same for all weights; to find it takes longer than all else of the file."""
    return storable_graph(shortened(model), as_inputs(task.example_inputs, "the graph of a file"))


def _size(model: nn.Module, graph: Captured | None) -> int:
    return stored_bytes(shortened(model), graph)


def shortened(model: nn.Module) -> nn.Module:
    """Return an unconstrained copy with folded batch norms and all vectors on 8-bit grids."""
    return materialize(on_grids(fold_batch_norm(model)))


def on_grids(model: nn.Module) -> nn.Module:
    """Return a copy in which all unconstrained parameters are on 8-bit grids, each tensor with its own step."""
    held = {id(p) for stack in constrained_stacks(model).values() for p in stack.parameters()}
    steps = {}
    for name, p in model.named_parameters():
        if id(p) not in held and p.is_floating_point() and float(p.detach().abs().max()) > 0:
            high = 2 ** (VECTOR_BITS - 1) - 1
            step = short(float(p.detach().abs().max()) / high)
            steps[name] = Grid(step, -high - 1, high)
    return constrain(model, steps) if steps else model


def short(step: float) -> float:
    """Return the next number that is not below `step` and that bfloat16 represents: it is stored in two bytes."""
    up = step * (1 + 2**-8)
    return float(torch.tensor(up).to(torch.bfloat16))


@dataclass(frozen=True, kw_only=True)
class RateConstrainedQuantization(Retrain):
    """Training into a file of a given size (Choi et al. 2017; Oktay et al. 2020). The optimizer is AdamW.

    Args:
        compression_ratio: bytes of the original in float32 over bytes of the whole compact file, > 1.
        step: initial step of the grids, in standard deviations of the weights, in (0, 100].
        ramp: fraction of the training, in (0, 1], in which the size is reduced to its goal.
        layers: names or patterns of the layers to quantize, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave out.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Raises:
        BadInput: the file would be larger than requested even without the weights.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> method = gossamer.methods.quantize.RateConstrainedQuantization(compression_ratio=1.2, epochs=1, lr=0.01)
        >>> small, edits = method(model, gossamer.data.tiny_task())
        >>> str(edits[0].kind), edits[0].target
        ('constrain', '1.weight')
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    usual_epochs: ClassVar[int] = 30
    example: ClassVar[Settings] = {"compression_ratio": 2.5, "epochs": 1}

    compression_ratio: Annotated[float, Range(1, 1e6, open_=("low",))]
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    temperature: Annotated[float, Range(0, 1000, open_=("low",))] = 2.0
    alpha: Annotated[float, Range(0, 1)] = 0.3
    step: Annotated[float, Range(0, 100, open_=("low",))] = 0.7
    ramp: Annotated[float, Range(0, 1, open_=("low",))] = 0.6
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def training(self, task: Task) -> Training:
        return replace(super().training(task), optimizer="adamw")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        names = list(weights_of(model, self.layers, self.ignore, every=True))
        graph = _graph(model, task)
        least = _least(model, names, graph)
        wanted = (
            dense_bytes(context.original if context.original is not None else materialize(model))
            / self.compression_ratio
        )
        if wanted <= least:
            raise BadInput(
                f"{self.name()}: compression_ratio = {self.compression_ratio:g}: a file of {wanted:,.0f} bytes, but "
                f"without the weights it would already have {least:,}; ask for less, or cut the network down first"
            )
        grids = {}
        for name in names:
            w = effective_weight(model, name)
            spread = float(w[w != 0].std()) if int((w != 0).sum()) > 1 else 1.0
            grids[name] = RateGrid(w, self.step * (spread if math.isfinite(spread) and spread > 0 else 1.0))
        constrained = constrain(model, grids)
        more = _size(constrained, graph) - _size(constrained, None)
        trained = _trim(self._train(constrained, more, least, wanted, task, context), names, wanted, graph)
        for name in names:
            w = effective_weight(trained, name)
            after = f"{len(torch.unique(w))} values, {int((w == 0).sum()):,} zeros"
            self.note(context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=after)
        return trained

    def _train(
        self, network: nn.Module, graph: int, least: int, wanted: float, task: Task, context: Context
    ) -> nn.Module:
        """Train a constrained network in place.

        Args:
            network: with grids on its weights.
            graph: bytes of the graph alone.
            least: bytes of the file without the selected weights.
            wanted: bytes of the file.
            task: data and loss.
            context: of the training.
        """

        def size(model: nn.Module) -> int:
            return _size(Rate.leave(copy_network(model)), None) + graph - least

        rate = Rate(network, wanted - least, self.ramp, size)
        try:
            self.train(network, task, context, loss_terms=[rate], after_step=rate.after_step)
        finally:
            Rate.leave(network)
        return on_grids(fold_batch_norm(finalize(network)))


def trimmed(model: nn.Module, names: list[str], wanted: float, task: Task) -> nn.Module:
    """Return a copy whose file is not larger than `wanted` bytes.

    Where the training ended above it, the weights nearest to zero are set to zero, a few at a time.

    Args:
        model: with a grid as the last constraint of the named weights.
        names: of the weights ("conv1.weight").
        wanted: bytes.
        task: gives the graph of the file.
    """
    return _trim(model, names, wanted, _graph(model, task))


@torch.no_grad()
def _trim(model: nn.Module, names: list[str], wanted: float, graph: Captured | None) -> nn.Module:
    model = copy_network(model)
    stacks, raws = constraints(model), weights_of(model, every=True)
    while (over := _size(model, graph) - wanted) > 0:
        distance = {}
        for name in names:
            [*_, grid] = stacks[name]
            assert isinstance(grid, Grid)
            distance[name] = (raws[name] / grid.scale).abs().masked_fill(effective_weight(model, name) == 0, math.inf)
        every = torch.cat([d.flatten() for d in distance.values()])
        count = min(max(1, int(over * 8 / WORTH)), int(every.isfinite().sum()))
        limit = every.kthvalue(count).values if count else math.inf
        for name, d in distance.items():
            raws[name].masked_fill_(d <= limit, 0.0)
        if not count:
            break
    return model


def _zeroed(model: nn.Module, names: list[str]) -> nn.Module:
    """Return an unconstrained copy in which these weights are zero."""
    plain = materialize(model)
    with torch.no_grad():
        for name in names:
            plain.get_parameter(name).zero_()
    return plain
