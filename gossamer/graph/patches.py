"""Integer attributes of modules that count channels, and so must follow a cut."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gossamer.graph.channel_index import Slots
from gossamer.graph.coupling import Mask


@dataclass(frozen=True)
class Patch:
    """An integer attribute that counts slots: it shrinks as they do. old: its value, a multiple or a part of their
    number."""

    module: str
    path: str
    old: int
    slots: Slots

    def value(self, mask: Mask) -> int | None:
        """The new value, None if it is no whole number."""
        new, rest = divmod(self.old * int(mask[self.slots].sum()), len(self.slots))
        return new if rest == 0 else None


def combinations(options: Mapping[tuple[str, str], list[Patch]]) -> Iterator[dict[tuple[str, str], Patch]]:
    """Each attribute alone, then several at once, not too many."""
    for key, patches in options.items():
        for patch in patches:
            yield {key: patch}
    if len(options) > 1:
        for chosen in itertools.islice(itertools.product(*options.values()), 16):
            yield dict(zip(options, chosen))


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Integer attributes that may be sizes, also in tuples, lists and plain configuration objects."""
    for key, value in vars(module).items():
        if key.startswith("__") or key == "training":
            continue
        yield from _integers(key, value, deep=not isinstance(value, nn.Module | Tensor))


def _integers(path: str, value: Any, *, deep: bool) -> Iterator[tuple[str, int]]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        yield path, value
    elif isinstance(value, list | tuple) and len(value) <= 16:
        for i, item in enumerate(value):
            if isinstance(item, int) and not isinstance(item, bool) and item > 1:
                yield f"{path}.{i}", item
    elif deep and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type):
        for key, item in vars(value).items():
            if isinstance(item, int) and not key.startswith("__"):
                yield from _integers(f"{path}.{key}", item, deep=False)
