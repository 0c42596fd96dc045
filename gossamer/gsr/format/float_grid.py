"""What a float tensor is, read off its values: a step and integers, found bit-exactly, or not at all."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LARGEST = 1 << 15  # of an integer on a grid
DIVISORS = 8  # the step may be so many times smaller than the smallest gap between values
SAMPLE = 4096
BLOCK = 1 << 20  # values that are looked at together: large tensors need little memory besides their own


def grid(values: Floats) -> tuple[np.float32, NDArray[np.int32]] | None:
    """(step, integers) with float32(step * integer) equal to every value, bit by bit; None if there is no such step."""
    if not on_a_grid_perhaps(values):
        return None
    # A part of many values nearly always has the step of all; sorting them all takes longer than trying it.
    for some in (values[:: values.size >> 14], values) if values.size > 1 << 16 else (values,):
        step = common_step(np.unique(np.abs(some[some != 0])))
        found = None if step is None else integers(values, step)
        if found is not None:
            return found
    return None


def integers(values: Floats, step: np.float32) -> tuple[np.float32, NDArray[np.int32]] | None:
    """The integers of a given step; None where a value is not on its grid, or too far out."""
    found = np.empty(values.size, np.int32)
    with np.errstate(all="ignore"):
        for at in range(0, values.size, BLOCK):
            some = values[at : at + BLOCK]
            q = np.rint(some.astype(np.float64) / np.float64(step))
            if not (np.abs(q) <= LARGEST).all() or not same_bits(q.astype(np.float32) * step, some):
                return None
            found[at : at + BLOCK] = q
    return step, found


def on_a_grid_perhaps(values: Floats) -> bool:
    """False where a part of the values already shows that there is no common step. -0.0 lies on no grid."""
    bits = values.view(np.int32)
    if (bits == np.int32(-(2**31))).any() or not np.isfinite(values).all():
        return False
    some = np.abs(values[:: max(1, values.size // SAMPLE)])
    some = np.unique(some[some > 0]).astype(np.float64)
    if len(some) < 2:
        return True
    # Values of a grid are a whole number of steps apart, up to their own rounding.
    return bool(some[-1] <= 2 * LARGEST * DIVISORS * min(some[0], np.diff(some).min()))


def common_step(magnitudes: Floats) -> np.float32 | None:
    """The largest step whose float32 multiples are all of these: different, ascending, positive, finite."""
    if len(magnitudes) == 0:
        return np.float32(1)
    if len(magnitudes) == 1:
        return np.float32(magnitudes[0])
    exact = magnitudes.astype(np.float64)
    gap = min(exact[0], np.diff(exact).min())
    if exact[-1] > 2 * LARGEST * gap:
        return None
    for divisor in range(1, DIVISORS + 1):
        step = _refined(exact, gap / divisor)
        found = None if step is None else _rounded(magnitudes, exact, step)
        if found is not None:
            return found
    return None


def _refined(exact: NDArray[np.float64], step: float) -> float | None:
    """A better step: least squares over more and more values, small ones first, whose integers are sure."""
    reach = 4.0
    while True:
        part = exact[: np.searchsorted(exact, reach * step)]
        if len(part):
            q = np.rint(part / step)
            if q[0] == 0 or np.abs(part - q * step).max() > 0.25 * step:
                return None
            step = float(part @ q / (q @ q))
        if len(part) == len(exact):
            return step
        reach *= 4


def _rounded(magnitudes: Floats, exact: NDArray[np.float64], step: float) -> np.float32 | None:
    """The float32 near a step that gives every value exactly."""
    q = np.rint(exact / step)
    if q[-1] > LARGEST:
        return None
    q32 = q.astype(np.float32)
    near = np.float32(step)
    for candidate in (near, *_neighbours(near)):
        if (q32 * candidate == magnitudes).all():
            return candidate
    return None


def _neighbours(value: np.float32) -> list[np.float32]:
    down, up, found = value, value, []
    for _ in range(3):
        down, up = np.nextafter(down, np.float32(0)), np.nextafter(up, np.float32(np.inf))
        found += [down, up]
    return found


def same_bits(one: Floats, other: Floats) -> bool:
    """Equal bit by bit: NaN equals itself, 0.0 and -0.0 differ."""
    return bool(np.array_equal(one.view(np.int32), other.view(np.int32)))
