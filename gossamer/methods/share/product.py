"""Let short vectors of weights share entries of codebooks: product quantization.

What it does: cuts the input channels into blocks of a few neighbours, clusters the pieces of every block over all rows
(for convolutions: over all filters and positions), and holds each piece at its center. Training that follows moves the
centers. Weights that are zero stay zero.
Cost: k-means for each block. log2 K bits for d weights, and K d numbers for each block of the codebook: small layers
do not pay, because the codebooks are as large as the weights.
When it fails: without training, accuracy falls once d / log2 K is beyond about 1; `share.qcnn` corrects part of that.
Equation: W = [W_1 .. W_M], W_m ~ centers of its rows; rate 32 m n / (32 k n + m s log2 k) for s blocks.
Source: Gong et al. 2014, arXiv:1412.6115, section 3.2.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from gossamer.core.validation import Range
from gossamer.gsr.format.generated import rows_of
from gossamer.methods._base import Settings
from gossamer.methods.share._clusters import cluster_vectors
from gossamer.methods.share._decoded import Product, ShareVectors, blocks_of


def product_rate(m: int, n: int, entries: int, blocks: int) -> float:
    """Dense float32 bits over the bits of the codebooks and indices of an (m, n) matrix."""
    return 32 * m * n / (32 * entries * n + m * blocks * math.log2(entries))


def scalar_rate(m: int, n: int, entries: int) -> float:
    """The same for one value per weight."""
    return 32 * m * n / (32 * entries + m * n * math.log2(entries))


def product_code(weight: Tensor, width: int, entries: int, generator: torch.Generator) -> Product:
    """Product quantization of one weight."""
    codebook, indices = cluster_vectors(blocks_of(rows_of(weight.detach()), width), entries, generator)
    return Product(weight, codebook, indices)


@dataclass(frozen=True, kw_only=True)
class ProductQuantization(ShareVectors):
    """width: d, neighbouring input channels in a piece. entries: K of a block's codebook. layers, ignore: patterns."""

    example: ClassVar[Settings] = {"width": 2, "entries": 16}

    width: Annotated[int, Range(1, 4096)] = 4
    entries: Annotated[int, Range(1, 65_536)] = 32

    def code(self, weight: Tensor, generator: torch.Generator) -> Product:
        return product_code(weight, self.width, self.entries, generator)
