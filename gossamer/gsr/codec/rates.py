"""A model of what a weight costs in bits, for quantizers that weigh error against size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import BadInput
from gossamer.gsr.codec.integers import IntMatrix

Floats = NDArray[np.float64]
Weights = NDArray[np.floating[Any]]
CLASSES = 24
LARGEST_INDEX = 256
MOST_BITS = 40.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """bits: (kinds, CLASSES, LARGEST_INDEX + 1), the cost of an index of a magnitude, its sign included.

    classes: (rows, columns), which weights share statistics. Magnitudes above LARGEST_INDEX cost 2 log2 of their ratio
    to it more. Kinds are the two quantizers of the trellis, or one for a scalar quantizer.
    """

    bits: Floats
    classes: NDArray[np.uint8]


def scale_classes(scaled: Floats) -> NDArray[np.uint8]:
    """The class of each weight, (rows, columns): half octaves of row mean x column mean / mean of |weights / step|.

    The context coder learns the same means from what it has coded, so this is close to what it knows.
    """
    magnitudes = np.abs(scaled)
    if not magnitudes.size or not magnitudes.any():
        return np.zeros(scaled.shape, np.uint8)
    # Rank one, as in the kernel: scales of rows times scales of columns.
    expected = np.outer(magnitudes.mean(1), magnitudes.mean(0)) / magnitudes.mean()
    octaves = np.log2(np.maximum(expected, 2.0**-8))
    found: NDArray[np.uint8] = np.clip(np.rint(2 * octaves) + 12, 0, CLASSES - 1).astype(np.uint8)
    return found


def first_rates(scaled: Floats, kinds: int) -> Rates:
    """Rates before anything is quantized: a geometric distribution around each class' mean magnitude."""
    means = 2.0 ** ((np.arange(CLASSES) - 12) / 2) / kinds
    magnitudes = np.arange(LARGEST_INDEX + 1)
    # Geometric on 0, 1, 2, ... with mean m: p(k) = (1 - r) r^k, r = m / (1 + m). One bit more for a sign.
    ratio = means / (1 + means)
    bits = -np.log2(1 - ratio)[:, None] - magnitudes * np.log2(ratio)[:, None] + (magnitudes > 0)
    bits = np.minimum(bits, MOST_BITS)
    return Rates(bits=np.repeat(bits[None], kinds, 0), classes=scale_classes(scaled))


def learned_rates(indices: IntMatrix, kind: NDArray[np.uint8], before: Rates) -> Rates:
    """Rates from what was chosen: the counts of each kind and class, with those before as 8 observations."""
    kinds = len(before.bits)
    magnitudes = np.minimum(np.abs(indices), LARGEST_INDEX).reshape(-1)
    # One flat index over (kind, class, magnitude), so that one `bincount` gives all tables.
    place = (kind.reshape(-1).astype(np.int64) * CLASSES + before.classes.reshape(-1)) * (
        LARGEST_INDEX + 1
    ) + magnitudes
    counts = np.bincount(place, minlength=before.bits.size).reshape(before.bits.shape)
    signed = np.arange(LARGEST_INDEX + 1) > 0
    # `signed` takes the sign bit out of the cost again: 2^-(bits without sign) is a probability of the magnitude.
    prior = 8 * 2.0 ** (signed - before.bits)
    bits = np.log2((counts + prior).sum(2, keepdims=True) / (counts + prior)) + signed
    return Rates(bits=bits.reshape(kinds, CLASSES, -1), classes=before.classes)


def check_quantization(weights: Weights, step: float, lagrangian: float, importance: Weights | None) -> Floats:
    """weights / step, and BadInput for anything that cannot be quantized."""
    if weights.ndim != 2:
        raise BadInput(f"weights to quantize: (rows, columns) expected, got the shape {weights.shape}; reshape them")
    if not (step > 0 and np.isfinite(step)):
        raise BadInput(f"step={step!r}; a positive number is needed")
    if not (lagrangian >= 0 and np.isfinite(lagrangian)):
        raise BadInput(f"lagrangian={lagrangian!r}; zero or a positive number is needed")
    if importance is not None and importance.shape != weights.shape:
        raise BadInput(f"importance has the shape {importance.shape}, the weights {weights.shape}; they must be equal")
    if importance is not None and not (np.isfinite(importance) & (importance >= 0)).all():
        raise BadInput("importance of weights: zero or positive numbers are needed; some are not")
    scaled = weights.astype(np.float64) / step
    if not np.isfinite(scaled).all():
        raise BadInput("weights to quantize: some are NaN or infinite")
    if scaled.size and np.abs(scaled).max() > 32000:
        raise BadInput(f"weights reach {np.abs(scaled).max():.0f} steps; at most 32000 are possible, use a larger step")
    return scaled
