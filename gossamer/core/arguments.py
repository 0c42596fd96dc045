"""What a network is called with, out of the forms that example inputs may have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils._pytree import tree_leaves

from gossamer.errors import BadInput


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tensor is one argument, a tuple or list several, a mapping keyword ones.

    Raises BadInput for arrays of NumPy.
    """
    if any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(example_inputs)):
        raise BadInput("the inputs of a network are tensors; torch.from_numpy makes one of an array of NumPy")
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}
