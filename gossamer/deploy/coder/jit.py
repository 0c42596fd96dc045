"""Compiling with numba: on first use, kept on disk where a folder can be written."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function as machine code. Without a writable cache folder it is compiled once per process."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """A part of a compiled function: called millions of times, so never really called."""
    return numba.njit(forceinline=True)(function)  # type: ignore[no-any-return]
