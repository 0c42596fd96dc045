"""How long a tensor will be, without coding it: for planning."""

import numpy as np

from gossamer.gsr.codec.integers import Integers
from gossamer.gsr.codec.rates import CLASSES, LARGEST_INDEX, scale_classes


def code_length(tensor: Integers) -> float:
    """Estimate the bits that the context coder will take for a tensor, about ten times faster than coding.

    The entropy of the magnitudes within their scale class (and parity of the trellis' state), a bit for every sign, and
    half a log2 of the weights for each magnitude of each class that has to be learned.

    Args:
        tensor: the integers.

    Returns:
        Bits.

    Example:
        >>> code_length(Integers(q=np.zeros((4, 8), np.int32)))
        0.0
    """
    tensor.header()
    indices, parity = tensor.q, np.zeros(tensor.q.shape, np.int64)
    if tensor.trellis:
        from gossamer.gsr.codec import trellis  # brings numba, which plain tensors do without

        indices, states = trellis.indices_of(tensor.q)
        parity = states.astype(np.int64) & 1
    if not indices.size:
        return 0.0
    magnitudes = np.abs(indices)
    capped = np.minimum(magnitudes, LARGEST_INDEX)
    place = (parity * CLASSES + scale_classes(indices.astype(np.float64))) * (LARGEST_INDEX + 1) + capped
    counts = np.bincount(place.reshape(-1), minlength=2 * CLASSES * (LARGEST_INDEX + 1)).reshape(2 * CLASSES, -1)
    totals = counts.sum(1, keepdims=True)
    # An adaptive coder comes near to the empirical entropy plus (k - 1) / 2 log2(n) bits for k symbols in n weights
    # (the price of learning their frequencies; Rissanen 1984).
    entropy = (counts * np.log2(np.maximum(totals, 1) / np.maximum(counts, 1))).sum()
    learning = np.log2(np.maximum(totals, 1))[:, 0] @ np.maximum((counts > 0).sum(1) - 1, 0) / 2
    # Magnitudes beyond the counted ones pay as in `Rates`.
    beyond = 2 * np.log2(np.maximum(magnitudes, LARGEST_INDEX) / LARGEST_INDEX).sum()
    return float(entropy + learning + beyond + np.count_nonzero(indices))
