"""The zoo: networks by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A factory `(in_channels=, classes=) -> Module` and the side of the square image that its counts refer to."""

    build: Callable[..., nn.Module]
    input_size: int


ENTRIES: dict[str, Entry] = {}


def register(name: str, build: Callable[..., nn.Module], *, input_size: int) -> None:
    ENTRIES[name] = Entry(build, input_size)
