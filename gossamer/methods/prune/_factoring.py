"""Convolutions as chains of three thin ones while channels are chosen: k x 1, 1 x k, 1 x 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.calibration.moments import input_moments
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.methods._base import Method
from gossamer.methods.lowrank._alternating import along_rows
from gossamer.methods.lowrank._chain import (
    Calls,
    Count,
    Factor,
    chain_macs,
    chain_params,
    kernel_of,
    make_chain,
)
from gossamer.methods.lowrank._matrices import (
    best_last_factor,
    by_columns,
    channel_gram,
    energy_of,
    principal,
    split_matrix,
)
from gossamer.methods.lowrank._notes import describe_chain
from gossamer.methods.lowrank._ranks import Options, rank_grid, tails
from gossamer.methods.prune._selection import Between
from gossamer.train.batches import Replayed

BATCHES = 16  # of data for the second moments of one layer's inputs
Ranks = tuple[int, int]


def can_be_chained(layer: nn.Module) -> bool:
    """Return whether a layer is a 2-D convolution without groups whose kernel has two axes."""
    return type(layer) is nn.Conv2d and layer.groups == 1 and min(layer.kernel_size) > 1


def chain_of(inputs: int, outputs: int, ranks: Sequence[Count]) -> list[Factor]:
    """Return the three layers: vertical filters, horizontal filters, and a mix of what these give."""
    return [
        Factor(inputs=inputs, outputs=ranks[0], axes=(0,)),
        Factor(inputs=ranks[0], outputs=ranks[1], axes=(1,)),
        Factor(inputs=ranks[1], outputs=outputs),
    ]


def chain_options(layer: Layer, inputs: int, outputs: int, gram: Tensor, calls: Calls) -> Options:
    """Return what chains of all ranks cost and lose.

    Args:
        layer: the convolution before channels are chosen.
        inputs: channels that it will read.
        outputs: channels that it will make.
        gram: second moment of its inputs, shape (1, D, D).
        calls: sizes of its maps in a run.

    Returns:
        The options. What is lost is that of both steps alone, as if the one did not see the other.
    """
    weight = layer.weight.detach().double()[None]
    height, width = kernel_of(layer)
    metric = channel_gram(gram, weight.shape[2], (height, width), keep=(0,))
    lost = [
        tails(principal(matrix, moments)[1][0], float(energy_of(matrix, moments).sum()))
        for matrix, moments in ((by_columns(weight), metric), (weight.flatten(2), gram))
    ]
    ranks = rank_grid((min(inputs * height, outputs * width, len(lost[0]) - 1), min(outputs, len(lost[1]) - 1)))
    kernel, chain = kernel_of(layer), chain_of(inputs, outputs, ranks.unbind(1))
    dense = [Factor(inputs=inputs, outputs=outputs, axes=(0, 1))]
    return Options(
        ranks=ranks,
        macs=torch.as_tensor(chain_macs(chain, kernel, calls)),
        params=torch.as_tensor(chain_params(chain, kernel)),
        lost=1 - (1 - lost[0].cpu()[ranks[:, 0]]) * (1 - lost[1].cpu()[ranks[:, 1]]),
        dense_macs=int(chain_macs(dense, kernel, calls)),
        dense_params=int(chain_params(dense, kernel)),
    )


def three_factors(weight: Tensor, ranks: Ranks, gram: Tensor) -> list[Tensor]:
    """Return the weights of a chain that gives nearly the same outputs.

    Args:
        weight: shape (O, I, k, l), float64.
        ranks: vertical and horizontal filters.
        gram: second moment of the inputs, shape (1, I k l, I k l).

    Returns:
        Vertical (R, I, k, 1), horizontal (S, R, 1, l) and mixing weights (O, S, 1, 1). The horizontal filters and the
        mix are fitted to the outputs, given the vertical ones.
    """
    grouped, (height, width) = weight[None], weight.shape[2:]
    metric = channel_gram(gram, weight.shape[1], (height, width), keep=(0,))
    first, second = (min(r, most) for r, most in zip(ranks, (min(by_columns(grouped).shape[1:]), len(weight))))
    vertical = split_matrix(by_columns(grouped), first, metric)[1]
    rows = along_rows(vertical, width)
    _, horizontal = best_last_factor(grouped.flatten(2), [rows], gram)
    mix, thin = split_matrix(horizontal, second, rows @ gram @ rows.mT)
    return [
        vertical[0].reshape(first, -1, height, 1),
        thin[0].reshape(second, first, 1, width),
        mix[0].reshape(len(weight), second, 1, 1),
    ]


def dense_product(factors: Sequence[Tensor]) -> Tensor:
    """Return the weight (O, I, k, l) of the convolution that a chain is equal to."""
    vertical, thin, mix = (factor.squeeze(place) for factor, place in zip(factors, (3, 2, 3)))
    return torch.einsum("os,srl,rik->oikl", mix[..., 0], thin, vertical)


@dataclass(eq=False)
class Factoring(Between):
    """Factors each convolution once its inputs and outputs are chosen and its weights fitted; later layers are then
    fitted on what it really gives.

    Attributes:
        method: in whose name edits are noted.
        ranks: of the convolutions that become chains.
        task: data for the moments of their inputs.
        context: of the run.
        pending: convolutions that are not factored yet.
        factors: weights of the chains so far, for the channels that are not zero, and those channels.
    """

    method: Method
    ranks: Mapping[str, Ranks]
    task: Task
    context: Context
    pending: list[str]
    factors: dict[str, tuple[list[Tensor], Tensor, Tensor]] = field(default_factory=dict)
    refits = True

    def __call__(self, plain: nn.Module, layer: str) -> None:
        self._factor_pending(plain)
        if layer in self.ranks:
            self.pending.append(layer)

    @torch.no_grad()
    def _factor_pending(self, plain: nn.Module) -> None:
        for name in self.pending:
            layer: Any = plain.get_submodule(name)
            weight = layer.weight.double()
            made, read = (weight.abs().sum(dims) > 0 for dims in ((1, 2, 3), (0, 2, 3)))
            gram = input_moments(plain, [name], Replayed(self.task.train, self.context.seed), BATCHES)[name]
            columns = read.repeat_interleave(weight[0, 0].numel())
            factors = three_factors(weight[made][:, read], self.ranks[name], gram[:, columns][:, :, columns])
            weight[made.nonzero(), read.nonzero().T] = dense_product(factors)
            layer.weight.copy_(weight)
            self.factors[name] = factors, made, read
        self.pending.clear()

    @torch.no_grad()
    def finish(self, plain: nn.Module) -> nn.Module:
        """Return the network with the chains, whose weights are zero for channels that have gone."""
        self._factor_pending(plain)
        chains = {}
        for name, (factors, made, read) in self.factors.items():
            layer: Any = plain.get_submodule(name)
            vertical, thin, mix = factors
            first = vertical.new_zeros(len(vertical), len(read), *vertical.shape[2:])
            first[:, read] = vertical
            last = mix.new_zeros(len(made), *mix.shape[1:])
            last[made] = mix
            last *= (layer.weight.abs().sum((1, 2, 3)) > 0).view(-1, 1, 1, 1)  # outputs that went after it was factored
            counts = (len(vertical), len(thin))
            chains[name] = make_chain(layer, chain_of(len(read), len(made), counts), [first, thin, last])
            self.method.note(
                self.context,
                EditKind.SWAP,
                name,
                before=describe_chain(layer),
                after=f"{int(read.sum())} channels, {counts[0]} vertical and {counts[1]} horizontal filters, 1 x 1",
            )
        return swap(plain, chains) if chains else plain
