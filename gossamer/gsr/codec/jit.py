"""Compiling with numba: on first use, kept on disk where a folder can be written."""

from collections.abc import Callable
from typing import Any

import numba

Function = Callable[..., Any]


def compiled(function: Function) -> Function:
    """The function as machine code. Without a writable cache folder it is compiled once per process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


def inlined(function: Function) -> Function:
    """A part of a compiled function: called millions of times, so never really called."""
    return numba.njit(forceinline=True)(function)
