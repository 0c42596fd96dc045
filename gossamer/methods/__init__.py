"""Methods: one file each, found by their path."""

import importlib
import pkgutil
from functools import cache
from inspect import isabstract

from gossamer.methods.base import Method


@cache
def catalogue() -> dict[str, type[Method]]:
    """Every method by its name in a recipe, which is its file's path: `prune.channels`."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.walk_packages(__path__, prefix=f"{__name__}."):
        if module.ispkg:
            continue
        namespace = vars(importlib.import_module(module.name))
        for value in namespace.values():
            method = isinstance(value, type) and issubclass(value, Method) and not isabstract(value)
            if method and value.__module__ == module.name:
                found[value.name()] = value
    return dict(sorted(found.items()))
