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
from torch import Tensor

from gossamer.core.validation import Range
from gossamer.gsr.format.generated import rows_of
from gossamer.methods._base import Settings
from gossamer.methods.share._clusters import cluster_vectors
from gossamer.methods.share._decoded import Residual, ShareVectors


def residual_rate(m: int, n: int, entries: int, stages: int) -> float:
    """Dense float32 bits over the bits of the codebooks and indices of an (m, n) matrix."""
    return 32 * m * n / (stages * (32 * entries * n + m * math.log2(entries)))


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
class ResidualQuantization(ShareVectors):
    """entries: K rows in each stage's codebook. layers, ignore: patterns."""

    example: ClassVar[Settings] = {"entries": 8, "stages": 3}

    entries: Annotated[int, Range(1, 65_536)] = 16
    stages: Annotated[int, Range(1, 64)] = 2

    def code(self, weight: Tensor, generator: torch.Generator) -> Residual:
        return residual_code(weight, self.entries, self.stages, generator)
