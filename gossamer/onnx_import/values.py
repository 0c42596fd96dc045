"""Values between the nodes of a graph: tensors, and sizes as Python integers.

Exporters compute shapes with nodes (`Shape`, `Gather`, `Concat`, ...). Here these stay integers, lists of integers or
booleans: a size that is read from a tensor follows when channels are pruned or another batch comes, and neither the
tracer nor an exporter sees arithmetic on tensors where there is none.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gossamer.errors import BadInput

MOST_ELEMENTS = 1 << 28  # of a tensor that a node makes out of numbers
LISTED = 256  # elements that one of a Python list counts as, where elements are bounded
MOST_SIZES = 64  # integers of a constant that may be a shape

# By the numbers of onnx.TensorProto.DataType.
TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def bounded(elements: float) -> None:
    """Refuse what would be far larger than any network's values."""
    if elements > MOST_ELEMENTS:
        raise BadInput(f"the graph asks for a tensor of {elements:,.0f} elements; at most {MOST_ELEMENTS:,} are made")


class TooLarge(Exception):
    """A result has more elements than are wanted; they were not made."""

    def __init__(self, elements: int) -> None:
        super().__init__(f"{elements:,} elements")
        self.elements = elements


class AtMost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, no operation makes a tensor of more elements: sizes are computed before, without data.

    Args:
        most: elements.

    Raises:
        TooLarge: from the operation that would make more.
    """

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):  # sizes that depend on data
            self._check(
                func(*tree_map_only(Tensor, _without_data, args), **tree_map_only(Tensor, _without_data, kwargs))
            )
        found = func(*args, **kwargs)
        self._check(found)
        return found

    def _check(self, found: Any) -> None:
        for one in tree_leaves(found):
            if isinstance(one, Tensor) and one.numel() > self.most:
                raise TooLarge(one.numel())


def _without_data(x: Tensor) -> Tensor:
    return x.to("meta")


def element_count(value: Any) -> int:
    """Elements of a value, those of lists weighted by what Python takes for them."""
    return value.numel() if isinstance(value, Tensor) else LISTED * len(value) if isinstance(value, list) else 1


def is_tensor(*values: Any) -> bool:
    """Whether any of them is a tensor."""
    return any(isinstance(value, Tensor) for value in values)


def constant_value(array: np.ndarray[Any, Any]) -> Any:
    """A constant of a file as a value: short lists of integers and single numbers as Python's, all else a tensor."""
    if array.ndim == 0 and array.dtype.kind in "iufb":
        return array.item()
    if array.ndim == 1 and array.dtype.kind == "i" and array.size <= MOST_SIZES:
        return [int(x) for x in array]
    return torch.from_numpy(np.array(array))


def is_zero(value: Any) -> bool:
    """Whether all its numbers are zero."""
    if isinstance(value, Tensor):
        return value.numel() > 0 and not bool(value.any())
    return all(x == 0 for x in value) if isinstance(value, list) else value == 0


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, on the device of another one; numbers that meet floats become such."""
    if isinstance(value, Tensor):
        return value
    device = None if like is None else like.device
    if like is not None and like.is_floating_point():
        return torch.tensor(value, dtype=like.dtype, device=device)
    return torch.tensor(value, device=device)


def as_list(value: Any) -> list[Any]:
    """A value as a list of integers: of an axes or shape input."""
    if isinstance(value, Tensor):
        return [int(x) for x in value.flatten().tolist()]
    return list(value) if isinstance(value, list | tuple) else [value]
