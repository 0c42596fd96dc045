"""Weights that a rule generates from fewer numbers: for some constraints, and in compact files."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, ...]
BLOCK = 1 << 20  # elements that are generated at once


class Rule(IntEnum):
    """How a weight is generated; the numbers are those of the compact file."""

    HASHED = 0  # numbers (K,): the hash of an element's place chooses one of them, or its negative
    PRODUCT = 1  # numbers (M, K, d): block m of row r is entry indices[m, r] of codebook m
    RESIDUAL = 2  # numbers (T, K, I): row r is the sum over t of entry indices[t, r] of codebook t


@dataclass(frozen=True, kw_only=True)
class GeneratedWeight:
    """A float32 weight of this shape and all that is needed to make it. indices: integers (M or T, rows), None for
    HASHED; rows and columns are those of `rows_of`. seed: of HASHED, below 2^63. keep: bool of the weight's shape, the
    other elements are 0; None keeps all."""

    rule: Rule
    shape: Shape
    numbers: Tensor
    indices: Tensor | None = None
    seed: int = 0
    keep: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What a file stores of it: numbers, indices, keep."""
        return self.numbers, self.indices, self.keep

    def weight(self) -> Tensor:
        """The weight; every machine gives the same bits. Raises IndexError for indices outside the codebooks.

        Beside the weight only blocks of it take memory, at the least those of one row.
        """
        if self.rule == Rule.HASHED:
            flat = torch.empty(math.prod(self.shape))
            for at in range(0, len(flat), BLOCK):
                buckets, signs = _hashed(at, min(BLOCK, len(flat) - at), len(self.numbers), self.seed)
                flat[at : at + BLOCK] = self.numbers[torch.from_numpy(buckets)] * torch.from_numpy(signs)
            found = flat.view(self.shape)
        else:
            rows = torch.empty(math.prod(self.shape) // self.shape[1], self.shape[1])
            high = max(1, BLOCK // self.shape[1])
            for at in range(0, len(rows), high):
                rows[at : at + high] = self._rows(slice(at, at + high))
            found = weight_of(rows, self.shape)
        return found if self.keep is None else found.masked_fill_(~self.keep, 0.0)

    def _rows(self, some: slice) -> Tensor:
        """Some rows of the weight, as `rows_of` has them."""
        assert self.indices is not None
        indices = self.indices[:, some].long()
        if self.rule == Rule.RESIDUAL:
            return sum_in_order(book[index] for book, index in zip(self.numbers, indices))
        blocks = self.numbers[torch.arange(len(indices))[:, None], indices]
        return blocks.movedim(0, 1).flatten(1)[:, : self.shape[1]]


def misfit(rule: Rule, shape: Shape, numbers: Shape, indices: Shape | None) -> str:
    """Why the rule cannot generate a weight of this shape from parts of these shapes, or an empty text."""
    if rule == Rule.HASHED:
        return "" if len(numbers) == 1 and indices is None else "it is hashed, but not into a row of values"
    if len(shape) < 2 or len(numbers) != 3 or indices is None or 0 in numbers:
        return "it is not generated from codebooks"
    columns = shape[1]
    if rule == Rule.PRODUCT:
        wanted = (-(-columns // numbers[2]), math.prod(shape) // columns)
    else:
        wanted = (numbers[0], math.prod(shape) // columns)
    if (
        numbers[0] != wanted[0]
        or numbers[2] > columns
        or indices != wanted
        or (rule == Rule.RESIDUAL and numbers[2] != columns)
    ):
        return "its codebooks do not fit its shape"
    return ""


def hashed_places(shape: Shape, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bucket in [0, k), int32, and the sign, float32, of every element of a weight; the same on every machine.

    SplitMix64 (Steele et al. 2014) of seed and place: the upper half chooses the bucket, by multiplication instead of a
    remainder; the lowest bit the sign.
    """
    buckets, signs = _hashed(0, math.prod(shape), k, seed)
    return torch.from_numpy(buckets.astype(np.int32)).view(shape), torch.from_numpy(signs).view(shape)


def _hashed(first: int, count: int, k: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The buckets and signs of some elements."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        place = np.arange(first + 1, first + count + 1, dtype=np.uint64)
        z = np.uint64(seed) + place * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    buckets = ((z >> np.uint64(32)) * np.uint64(k)) >> np.uint64(32)
    return buckets.astype(np.int64), 1 - 2 * (z & np.uint64(1)).astype(np.float32)


def rows_of(weight: Tensor) -> Tensor:
    """(rows, input channels): a linear weight as it is, a convolution's (O, I, kh, kw) as (O kh kw, I)."""
    return weight.movedim(1, -1).flatten(0, -2)


def weight_of(rows: Tensor, shape: Shape) -> Tensor:
    """The inverse of `rows_of`."""
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).reshape(shape)


def sum_in_order(parts: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors, or over the first dimension, from the first to the last: the same bits everywhere."""
    ordered = iter(parts)
    total = next(ordered)
    for one in ordered:
        total = total + one
    return total
