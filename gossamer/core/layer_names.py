"""Layers by name: of a weight, and by patterns."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TypeVar

from gossamer.errors import NoEffect

T = TypeVar("T")


def layer_name(weight: str) -> str:
    """The layer of a weight's name; "" where the network itself is the layer."""
    return weight.rpartition(".")[0]


def by_pattern(layers: Iterable[str], values: Mapping[str, T], field: str) -> dict[str, T]:
    """The value of each layer that a name or pattern ("conv*") of `values` fits; later ones win. Raises NoEffect for
    one that fits none, under the name of the option."""
    layers, found = list(layers), dict[str, T]()
    for pattern, value in values.items():
        hits = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise NoEffect(f"{field}: {pattern!r} matches none of the layers {sorted(layers)}")
        found |= dict.fromkeys(hits, value)
    return found


def by_reason(left: Mapping[str, str]) -> dict[str, list[str]]:
    """The layers that were left, by why."""
    return {why: [name for name in left if left[name] == why] for why in left.values()}


def reasons(left: Mapping[str, str]) -> list[str]:
    """The same as one text for each reason."""
    return [f"{', '.join(names)}: {why}" for why, names in by_reason(left).items()]
