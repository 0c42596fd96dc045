"""Constraints that make a whole weight from a few stored numbers; what several methods share."""

import torch
from torch import Tensor, nn

from gossamer.methods.share.clusters import nearest
from gossamer.network import Codebook, Constraint
from gossamer.network.constrain import take, users_of
from gossamer.network.made import Made, Rule, weight_of


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

    def made(self) -> Made:
        raise NotImplementedError(type(self).__name__)


def blocks_of(rows_RI: Tensor, width: int) -> Tensor:
    """(M, R, d): rows cut into M parts of d = min(width, I) neighbouring columns, the last one filled up with zeros."""
    count, columns = rows_RI.shape
    width = min(width, columns)
    padded = nn.functional.pad(rows_RI, (0, -columns % width))
    return padded.view(count, -1, width).movedim(0, 1)


class Product(Decoded):
    """Row r, block m of the weight (see `rows_of`) is codebook[m, indices[m, r]]; a (M, K, d) codebook is trained.

    Gradients are means over the users, so that learning rates for single weights fit.
    """

    indices: Tensor
    users: Tensor

    def __init__(self, weight: Tensor, codebook_MKD: Tensor, indices_MR: Tensor) -> None:
        super().__init__(weight)
        self.shape = tuple(weight.shape)
        self.codebook = nn.Parameter(codebook_MKD.detach().clone())
        self.register_buffer("indices", indices_MR.detach().int())
        self.register_buffer("users", users_of(self.places(), codebook_MKD.shape[:2].numel()))

    def places(self) -> Tensor:
        """Indices into all entries of all blocks, (M R,)."""
        sets, entries, _ = self.codebook.shape
        first = entries * torch.arange(sets, device=self.indices.device, dtype=torch.int32)[:, None]
        return (self.indices + first).flatten()

    def decode(self) -> Tensor:
        sets, _, width = self.codebook.shape
        blocks = take(self.codebook.flatten(0, 1), self.places(), self.users).view(sets, -1, width)
        return weight_of(blocks.movedim(0, 1).flatten(1)[:, : self.shape[1]], self.shape)

    def made(self) -> Made:
        numbers = self.codebook.detach()
        return Made(rule=Rule.PRODUCT, shape=self.shape, numbers=numbers, indices=self.indices, keep=self.keep)


def shared_values(weight: Tensor, centers: Tensor, *, mean: bool = True) -> Codebook:
    """Every weight at its nearest center; weights that are zero at an entry 0 of their own. mean: as in `Codebook`."""
    centers = centers.sort().values
    zero = weight.detach() == 0
    if not bool(zero.any()):
        return Codebook(centers, nearest(weight, centers), mean=mean)
    indices = 1 + nearest(weight, centers) if len(centers) else torch.zeros_like(weight, dtype=torch.int64)
    return Codebook(torch.cat([centers.new_zeros(1), centers]), indices.masked_fill(zero, 0), mean=mean)
