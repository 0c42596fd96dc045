"""Product quantization (PQ): share short vectors of weights from codebooks.

What it does: cuts the input channels into blocks of a few neighbours, clusters the vectors of every block over all rows
(for convolutions: over all filters and kernel positions), and constrains each vector to its center. Later training
moves the centers. Weights that are zero stay zero.
Cost: `restarts` times k-means for each block. The file stores log2 K bits for d weights, and K d numbers for each
block's codebook: small layers do not pay, because the codebooks are as large as the weights.
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
    """Return the compression ratio of product quantization of an (m, n) matrix: float32 bits over stored bits.

    Source: Gong et al. 2014, arXiv:1412.6115, section 3.2.
    """
    return 32 * m * n / (32 * entries * n + m * blocks * math.log2(entries))


def scalar_rate(m: int, n: int, entries: int) -> float:
    """Return the compression ratio of scalar k-means of an (m, n) matrix: float32 bits over stored bits."""
    return 32 * m * n / (32 * entries + m * n * math.log2(entries))


def product_code(weight: Tensor, width: int, entries: int, generator: torch.Generator, *, restarts: int = 1) -> Product:
    """Return the product quantization of one weight as a constraint.

    Args:
        weight: shape (O, I, ...).
        width: neighbouring input channels in a vector, d.
        entries: vectors in a block's codebook, K.
        generator: for the start of k-means.
        restarts: runs of k-means for each block, of which the best counts.
    """
    blocks = blocks_of(rows_of(weight.detach()), width)
    codebook, indices = cluster_vectors(blocks, entries, generator, restarts=restarts)
    return Product(weight, codebook, indices)


@dataclass(frozen=True, kw_only=True)
class ProductQuantization(ShareVectors):
    """Product quantization (Gong et al. 2014).

    Args:
        width: neighbouring input channels in a vector, d, in [1, 4096].
        entries: vectors in each block's codebook, K, in [1, 65536].
        restarts: runs of k-means for each block, of which the best counts, in [1, 1000]; the time is proportional.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(8, 64)
        >>> shared, edits = gossamer.methods.share.ProductQuantization(width=4, entries=16)(model)
        >>> len(shared.weight[:, :4].unique(dim=0)) <= 16
        True
    """

    example: ClassVar[Settings] = {"width": 2, "entries": 16}

    width: Annotated[int, Range(1, 4096)] = 4
    entries: Annotated[int, Range(1, 65_536)] = 32
    restarts: Annotated[int, Range(1, 1000)] = 5

    def code(self, weight: Tensor, generator: torch.Generator) -> Product:
        return product_code(weight, self.width, self.entries, generator, restarts=self.restarts)
