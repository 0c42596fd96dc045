"""Trellis-coded quantization: two interleaved quantizers, and a machine of 8 states that says whose turn it is.

Quantizer 0 has the even multiples of the step, quantizer 1 the odd ones and zero. What is coded is an index k:
level = 2k in even states, 2k - sign(k) in odd states; the parity of k leads to the next state. Each quantizer is twice
as coarse as the step, but a path can choose, so the error is that of a finer one (Marcellin and Fischer 1990; the
machine is the one of ISO/IEC 15938-17).
"""

import numpy as np
from numpy.typing import NDArray

from gossamer.errors import BadInput
from gossamer.gsr.codec import viterbi
from gossamer.gsr.codec.integers import IntMatrix
from gossamer.gsr.codec.rates import Weights, check_quantization, first_rates, learned_rates

# NEXT[state, parity of k] is the next state.
NEXT = np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], np.uint8)
CHUNK = 1 << 20
PASSES = 3


def dequantize(levels: IntMatrix, step: float) -> NDArray[np.float32]:
    """The weights of levels: levels x step, in float32."""
    return levels.astype(np.float32) * np.float32(step)


def indices_of(levels: IntMatrix) -> tuple[IntMatrix, NDArray[np.uint8]]:
    """The indices that are coded, and the state (0..7) at each weight; row by row, starting in state 0.

    BadInput if the levels do not follow the machine.
    """
    flat = np.ascontiguousarray(levels, np.int32).reshape(-1)
    indices, states = np.empty_like(flat), np.empty(flat.size, np.uint8)
    at = viterbi.indices_from_levels(flat, NEXT, indices, states)
    if at < flat.size:
        raise BadInput(
            f"level {flat[at]} at position {at} is not one of the trellis' state {states[at]}; "
            "such levels come from trellis.quantize only"
        )
    return indices.reshape(levels.shape), states.reshape(levels.shape)


def levels_of(indices: IntMatrix) -> IntMatrix:
    """The levels of indices, int32; the inverse of `indices_of`."""
    flat = np.ascontiguousarray(indices, np.int32).reshape(-1)
    levels = np.empty_like(flat)
    viterbi.levels_from_indices(flat, NEXT, levels)
    return levels.reshape(indices.shape)


def follows(levels: IntMatrix) -> bool:
    """Whether levels obey the machine, so that they can be coded with `trellis=True`."""
    try:
        indices_of(levels)
    except BadInput:
        return False
    return True


def quantize(weights: Weights, step: float, lagrangian: float, importance: Weights | None = None) -> IntMatrix:
    """The levels, int32 like the weights (rows, columns), that minimize error + lagrangian x bits along the trellis.

    error: the sum of importance x (weight / step - level)^2; importance is 1 everywhere if not given (a Hessian's
    diagonal, divided by its mean, for instance). lagrangian: squared steps per bit; 0 gives the least error.
    The bits are those of an adaptive model per scale class, learned in three passes. Exact per chunk of 2^20 weights.
    """
    scaled = check_quantization(weights, step, lagrangian, importance)
    gain = np.ones(scaled.size) if importance is None else importance.astype(np.float64).reshape(-1)
    rates = first_rates(scaled, kinds=2)
    levels = np.zeros(scaled.shape, np.int32)
    if not scaled.size:
        return levels
    flat, classes = scaled.reshape(-1), rates.classes.reshape(-1)
    # Levels and their prices depend on each other: quantize, learn the prices of what came out, and again.
    for _ in range(PASSES if lagrangian > 0 else 1):
        # The path goes on from chunk to chunk; only the choice is made chunk by chunk, which bounds the memory.
        state = 0
        for at in range(0, flat.size, CHUNK):
            part = slice(at, at + CHUNK)
            arguments = (flat[part], gain[part], lagrangian, rates.bits, classes[part], NEXT, state)
            state = viterbi.viterbi(*arguments, levels.reshape(-1)[part])
        indices, states = indices_of(levels)
        rates = learned_rates(indices, (states & 1).astype(np.uint8), rates)
    return levels
