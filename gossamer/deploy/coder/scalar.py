"""Rate-distortion-optimized scalar quantization: a nearest multiple of the step, or one that costs fewer bits."""

import numpy as np
from numpy.typing import NDArray

from gossamer.deploy.coder.integers import IntMatrix
from gossamer.deploy.coder.jit import compiled
from gossamer.deploy.coder.rates import bits_of, check_quantization, first_rates, learned_rates

PASSES = 3


def quantize(
    weights: NDArray[np.floating], step: float, lagrangian: float, importance: NDArray[np.floating] | None = None
) -> IntMatrix:
    """The levels, int32 like the weights (rows, columns), that minimize error + lagrangian x bits, each for itself.

    Arguments as of `trellis.quantize`; lagrangian 0 is rounding to nearest. A weight is levels x step.
    """
    scaled = check_quantization(weights, step, lagrangian, importance)
    levels = np.rint(scaled).astype(np.int32)
    if lagrangian == 0 or not levels.size:
        return levels
    gain = np.ones(scaled.size) if importance is None else importance.astype(np.float64).reshape(-1)
    rates, kind = first_rates(scaled, kinds=1), np.zeros(scaled.shape, np.uint8)
    for _ in range(PASSES):
        _choose(scaled.reshape(-1), gain, lagrangian, rates.bits[0], rates.classes.reshape(-1), levels.reshape(-1))
        rates = learned_rates(levels, kind, rates)
    return levels


@compiled
def _choose(x, gain, lagrangian, bits, classes, levels):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        target, row = abs(x[i]), bits[classes[i]]
        best, best_cost = 0, gain[i] * target * target + lagrangian * row[0]
        k = int(target) + 1
        previous = np.inf
        while k > 0:
            cost = gain[i] * (target - k) * (target - k) + lagrangian * bits_of(row, k)
            if cost < best_cost:
                best, best_cost = k, cost
            if cost > previous:
                break
            previous = cost
            k -= 1
        levels[i] = best if x[i] >= 0 else -best
