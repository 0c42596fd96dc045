"""Where in a network's own code something happens."""

import linecache
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

OURS = Path(__file__).parent


def code_line(stack: Iterable[tuple[FrameType, int]], runner: Callable[..., Any]) -> str:
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
