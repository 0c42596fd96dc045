"""Where a function of one number, such as batch norm and sign, switches between -1 and 1: exactly, in its own floats.

Every step of such a function is monotone in float32, too: rounding never turns the order of two numbers. So one number
says all. For integers every value is tried, which also finds functions that are not monotone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.runtime.binary.kernels import Limits
from gossamer.runtime.binary.products import ALWAYS, NEVER, Switches

AT_ONCE = 1 << 22  # values in one call
LARGEST = int(np.array(np.finfo(np.float32).max).view(np.int32))  # as the bits of an integer
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class IntegerCurve:
    """A function at all integers from -terms to terms. numbers: what it gave, (integers, channels)."""

    terms: int
    numbers: Tensor


def integer_curve(function: Function, scales: Tensor, terms: int) -> IntegerCurve:
    """A function of scale x integer, for every integer up to a size.

    Args:
        function: takes and gives (values, channels), each channel for itself.
        scales: (channels,), float32.
        terms: largest size of an integer.
    """
    whole = torch.arange(-terms, terms + 1, dtype=torch.float32)
    size = max(1, AT_ONCE // len(scales))
    parts = [function(whole[at : at + size, None] * scales) for at in range(0, len(whole), size)]
    return IntegerCurve(terms, torch.cat(parts))


def switches_of(signs: IntegerCurve) -> Switches | None:
    """The integers at which a function of signs switches; None where it gives other numbers, or switches back.

    Example:
        >>> found = switches_of(integer_curve(lambda x: torch.where(x >= 1.5, 1.0, -1.0), torch.ones(1), 3))
        >>> found.least.tolist(), found.flips.tolist()
        ([2], [False])
    """
    ones = signs.numbers == 1
    if not bool((ones | (signs.numbers == -1)).all()):
        return None
    changes = ones[1:] != ones[:-1]
    if bool((changes.sum(0) > 1).any()):
        return None
    at = changes.to(torch.uint8).argmax(0) - signs.terms + 1
    constant, flips = ~changes.any(0), ones[0] & ~ones[-1]
    least = torch.where(constant, torch.where(ones[0], ALWAYS, NEVER), at)
    return Switches(least.numpy().astype(np.int32), flips.numpy())


def falling(before: IntegerCurve, signs: IntegerCurve) -> NDArray[np.bool_] | None:
    """Of each channel whether `signs` falls while `before` rises; None where it does neither.

    Args:
        before: numbers at all integers, of which `signs` is a function.
        signs: -1 and 1.
    """
    ones = signs.numbers == 1
    high, low = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    largest = [torch.where(chosen, before.numbers, low).amax(0) for chosen in (ones, ~ones)]
    smallest = [torch.where(chosen, before.numbers, high).amin(0) for chosen in (ones, ~ones)]
    rises, falls = largest[1] < smallest[0], largest[0] < smallest[1]
    return falls.numpy() & ~rises.numpy() if bool((rises | falls).all()) else None


def limits_of(function: Function, channels: int) -> Limits | None:
    """The limits of a function of floats that is known to be monotone, by bisection of all floats.

    Args:
        function: takes and gives (values, channels), each channel for itself; signs.
        channels: how many.

    Returns:
        For each channel the first float that gives a 1 from below, or from above; None where it gives other numbers.

    Example:
        >>> limits_of(lambda x: torch.where(2 * x >= 1, 1.0, -1.0), 1)
        Limits(signs=array([1.], dtype=float32), limits=array([0.5], dtype=float32))
    """
    ends = torch.tensor([-LARGEST, LARGEST])[:, None].expand(2, channels).clone()
    found = function(torch.cat([_float(ends), torch.zeros(1, channels)]))
    if not bool((found.abs() == 1).all()):
        return None
    first, last = found[0] == 1, found[1] == 1
    no, yes = torch.where(last, ends[0], ends[1]), torch.where(last, ends[1], ends[0])
    for _ in range(34):  # 32 bits, and one for each end
        middle = torch.div(no + yes, 2, rounding_mode="floor")
        hit = function(_float(middle[None]))[0] == 1
        yes, no = torch.where(hit, middle, yes), torch.where(hit, no, middle)
    signs = torch.where(first & ~last, -1.0, 1.0)
    limits = signs * _float(yes)
    limits = torch.where(first & last, -torch.inf, torch.where(first | last, limits, torch.nan))
    return Limits(signs.numpy(), limits.numpy())


def _float(order: Tensor) -> Tensor:
    """The floats of places in the order of all floats; 0 is 0."""
    bits = torch.where(order < 0, -order + (1 << 31), order)
    return torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32))
