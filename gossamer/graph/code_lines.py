"""Where in a network's own code something happens."""

import linecache
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

Frames = Sequence[tuple[FrameType, int]]
OURS = Path(__file__).parent


def code_line(stack: Frames, runner: Callable[..., Any]) -> str:
    """Find the innermost line of a network's own code, as `net.py:14 "return self.head(x)"`; "" where there is none.

    Args:
        stack: frames and their lines, innermost first.
        runner: the function that calls the network.
    """
    for frame, number in stack:
        file = frame.f_code.co_filename
        text = linecache.getline(file, number, frame.f_globals).strip()
        if frame.f_code is runner.__code__:  # what called it is no code of the network
            return ""
        if text and Path(file).parent != OURS and "/torch/" not in file:
            return f'{Path(file).name}:{number} "{text}"'
    return ""


def running_modules(stack: Frames, names: Mapping[int, str], known: Sequence[str]) -> tuple[str, ...]:
    """The modules around a place, outermost first: those whose forward runs, then those of which a method runs.

    Args:
        stack: frames and their lines, innermost first.
        names: of all modules of the network, by `id`.
        known: names of the modules whose forward runs.
    """
    owners = (frame.f_locals.get("self") for frame, _ in reversed(stack))
    found = (names.get(id(owner)) for owner in owners if isinstance(owner, nn.Module))
    return tuple(dict.fromkeys([*known, *(name for name in found if name is not None and name not in known)]))
