"""Where a run depends on its data: masks that select rows, counts that are read out, the order of a sort.

A smaller network may decide otherwise, which is no fault of a pruning. When it is compared with the original, both
therefore take the decisions of the original's run: the same rows, in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

INDEXED = ("aten.index", "aten._unsafe_index", "aten.index_put", "aten.index_put_", "aten._unsafe_index_put")
ORDERED = ("aten.topk", "aten.sort", "aten.max", "aten.min", "aten.kthvalue", "aten.median", "aten.mode")
CHOSEN = ("aten.argmax", "aten.argmin", "aten.argsort", "aten.is_nonzero", "torchvision.nms")


@dataclass(frozen=True)
class Decision:
    """What one operation decided from its data.

    Args:
        indices: of an operation that selects by masks, the places instead.
        order: which elements along `dim` a sort or a maximum took.
        dim: the dimension of `order`.
        results: everything that the operation gave.
        exact: whether the number read out is a count.
    """

    indices: tuple[Tensor | None, ...] | None = None
    order: Tensor | None = None
    dim: int = 0
    results: Any = None
    exact: bool = True

    def fits(self, shapes: Sequence[tuple[int, ...] | None]) -> bool:
        """Whether an operation that gives these shapes can take the decision."""
        if self.order is not None:
            # An order of other sizes is that of another network: it cannot be taken over.
            return len(shapes) > 1 and tuple(self.order.shape) == shapes[1]
        if self.results is not None:
            given = self.results if isinstance(self.results, list | tuple) else [self.results]
            return all(not isinstance(r, Tensor) or tuple(r.shape) == s for r, s in zip(given, shapes))
        return True


def selects(name: str, outs: int) -> bool:
    """Whether an operation takes elements by their values, so that rounding can change what it takes."""
    return name in CHOSEN[:3] or (name in ORDERED and outs > 1)


def decide(name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Decision | None:
    """What an operation that just ran decided; None for all that give shapes and places without looking at values."""
    if name in INDEXED:
        if not any(_is_mask(i) for i in args[1]):
            return None
        # A mask of k dimensions becomes k tensors of places, which no other data can change.
        return Decision(indices=tuple(p for i in args[1] for p in (_places(i) if _is_mask(i) else (i,))))
    if name == "aten.masked_select":
        return Decision(indices=_places(args[1].expand(np.broadcast_shapes(args[0].shape, args[1].shape))))
    if name in ORDERED and isinstance(out, list | tuple) and len(out) == 2 and args[0].ndim > 0:
        # Where `dim` stands differs between these operations; their schema says it.
        dim = next((i for i, a in enumerate(func._schema.arguments) if a.name == "dim"), None)
        if dim is None:
            return None
        # Only the order is kept: the values themselves come from the run that takes the decision.
        value = args[dim] if dim < len(args) else kwargs.get("dim", func._schema.arguments[dim].default_value)
        return Decision(order=out[1].detach().clone(), dim=value % args[0].ndim)
    if name == "aten._local_scalar_dense":
        return Decision(results=out, exact=not isinstance(out, float))
    if name in CHOSEN or name == "aten.equal" or torch.Tag.dynamic_output_shape in func.tags:
        return Decision(results=_clones(out))
    return None


def take(decision: Decision, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation with a decision that was made before."""
    if decision.indices is not None:
        indices = [i.clone() if isinstance(i, Tensor) else i for i in decision.indices]
        if str(func.overloadpacket) == "aten.masked_select":
            # Places are those of the shape that values and mask have together.
            return torch.ops.aten.index(args[0].expand(np.broadcast_shapes(args[0].shape, args[1].shape)), indices)
        return func(args[0], indices, *args[2:], **kwargs)
    if decision.order is not None:
        # A maximum without keepdim has lost its dimension; `gather` needs it back.
        order, flat = decision.order.clone(), decision.order.ndim < args[0].ndim
        values = args[0].gather(decision.dim, order.unsqueeze(decision.dim) if flat else order)
        return (values.squeeze(decision.dim) if flat else values), order
    return _clones(decision.results)


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def _places(mask: Tensor) -> tuple[Tensor, ...]:
    return mask.nonzero().unbind(1)


def _clones(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_clones(v) for v in value] if isinstance(value, list | tuple) else value
