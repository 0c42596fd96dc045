"""Weights that are made of fewer numbers by a rule: what some constraints hold, and what a compact file stores."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Rule(IntEnum):
    """How a weight is made; the numbers are those of the compact file."""

    HASHED = 0  # numbers (K,): the hash of an element's place chooses one of them, or its negative
    PRODUCT = 1  # numbers (M, K, d): block m of row r is entry indices[m, r] of codebook m
    RESIDUAL = 2  # numbers (T, K, I): row r is the sum over t of entry indices[t, r] of codebook t


@dataclass(frozen=True, kw_only=True)
class Made:
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
        """The weight; every machine gives the same bits. Raises IndexError for indices outside the codebooks."""
        if self.rule == Rule.HASHED:
            places, signs = hashed_places(self.shape, len(self.numbers), self.seed)
            value = self.numbers[places.long()] * signs
        else:
            assert self.indices is not None
            blocks = torch.stack([book[index.long()] for book, index in zip(self.numbers, self.indices)])
            if self.rule == Rule.PRODUCT:
                rows = blocks.movedim(0, 1).flatten(1)[:, : self.shape[1]]
            else:
                rows = sum_in_order(blocks)
            value = weight_of(rows, self.shape)
        return value if self.keep is None else value.where(self.keep, 0.0)


def fault(rule: Rule, shape: Shape, numbers: Shape, indices: Shape | None) -> str:
    """Why a weight of this shape cannot be made by the rule from parts of these shapes, or an empty text."""
    if rule == Rule.HASHED:
        return "" if len(numbers) == 1 and indices is None else "it is hashed, but not into a row of values"
    if len(shape) < 2 or len(numbers) != 3 or indices is None or 0 in numbers:
        return "it is not made of codebooks"
    columns = shape[1]
    if rule == Rule.PRODUCT:
        wanted = (-(-columns // numbers[2]), math.prod(shape) // columns)
    else:
        wanted = (numbers[0], math.prod(shape) // columns)
    if numbers[0] != wanted[0] or indices != wanted or (rule == Rule.RESIDUAL and numbers[2] != columns):
        return "its codebooks do not fit its shape"
    return ""


def hashed_places(shape: Shape, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bucket in [0, k), int32, and the sign, float32, of every element of a weight; the same on every machine.

    SplitMix64 (Steele et al. 2014) of seed and place: the upper half chooses the bucket, by multiplication instead of a
    remainder; the lowest bit the sign.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    buckets = ((z >> np.uint64(32)) * np.uint64(k)) >> np.uint64(32)
    signs = 1 - 2 * (z & np.uint64(1)).astype(np.float32)
    return torch.from_numpy(buckets.astype(np.int32)).view(shape), torch.from_numpy(signs).view(shape)


def rows_of(weight: Tensor) -> Tensor:
    """(rows, input channels): a linear weight as it is, a convolution's (O, I, kh, kw) as (O kh kw, I)."""
    return weight.movedim(1, -1).flatten(0, -2)


def weight_of(rows: Tensor, shape: Shape) -> Tensor:
    """The inverse of `rows_of`."""
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).reshape(shape)


def sum_in_order(stack: Tensor) -> Tensor:
    """The sum over the first dimension, from the first to the last: with the same bits everywhere."""
    total = stack[0]
    for one in stack[1:]:
        total = total + one
    return total
