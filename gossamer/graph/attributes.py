"""Attributes of modules by path: `sizes.1` is the second element of `sizes`."""

from typing import Any

import torch

Attribute = int | list[int]


def get_attribute(owner: Any, path: str) -> Any:
    """The value at a path of attribute names and element numbers."""
    for key in path.split("."):
        owner = owner[int(key)] if isinstance(owner, list | tuple) else getattr(owner, key)
    return owner


def set_attribute(owner: Any, path: str, value: Any) -> None:
    """Set the value at a path of attribute names and element numbers; containers are replaced, not changed."""
    head, _, rest = path.partition(".")
    old = getattr(owner, head)
    if not rest:
        setattr(owner, head, type(old)(value) if isinstance(old, list | tuple | torch.Size) else value)
    elif isinstance(old, list | tuple):
        items = list(old)
        items[int(rest)] = value
        setattr(owner, head, _like(old, items))
    else:
        set_attribute(old, rest, value)


def _like(old: Any, items: list[Any]) -> Any:
    return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
