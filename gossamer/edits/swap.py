"""The `swap` edit: a copy of a network with some modules replaced."""

from collections.abc import Mapping

from torch import nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.copies import copy_network
from gossamer.errors import unknown


def swap(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of `model` in which the modules at these paths are others. The model itself is left alone."""
    refuse_constrained(model, "swap")
    changed = copy_network(model)
    names = [name for name, _ in changed.named_modules() if name]
    for name, module in replacements.items():
        if name not in names:
            raise unknown("module", name, names)
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, module)
    return changed
