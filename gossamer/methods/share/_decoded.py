"""Constraints that make a whole weight from a few stored numbers; what several methods share."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.base import (
    Codebook,
    Constraint,
    constrain,
    effective_weight,
    joint_codebook,
    take,
    users_of,
    weights_of,
)
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.gsr.format.generated import GeneratedWeight, Rule, sum_in_order, weight_of
from gossamer.methods._base import Method
from gossamer.methods.share._clusters import nearest

Books = Literal["network", "layer"]


class Decoded(Constraint):
    """The held value is `decode()`, of the weight's shape; the raw weight is not used and gets no gradient.

    keep: bool of the weight's shape where the weight had zeros, which stay zero; None where it had none.
    """

    keep: Tensor | None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        keep = weight.detach() != 0
        self.register_buffer("keep", None if bool(keep.all()) else keep)

    def decode(self) -> Tensor:
        raise NotImplementedError(type(self).__name__)

    def forward(self, weight: Tensor) -> Tensor:
        value = self.decode().view(weight.shape)
        return value if self.keep is None else value.where(self.keep, 0.0)

    def made(self) -> GeneratedWeight:
        raise NotImplementedError(type(self).__name__)


def blocks_of(rows_RI: Tensor, width: int) -> Tensor:
    """(M, R, d): rows cut into M parts of d = min(width, I) neighbouring columns, the last one filled up with zeros."""
    count, columns = rows_RI.shape
    width = min(width, columns)
    padded = nn.functional.pad(rows_RI, (0, -columns % width))
    return padded.view(count, -1, width).movedim(0, 1)


class Vectors(Decoded):
    """The weight is made (`rule`) of vectors that indices (M, R) name in trained codebooks (M, K, d), for the R rows of
    `rows_of`.

    Gradients are means over the users, so that learning rates for single weights fit.
    """

    rule: ClassVar[Rule]
    indices: Tensor
    users: Tensor

    def __init__(self, weight: Tensor, codebook_MKD: Tensor, indices_MR: Tensor) -> None:
        super().__init__(weight)
        self.shape = tuple(weight.shape)
        self.codebook = nn.Parameter(codebook_MKD.detach().clone())
        self.register_buffer("indices", indices_MR.detach().int())
        self.register_buffer("users", users_of(self.places(), codebook_MKD.shape[:2].numel()))

    def places(self) -> Tensor:
        """Indices into all entries of all codebooks, (M R,)."""
        sets, entries, _ = self.codebook.shape
        first = entries * torch.arange(sets, device=self.indices.device, dtype=torch.int32)[:, None]
        return (self.indices + first).flatten()

    def vectors(self) -> Tensor:
        """What the indices name, (M, R, d)."""
        sets, _, width = self.codebook.shape
        return take(self.codebook.flatten(0, 1), self.places(), self.users).view(sets, -1, width)

    def said(self) -> str:
        """What is stored, for the history."""
        sets, entries, width = self.codebook.shape
        return f"{sets} codebooks of {entries} vectors of {width}"

    def made(self) -> GeneratedWeight:
        numbers = self.codebook.detach()
        return GeneratedWeight(rule=self.rule, shape=self.shape, numbers=numbers, indices=self.indices, keep=self.keep)


class Product(Vectors):
    """Row r of the weight is the concatenation over m of codebook[m, indices[m, r]], cut to its length."""

    rule: ClassVar[Rule] = Rule.PRODUCT

    def decode(self) -> Tensor:
        return weight_of(self.vectors().movedim(0, 1).flatten(1)[:, : self.shape[1]], self.shape)


class Residual(Vectors):
    """Row r of the weight is the sum over m of codebook[m, indices[m, r]]."""

    rule: ClassVar[Rule] = Rule.RESIDUAL

    def decode(self) -> Tensor:
        return weight_of(sum_in_order(self.vectors()), self.shape)


@dataclass(frozen=True, kw_only=True)
class ShareVectors(Method):
    """entries: K of every codebook. layers, ignore: patterns."""

    stage: ClassVar[int | None] = 60

    entries: Annotated[int, Range(1, 65_536)]
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    @abstractmethod
    def code(self, weight: Tensor, generator: torch.Generator) -> Vectors:
        """The weight made of vectors."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """A copy in which all these layers are held so."""
        generator = torch.Generator().manual_seed(context.seed)
        held = {}
        for name in weights_of(model, self.layers, self.ignore):
            w = effective_weight(model, name)
            held[name] = self.code(w, generator)
            self.note(context, "constrain", name, before=f"{w.numel():,} weights", after=held[name].said())
        return constrain(model, held)


def groups(names: Iterable[str], codebook: Books) -> list[list[str]]:
    """The weights that share a codebook."""
    return [list(names)] if codebook == "network" else [[name] for name in names]


def shared_values(weights: Mapping[str, Tensor], centers: Tensor, *, mean: bool = True) -> dict[str, Codebook]:
    """Every weight at its nearest center; weights that are zero at an entry 0 of their own. mean: as in `Codebook`."""
    centers = centers.sort().values
    zeros = {name: w.detach() == 0 for name, w in weights.items()}
    if not any(bool(zero.any()) for zero in zeros.values()):
        return held_together(centers, {name: nearest(w, centers) for name, w in weights.items()}, mean=mean)
    indices = {
        name: (1 + nearest(w, centers) if len(centers) else torch.zeros_like(w, dtype=torch.int64)).masked_fill(
            zeros[name], 0
        )
        for name, w in weights.items()
    }
    return held_together(torch.cat([centers.new_zeros(1), centers]), indices, mean=mean)


def held_together(codebook: Tensor, indices: Mapping[str, Tensor], *, mean: bool = True) -> dict[str, Codebook]:
    """Weights held at entries of one codebook."""
    if len(indices) > 1:
        return joint_codebook(codebook, indices, mean=mean)
    return {name: Codebook(codebook, one, mean=mean) for name, one in indices.items()}
