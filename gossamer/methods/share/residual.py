"""Residual quantization (RQ): share whole rows of weights as sums of rows from several codebooks.

What it does: clusters the rows of a weight (for convolutions: the input channels of every filter and kernel position),
then the residuals, and so on. Each row is constrained to the sum of its centers. Later training moves the centers.
Weights that are zero stay zero.
Cost: `stages` times `restarts` times k-means of whole rows. Each stage stores K rows: only layers with many more rows
become smaller.
When it fails: rows of trained layers are rarely similar; the source itself finds product quantization better.
Equation: w_r ~ sum_t c_t[i_t(r)]; rate 32 m n / (t (32 k n + m log2 k)).
Source: Gong et al. 2014, arXiv:1412.6115, section 3.3.
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
from gossamer.methods.share._decoded import ResidualCodebooks, ShareVectors


def residual_rate(m: int, n: int, entries: int, stages: int) -> float:
    """Return the compression ratio of residual quantization of an (m, n) matrix: float32 bits over stored bits.

    Source: Gong et al. 2014, arXiv:1412.6115, section 3.3.
    """
    return 32 * m * n / (stages * (32 * entries * n + m * math.log2(entries)))


def residual_code(
    weight: Tensor, entries: int, stages: int, generator: torch.Generator, *, restarts: int = 1
) -> ResidualCodebooks:
    """Return the residual quantization of one weight as a constraint. No stage increases the squared error.

    Args:
        weight: shape (O, I, ...).
        entries: rows in each stage's codebook, K.
        stages: number of codebooks.
        generator: for the start of k-means.
        restarts: runs of k-means for each stage, of which the best counts.
    """
    left, codebooks, indices = rows_of(weight.detach()), [], []
    for _ in range(stages):
        c, i = cluster_vectors(left[None], entries, generator, restarts=restarts)
        left = left - c[0][i[0]]
        codebooks.append(c[0])
        indices.append(i[0])
    return ResidualCodebooks(weight, torch.stack(codebooks), torch.stack(indices))


@dataclass(frozen=True, kw_only=True)
class ResidualQuantization(ShareVectors):
    """Residual quantization (Gong et al. 2014).

    Args:
        entries: rows in each stage's codebook, K, in [1, 65536].
        stages: number of codebooks, in [1, 64].
        restarts: runs of k-means for each stage, of which the best counts, in [1, 1000]; the time is proportional.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(8, 64)
        >>> shared, edits = gossamer.methods.share.ResidualQuantization(entries=4, stages=2)(model)
        >>> len(shared.weight.unique(dim=0)) <= 16
        True
    """

    example: ClassVar[Settings] = {"entries": 8, "stages": 3}

    entries: Annotated[int, Range(1, 65_536)] = 16
    stages: Annotated[int, Range(1, 64)] = 2
    restarts: Annotated[int, Range(1, 1000)] = 5

    def code(self, weight: Tensor, generator: torch.Generator) -> ResidualCodebooks:
        return residual_code(weight, self.entries, self.stages, generator, restarts=self.restarts)
