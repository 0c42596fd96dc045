"""The `swap` edit: a copy of a network with some modules replaced."""

from collections.abc import Mapping

from torch import nn

from gossamer.constraints.apply import refuse_constrained
from gossamer.core.copies import copy_network
from gossamer.errors import unknown


def swap(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of the model in which the modules at these paths are others.

    Args:
        model: the network, which is left as it is.
        replacements: new modules by the path of the old ones ("body.0.conv1").

    Returns:
        The copy.

    Example:
        >>> swap(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), {"1": nn.Tanh()})[1]
        Tanh()
    """
    refuse_constrained(model, "swap")
    changed = copy_network(model)
    names = [name for name, _ in changed.named_modules() if name]
    for name, module in replacements.items():
        if name not in names:
            raise unknown("module", name, names)
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, module)
    return changed
