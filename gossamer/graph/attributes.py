"""Attributes of modules by path: `sizes.1` is the second element of `sizes`, `cfg["width"]` an entry of a dict."""

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import torch

Attribute = int | list[int]


def _keys(path: str) -> list[str | int]:
    """The steps of a path; a step into a container is an element's number or a key."""
    found: list[str | int] = []
    for name, key in re.findall(r"""([^.\[\]]+)|\[("(?:[^"\\]|\\.)*"|-?\d+)\]""", path):
        found.append(name or json.loads(key))
    return found


def _step_into(owner: Any, key: str | int) -> Any:
    if isinstance(owner, Mapping):
        return owner[key]
    return owner[int(key)] if isinstance(owner, list | tuple) else getattr(owner, str(key))


def get_attribute(owner: Any, path: str) -> Any:
    """The value at a path."""
    for key in _keys(path):
        owner = _step_into(owner, key)
    return owner


def set_attribute(owner: Any, path: str, value: Any) -> None:
    """Set the value at a path; containers and objects on the way are replaced, since others may hold them too."""
    head, *rest = _keys(path)
    setattr(owner, str(head), _replaced(getattr(owner, str(head)), rest, value))


def _replaced(old: Any, keys: list[str | int], value: Any) -> Any:
    if not keys:
        return type(old)(value) if isinstance(old, list | tuple | torch.Size) else value
    key, *rest = keys
    # From the inside out: a copy of each container, none of which is changed in place.
    item = _replaced(_step_into(old, key), rest, value)
    if isinstance(old, list | tuple):
        items = list(old)
        items[int(key)] = item
        return _like(old, items)
    new = copy.copy(old)
    if isinstance(old, Mapping):
        new[key] = item
    else:
        object.__setattr__(new, str(key), item)  # also of a frozen dataclass
    return new


def _like(old: Any, items: list[Any]) -> Any:
    # Named tuples take their fields one by one, other sequences take a list.
    return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
