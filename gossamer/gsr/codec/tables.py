"""The constant tables of the context-mixing coder, in exact integer arithmetic (the same on every machine).

Logits are in 1/256 nat, probabilities have 16 bits, magnitudes 8 fractional bits.
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.gsr.codec.integers import LARGEST

LOGIT_LIMIT = 2815
COUNT_LIMIT = 1023
LOG_STEPS = 16
LOG_LIMIT = 384
_ONE = 1 << 96


def _sigmoids(numerator: int, count: int) -> list[int]:
    """1 / (1 + exp(-(k + numerator / 2) / 256)) for k < count, as integers of 96 bits."""
    step, term, k = 0, _ONE, 0  # exp(1 / 512) by its series
    while term:
        step += term
        k += 1
        # exp(x) = sum of x^k / k!; at x = 1 / 512 the term is zero after about ten rounds.
        term //= 512 * k
    power = _ONE
    for _ in range(numerator):
        power = power * step >> 96
    found = []
    # Two multiplications by exp(1 / 512) are 1 / 256 nat. 96 bits keep the error below the last of 16 bits.
    for _ in range(count):
        found.append(power * _ONE // (_ONE + power))
        power = (power * step >> 96) * step >> 96
    return found


def squash_table() -> NDArray[np.uint16]:
    """The probability (16 bits, within [16, 65520]) of the logit k - LOGIT_LIMIT - 1, by k."""
    upper = [min(p >> 80, 65520) for p in _sigmoids(0, LOGIT_LIMIT + 1)]
    # sigmoid(-x) = 1 - sigmoid(x), so the table is exactly symmetric.
    lower = [65536 - p for p in reversed(upper)]
    return np.array([lower[0], *lower, *upper[1:]], np.uint16)


def stretch_table() -> NDArray[np.int16]:
    """The logit of the probability (k + 1/2) / 4096, rounded, by k."""
    borders = _sigmoids(1, LOGIT_LIMIT)
    upper, logit = [], 0
    for k in range(2048, 4096):
        p = (2 * k + 1) * _ONE >> 13
        while logit < LOGIT_LIMIT and borders[logit] <= p:
            logit += 1
        upper.append(logit)
    return np.array([-x for x in reversed(upper)] + upper, np.int16)


def rate_table(delay_in_tenths: int) -> NDArray[np.int32]:
    """65536 / (n + delay) by the number n of earlier visits."""
    return np.array([655360 // (10 * n + delay_in_tenths) for n in range(COUNT_LIMIT + 1)], np.int32)


def log_table() -> NDArray[np.uint8]:
    """floor(16 log2(x)) for x in 1..4095, and 0 for 0."""
    return np.array([0] + [(x**LOG_STEPS).bit_length() - 1 for x in range(1, 4096)], np.uint8)


def class_borders() -> list[int]:
    """The smallest magnitude of each class: 0, 1, 2, 3, 4, 5 (5-6), 7 (7-8), 9 (9-12), 13 (13-16), 17 (17-24), ..."""
    borders, width = [0, 1, 2, 3, 4], 2
    # Two classes for each octave, so that classes widen with the magnitudes in them.
    while 2 * width < LARGEST:
        borders += [2 * width + 1, 3 * width + 1]
        width *= 2
    return borders


def class_table() -> NDArray[np.uint8]:
    """The class of every magnitude up to LARGEST."""
    return (np.searchsorted(class_borders(), np.arange(LARGEST + 1), side="right") - 1).astype(np.uint8)


def pivot_table() -> NDArray[np.uint8]:
    """The class that holds about half of the weights at or below it, by the logarithm of the expected magnitude."""
    classes = class_table()
    sixteenths = [
        # 2^(k / 16) with 16 fractional bits, found exactly: the smallest x whose 16th power passes the border.
        next(x for x in range(1 << 16, 1 << 18) if (x**LOG_STEPS).bit_length() > LOG_STEPS * 16 + k)
        for k in range(LOG_STEPS)
    ]
    # The median of a Laplacian is 0.69 of its mean; 8 + 16 fractional bits.
    medians = [(sixteenths[k % LOG_STEPS] << (k // LOG_STEPS)) * 177 >> 32 for k in range(LOG_LIMIT)]
    return classes[np.minimum(medians, LARGEST)]
