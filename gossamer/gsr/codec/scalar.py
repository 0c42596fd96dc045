"""Rate-distortion-optimized scalar quantization: a nearest multiple of the step, or one that costs fewer bits."""

import numpy as np

from gossamer.gsr.codec import viterbi
from gossamer.gsr.codec.integers import IntMatrix
from gossamer.gsr.codec.rates import Weights, check_quantization, first_rates, learned_rates

PASSES = 3


def quantize(weights: Weights, step: float, lagrangian: float, importance: Weights | None = None) -> IntMatrix:
    """The levels, int32 like the weights (rows, columns), that minimize error + lagrangian x bits, each for itself.

    Arguments as of `trellis.quantize`; lagrangian 0 is rounding to nearest. A weight is levels x step.
    """
    scaled = check_quantization(weights, step, lagrangian, importance)
    levels = np.rint(scaled).astype(np.int32)
    if lagrangian == 0 or not levels.size:
        return levels
    gain = np.ones(scaled.size) if importance is None else importance.astype(np.float64).reshape(-1)
    rates, kind = first_rates(scaled, kinds=1), np.zeros(scaled.shape, np.uint8)
    # Levels depend on their prices, and prices on what is chosen: a fixed point, nearly reached after three rounds.
    for _ in range(PASSES):
        viterbi.choose(
            scaled.reshape(-1), gain, lagrangian, rates.bits[0], rates.classes.reshape(-1), levels.reshape(-1)
        )
        rates = learned_rates(levels, kind, rates)
    return levels
