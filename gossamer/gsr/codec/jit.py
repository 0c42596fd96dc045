"""Compiling with numba: on first use, kept on disk where a folder can be written.

numba comes with an extra. Without it everything can be imported, and what would run compiled code says what is missing.
"""

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gossamer.errors import missing

Function = Callable[..., Any]

numba: Any = None
with suppress(ModuleNotFoundError):
    numba = importlib.import_module("numba")


def compiled(function: Function) -> Function:
    """The function as machine code. Without a writable cache folder it is compiled once per process."""
    if numba is None:
        return _absent
    ready: Function
    try:
        ready = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        ready = numba.njit(nogil=True)(function)
    return ready


def inlined(function: Function) -> Function:
    """A part of a compiled function: called millions of times, so never really called."""
    ready: Function = _absent if numba is None else numba.njit(forceinline=True)(function)
    return ready


def _absent(*args: Any) -> Any:
    told = missing(ModuleNotFoundError("numba", name="numba"))
    assert told is not None
    raise told
