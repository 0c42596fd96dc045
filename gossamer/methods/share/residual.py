"""Let whole rows of weights be sums of a few shared rows: residual quantization.

What it does: clusters the rows of a weight (for convolutions: the input channels of every filter and position), then
the rows of what is left, and so on; each row is held at the sum of its centers. Training that follows moves the
centers. Weights that are zero stay zero.
Cost: `stages` times k-means of whole rows. Each stage stores K rows: only layers with many more rows get smaller.
When it fails: rows of trained layers have little in common; the source itself finds product quantization better.
Equation: w_r ~ sum_t c_t[i_t(r)]; rate 32 m n / (t (32 k n + m log2 k)).
Source: Gong et al. 2014, arXiv:1412.6115, section 3.3.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.methods.base import Method
from gossamer.methods.share.clusters import cluster_vectors
from gossamer.methods.share.decoded import Decoded
from gossamer.network import constrain, held_value, weights_of
from gossamer.network.constrain import take, users_of
from gossamer.network.made import Made, Rule, rows_of, sum_in_order, weight_of
from gossamer.ranges import Range
from gossamer.record import Edit
from gossamer.run import Run
from gossamer.task import Task


def residual_rate(m: int, n: int, entries: int, stages: int) -> float:
    """Dense float32 bits over the bits of the codebooks and indices of an (m, n) matrix."""
    return 32 * m * n / (stages * (32 * entries * n + m * math.log2(entries)))


class Residual(Decoded):
    """Row r of the weight (see `rows_of`) is the sum over t of codebook[t, indices[t, r]]; (T, K, I) is trained.

    Gradients are means over the users, so that learning rates for single weights fit.
    """

    indices: Tensor
    users: Tensor

    def __init__(self, weight: Tensor, codebook_TKI: Tensor, indices_TR: Tensor) -> None:
        super().__init__(weight)
        self.shape = tuple(weight.shape)
        self.codebook = nn.Parameter(codebook_TKI.detach().clone())
        self.register_buffer("indices", indices_TR.detach().int())
        self.register_buffer("users", torch.stack([users_of(i, codebook_TKI.shape[1]) for i in indices_TR]))

    def decode(self) -> Tensor:
        rows = torch.stack([take(c, i, n) for c, i, n in zip(self.codebook, self.indices, self.users)])
        return weight_of(sum_in_order(rows), self.shape)

    def made(self) -> Made:
        numbers = self.codebook.detach()
        return Made(rule=Rule.RESIDUAL, shape=self.shape, numbers=numbers, indices=self.indices, keep=self.keep)


def residual_code(weight: Tensor, entries: int, stages: int, generator: torch.Generator) -> Residual:
    """Residual quantization of one weight. The squared error falls, or stays, with every stage."""
    left, codebooks, indices = rows_of(weight.detach()), [], []
    for _ in range(stages):
        c, i = cluster_vectors(left[None], entries, generator)
        left = left - c[0][i[0]]
        codebooks.append(c[0])
        indices.append(i[0])
    return Residual(weight, torch.stack(codebooks), torch.stack(indices))


@dataclass(frozen=True, kw_only=True)
class ResidualQuantization(Method):
    """entries: K rows in each stage's codebook. layers, ignore: patterns."""

    stage: ClassVar[int | None] = 60

    entries: Annotated[int, Range(1, 65_536)] = 16
    stages: Annotated[int, Range(1, 64)] = 2
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        generator = torch.Generator().manual_seed(run.seed)
        held = {}
        for name in weights_of(model, self.layers, self.ignore):
            w = held_value(model, name)
            held[name] = residual_code(w, self.entries, self.stages, generator)
            stages, entries, width = held[name].codebook.shape
            after = f"{stages} codebooks of {entries} rows of {width}"
            before = f"{w.numel():,} weights"
            run.history.append(Edit(method=self.name(), kind="constrain", target=name, before=before, after=after))
        return constrain(model, held)
