"""Constraints that decode a whole weight from a few stored numbers; shared by several methods."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import Codebook, joint_codebook, take_entries, users_of
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.gsr.format.generated import GeneratedWeight, Rule, sum_in_order, weight_of
from gossamer.methods._base import Method
from gossamer.methods.share._clusters import nearest_center

Books = Literal["network", "layer"]


class Decoded(Constraint):
    """A constraint whose effective weight is `decode()`; the raw weight is not used and gets no gradient.

    Attributes:
        keep: bool of the weight's shape, False where the weight was zero and stays zero; None if it had no zeros.
    """

    keep: Tensor | None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        keep = weight.detach() != 0
        self.register_buffer("keep", None if bool(keep.all()) else keep)

    def decode(self) -> Tensor:
        """Return the decoded values, as many as the weight has."""
        raise NotImplementedError(type(self).__name__)

    def forward(self, weight: Tensor) -> Tensor:
        value = self.decode().view(weight.shape)
        return value if self.keep is None else value.where(self.keep, 0.0)

    def generated(self) -> GeneratedWeight:
        raise NotImplementedError(type(self).__name__)


def blocks_of(rows_RI: Tensor, width: int) -> Tensor:
    """Cut rows into blocks of neighbouring columns.

    Args:
        rows_RI: R rows of I columns.
        width: columns in a block; at most I are used.

    Returns:
        Shape (M, R, d), d = min(width, I); the last block is padded with zeros.
    """
    count, columns = rows_RI.shape
    width = min(width, columns)
    padded = nn.functional.pad(rows_RI, (0, -columns % width))
    return padded.view(count, -1, width).movedim(0, 1)


class Vectors(Decoded):
    """A weight that a rule assembles from codebook vectors.

    The gradient of an entry is the mean over the places that use it, so that learning rates for single weights fit.

    Args:
        weight: shape (O, I, ...); its R rows are those of `rows_of`.
        codebook_MKD: M trained codebooks of K vectors.
        indices_MR: the entry of each codebook and row.
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
        """Return indices into all entries of all codebooks, shape (M R,)."""
        sets, entries, _ = self.codebook.shape
        first = entries * torch.arange(sets, device=self.indices.device, dtype=torch.int32)[:, None]
        return (self.indices + first).flatten()

    def vectors(self) -> Tensor:
        """Return the vectors of the indices, shape (M, R, d)."""
        sets, _, width = self.codebook.shape
        return take_entries(self.codebook.flatten(0, 1), self.places(), self.users).view(sets, -1, width)

    def description(self) -> str:
        """Describe what is stored, for the log."""
        sets, entries, width = self.codebook.shape
        return f"{sets} codebooks of {entries} vectors of {width}"

    def generated(self) -> GeneratedWeight:
        numbers = self.codebook.detach()
        return GeneratedWeight(rule=self.rule, shape=self.shape, numbers=numbers, indices=self.indices, keep=self.keep)


class Product(Vectors):
    """Product code: row r of the weight is the concatenation over m of codebook[m, indices[m, r]], cut to its
    length.
    """

    rule: ClassVar[Rule] = Rule.PRODUCT

    def decode(self) -> Tensor:
        return weight_of(self.vectors().movedim(0, 1).flatten(1)[:, : self.shape[1]], self.shape)


class ResidualCodebooks(Vectors):
    """Residual code: row r of the weight is the sum over m of codebook[m, indices[m, r]]."""

    rule: ClassVar[Rule] = Rule.RESIDUAL

    def decode(self) -> Tensor:
        return weight_of(sum_in_order(self.vectors()), self.shape)


@dataclass(frozen=True, kw_only=True)
class ShareVectors(Method):
    """Base of the methods that constrain each weight to vectors from codebooks.

    Args:
        entries: vectors in each codebook, K, in [1, 65536].
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
    """

    stage: ClassVar[int | None] = 60

    entries: Annotated[int, Range(1, 65_536)]
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    @abstractmethod
    def code(self, weight: Tensor, generator: torch.Generator) -> Vectors:
        """Return the constraint of one weight, shape (O, I, ...)."""

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return a copy in which the selected weights are constrained."""
        generator = torch.Generator().manual_seed(context.seed)
        codes, names = {}, list(weights_of(model, self.layers, self.ignore))
        for name in context.progress.bar(names, label=self.name(), total=len(names)):
            w = effective_weight(model, name)
            codes[name] = self.code(w, generator)
            self.note(
                context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=codes[name].description()
            )
        return constrain(model, codes)


def groups(names: Iterable[str], codebook: Books) -> list[list[str]]:
    """Return the lists of weights that share a codebook: all of them ("network"), or each alone ("layer")."""
    return [list(names)] if codebook == "network" else [[name] for name in names]


def shared_values(weights: Mapping[str, Tensor], centers: Tensor, *, mean: bool = True) -> dict[str, Codebook]:
    """Constrain every weight to its nearest center; zeros get an entry 0 of their own.

    Args:
        weights: by name, of any shapes.
        centers: shape (K,).
        mean: as in `Codebook`: gradients of entries are means, not sums.

    Returns:
        The constraints by name, which share one codebook.
    """
    centers = centers.sort().values
    zeros = {name: w.detach() == 0 for name, w in weights.items()}
    if not any(bool(zero.any()) for zero in zeros.values()):
        return joint_codebooks(centers, {name: nearest_center(w, centers) for name, w in weights.items()}, mean=mean)
    indices = {
        name: (1 + nearest_center(w, centers) if len(centers) else torch.zeros_like(w, dtype=torch.int64)).masked_fill(
            zeros[name], 0
        )
        for name, w in weights.items()
    }
    return joint_codebooks(torch.cat([centers.new_zeros(1), centers]), indices, mean=mean)


def joint_codebooks(codebook: Tensor, indices: Mapping[str, Tensor], *, mean: bool = True) -> dict[str, Codebook]:
    """Return the constraints of several weights to entries of one codebook.

    Args:
        codebook: shape (K,).
        indices: by name, of the weights' shapes.
        mean: as in `Codebook`: gradients of entries are means, not sums.
    """
    if len(indices) > 1:
        return joint_codebook(codebook, indices, mean=mean)
    return {name: Codebook(codebook, one, mean=mean) for name, one in indices.items()}
