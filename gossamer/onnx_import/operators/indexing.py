"""Operators that take or put elements at places: slices, gathers, scatters."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.onnx_import.registry import Built, OnnxNode, function, operator
from gossamer.onnx_import.values import as_list, as_tensor, is_tensor


@operator("Slice")
def build_slice(node: OnnxNode) -> Built:
    if "starts" in node.attributes:
        starts, ends = (list(node.get(name)) for name in ("starts", "ends"))
        axes = list(node.get("axes", range(len(starts))))
        return Built(function(node, _slices, starts=starts, ends=ends, axes=axes, steps=None).module, node.inputs[:1])
    if all(node.known(i) or not node.has(i) for i in (1, 2, 3, 4)):
        starts, ends = as_list(node.value(1)), as_list(node.value(2))
        axes = as_list(node.value(3, list(range(len(starts)))))
        steps = as_list(node.value(4)) if node.has(4) else None
        return Built(function(node, _slices, starts=starts, ends=ends, axes=axes, steps=steps).module, node.inputs[:1])
    return Built(
        function(node, _slices_to, given=tuple(node.has(i) for i in (3, 4))).module, [n for n in node.inputs if n]
    )


def _slices_to(x: Any, starts: Any, ends: Any, *rest: Any, given: tuple[bool, bool]) -> Any:
    """`Slice` with bounds that are computed."""
    more = iter(rest)
    axes = as_list(next(more)) if given[0] else list(range(len(as_list(starts))))
    steps = as_list(next(more)) if given[1] else None
    return _slices(x, starts=as_list(starts), ends=as_list(ends), axes=axes, steps=steps)


def _slices(x: Any, *, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None) -> Any:
    """`Slice` along some axes. Bounds beyond the ends are the ends, as in Python."""
    if not isinstance(x, Tensor):
        step = steps[0] if steps else 1
        return x[_from(starts[0], len(x), step) : _to(ends[0], len(x), step) : step]
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes)):
        length = x.shape[axis]
        if step > 0:
            places: list[Any] = [slice(None)] * x.dim()
            places[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
            if places[axis] != slice(0, None, 1):
                x = x[tuple(places)]
        else:
            chosen = list(range(length))[_from(start, length, step) : _to(end, length, step) : step]
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
    return x


def _from(start: int, length: int, step: int) -> int:
    return min(start, length if step > 0 else length - 1)


def _to(end: int, length: int, step: int) -> int | None:
    return None if step < 0 and end < -length else end


@operator("Gather")
def build_gather(node: OnnxNode) -> Built:
    return function(node, _gather, axis=int(node.get("axis", 0)))


def _gather(x: Any, index: Any, *, axis: int) -> Any:
    """`Gather`: the places of `index` along an axis, whose dimension becomes those of the index."""
    if not isinstance(x, Tensor):
        if not is_tensor(index):
            return [x[i] for i in index] if isinstance(index, list) else x[index]
        x = as_tensor(x).to(index.device)
    if not isinstance(index, Tensor):
        if not isinstance(index, list):
            return x.select(axis, index)
        index = torch.tensor(index, device=x.device)
    axis, index = axis % x.dim(), torch.where(index < 0, index + x.shape[axis], index).long()
    if axis == 0 and x.dim() == 2:
        return F.embedding(index, x)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def build_gather_elements(node: OnnxNode) -> Built:
    return function(node, _gather_elements, axis=int(node.get("axis", 0)))


def _gather_elements(x: Tensor, index: Any, *, axis: int) -> Tensor:
    """`GatherElements`."""
    index = as_tensor(index).to(x.device).long()
    places = torch.where(index < 0, index + x.shape[axis], index)
    return torch.gather(x, axis, places)


@operator("ScatterElements")
def build_scatter_elements(node: OnnxNode) -> Built:
    if node.get("reduction", "none") != "none":
        node.refuse(f"reduction {node.get('reduction')!r} is not known")
    return function(node, _scatter_elements, axis=int(node.get("axis", 0)))


def _scatter_elements(x: Any, index: Any, updates: Any, *, axis: int) -> Any:
    """`ScatterElements`."""
    x = as_tensor(x)
    index = as_tensor(index).long()
    return x.scatter(axis, torch.where(index < 0, index + x.shape[axis], index), as_tensor(updates).to(x.dtype))


@operator("GatherND")
def build_gather_nd(node: OnnxNode) -> Built:
    if node.get("batch_dims", 0):
        node.refuse("batch dimensions are not known")
    return function(node, _gather_nd)


def _gather_nd(x: Any, index: Any) -> Tensor:
    """`GatherND` without batch dimensions."""
    found: Tensor = as_tensor(x)[tuple(as_tensor(index).long().unbind(-1))]
    return found


@operator("ScatterND")
def build_scatter_nd(node: OnnxNode) -> Built:
    if node.get("reduction", "none") != "none":
        node.refuse(f"reduction {node.get('reduction')!r} is not known")
    return function(node, _scatter_nd)


def _scatter_nd(x: Any, index: Any, updates: Any) -> Any:
    """`ScatterND`."""
    x = as_tensor(x)
    places = tuple(as_tensor(index).long().unbind(-1))
    return x.index_put(places, as_tensor(updates).to(x.dtype))
