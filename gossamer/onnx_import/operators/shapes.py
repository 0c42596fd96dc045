"""Operators that change shapes: sizes, joins, repetitions, paddings. Sizes stay Python integers."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.onnx_import.registry import Built, OnnxNode, function, operator
from gossamer.onnx_import.values import TYPES, as_list, as_tensor, bounded, is_tensor


def known_list(node: OnnxNode, index: int, attribute: str) -> list[int] | None:
    """Integers that old opsets have as an attribute and new ones as an input: the list, None where it is not given."""
    if attribute in node.attributes:
        return [int(x) for x in as_list(node.get(attribute))]
    return as_list(node.value(index)) if node.has(index) else None


@operator("Shape")
def build_shape(node: OnnxNode) -> Built:
    return function(node, _shape, start=int(node.get("start", 0)), end=node.get("end"))


def _shape(x: Any, *, start: int, end: int | None) -> list[Any]:
    """The sizes of a tensor, as integers."""
    sizes = list(x.shape) if isinstance(x, Tensor) else [len(x)] if isinstance(x, list) else []
    return sizes[start:end]


@operator("Size")
def build_size(node: OnnxNode) -> Built:
    return function(node, _size)


def _size(x: Any) -> int:
    """How many elements there are."""
    return x.numel() if isinstance(x, Tensor) else len(x) if isinstance(x, list) else 1


@operator("Reshape")
def build_reshape(node: OnnxNode) -> Built:
    keep = bool(node.get("allowzero", 0))
    if node.known(1) or "shape" in node.attributes:
        target = known_list(node, 1, "shape") or []
        keep = keep and 0 in target
        return Built(function(node, _reshape, target=tuple(target), keep_zeros=keep).module, node.inputs[:1])
    return function(node, _reshape_to, keep_zeros=keep)


def _reshape(x: Any, *, target: tuple[int, ...], keep_zeros: bool) -> Any:
    """`Reshape`: 0 is the size of the input in the same place, -1 what is left."""
    if not isinstance(x, Tensor):
        if target in ((-1,), (1,)) or (isinstance(x, list) and target == (len(x),)):
            return x if isinstance(x, list) else [x]
        if target == ():
            return x[0] if isinstance(x, list) else x
        x = as_tensor(x)
    if not keep_zeros:
        target = tuple(x.shape[i] if n == 0 and i < x.dim() else n for i, n in enumerate(target))
    return x.reshape(target)


def _reshape_to(x: Any, target: Any, *, keep_zeros: bool) -> Any:
    """`Reshape` to a shape that is computed."""
    return _reshape(x, target=tuple(as_list(target)), keep_zeros=keep_zeros)


@operator("Flatten")
def build_flatten(node: OnnxNode) -> Built:
    return function(node, _flatten, axis=int(node.get("axis", 1)))


def _flatten(x: Tensor, *, axis: int) -> Tensor:
    """A matrix: the dimensions before the axis, and those from it on."""
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x[:, None]
    return x[None].flatten(1) if axis == 0 else x.flatten(0, axis - 1).flatten(1)


@operator("Transpose")
def build_transpose(node: OnnxNode) -> Built:
    return function(node, _transpose, perm=node.get("perm"))


def _transpose(x: Tensor, *, perm: Any) -> Tensor:
    """`Transpose`: without an order, all dimensions turned round."""
    return x.permute(*(perm if perm is not None else reversed(range(x.dim()))))


@operator("Squeeze")
def build_squeeze(node: OnnxNode) -> Built:
    return Built(function(node, _squeeze, axes=known_list(node, 1, "axes")).module, node.inputs[:1])


def _squeeze(x: Any, *, axes: list[int] | None) -> Any:
    """`Squeeze` of these axes, or of all of size one."""
    if not isinstance(x, Tensor):
        return x[0] if isinstance(x, list) and len(x) == 1 else x
    if axes is None:
        return x.squeeze()
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


@operator("Unsqueeze")
def build_unsqueeze(node: OnnxNode) -> Built:
    return Built(function(node, _unsqueeze, axes=known_list(node, 1, "axes") or []).module, node.inputs[:1])


def _unsqueeze(x: Any, *, axes: list[int]) -> Any:
    """`Unsqueeze`: the axes are those of the result."""
    if not isinstance(x, Tensor):
        if not isinstance(x, list) and axes == [0]:
            return [x]
        x = as_tensor(x)
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def build_concat(node: OnnxNode) -> Built:
    return function(node, _concat, axis=int(node.get("axis", 0)))


def _concat(*values: Any, axis: int) -> Any:
    """`Concat` of tensors along an axis, or of lists of sizes."""
    if not is_tensor(*values):
        return [x for value in values for x in (value if isinstance(value, list) else [value])]
    like = next(x for x in values if isinstance(x, Tensor))
    tensors = [as_tensor(x, like if like.is_floating_point() else None).to(like.device) for x in values]
    return torch.cat([x.to(like.dtype) for x in tensors], axis)


@operator("Split")
def build_split(node: OnnxNode) -> Built:
    sizes, axis = known_list(node, 1, "split"), int(node.get("axis", 0))
    parts = len([name for name in node.outputs if name])
    if sizes is None or len(set(sizes)) == 1:  # equal parts follow a pruning by themselves
        return Built(function(node, _chunk, parts=parts, axis=axis).module, node.inputs[:1])
    return Built(function(node, _split, sizes=sizes, axis=axis).module, node.inputs[:1])


def _chunk(x: Any, *, parts: int, axis: int) -> Any:
    """Equal parts; the last one is smaller where they do not divide the size."""
    length = x.shape[axis] if isinstance(x, Tensor) else len(x)
    return _split(x, sizes=-(-length // parts), axis=axis)


def _split(x: Any, *, sizes: Any, axis: int) -> Any:
    """`Split` into parts of these sizes."""
    if isinstance(x, Tensor):
        return tuple(torch.split(x, sizes, axis))
    sizes = sizes if isinstance(sizes, list) else [sizes] * -(-len(x) // sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(x[a : a + n] for a, n in zip(starts, sizes))


@operator("Expand")
def build_expand(node: OnnxNode) -> Built:
    return function(node, _expand)


def _expand(x: Any, target: Any) -> Any:
    """`Expand`: broadcast with a shape of ones and sizes."""
    x, sizes = as_tensor(x), as_list(target)
    rank = max(x.dim(), len(sizes))
    own = [1] * (rank - x.dim()) + list(x.shape)
    return x.expand(*(a if n == 1 else n for a, n in zip(own, [1] * (rank - len(sizes)) + sizes)))


@operator("Tile")
def build_tile(node: OnnxNode) -> Built:
    return function(node, _tile)


def _tile(x: Any, repeats: Any) -> Any:
    """`Tile`."""
    counts = as_list(repeats)
    bounded(math.prod(counts) * _size(x))
    return x.repeat(*counts) if isinstance(x, Tensor) else x * counts[0]


@operator("ConstantOfShape")
def build_constant_of_shape(node: OnnxNode) -> Built:
    value = node.get("value", 0.0)
    kind = value.dtype if isinstance(value, Tensor) else torch.float32
    return function(node, _constant_of_shape, value=value.item() if isinstance(value, Tensor) else value, dtype=kind)


def _constant_of_shape(sizes: Any, *, value: Any, dtype: torch.dtype) -> Any:
    """`ConstantOfShape`; a list of integers where it may be a shape."""
    target = as_list(sizes)
    bounded(math.prod(target))
    if len(target) == 1 and not dtype.is_floating_point and isinstance(target[0], int) and target[0] <= 16:
        return [value] * target[0]
    return torch.full(target, value, dtype=dtype)


@operator("Range")
def build_range(node: OnnxNode) -> Built:
    return function(node, _arange)


def _arange(start: Any, limit: Any, delta: Any) -> Tensor:
    """`Range`."""
    numbers = [x.item() if isinstance(x, Tensor) else x[0] if isinstance(x, list) else x for x in (start, limit, delta)]
    bounded(abs(numbers[1] - numbers[0]) / max(abs(numbers[2]), 1e-9))
    return torch.arange(*numbers)


@operator("Trilu")
def build_trilu(node: OnnxNode) -> Built:
    diagonal = int(node.value(1, 0)) if not isinstance(node.value(1, 0), list) else node.value(1)[0]
    call = torch.triu if node.get("upper", 1) else torch.tril
    return Built(function(node, call, diagonal=diagonal).module, node.inputs[:1])


@operator("OneHot")
def build_one_hot(node: OnnxNode) -> Built:
    return function(node, _one_hot, axis=int(node.get("axis", -1)))


def _one_hot(index: Any, depth: Any, values: Any, *, axis: int) -> Tensor:
    """`OneHot`: values are what stands for no and for yes."""
    count, (off, on) = int(as_tensor(depth).reshape(-1)[0]), as_tensor(values)
    index = as_tensor(index).long()
    yes = F.one_hot(torch.where(index < 0, index + count, index), count).bool()
    return torch.where(yes.movedim(-1, axis), on, off)


@operator("DepthToSpace")
def build_depth_to_space(node: OnnxNode) -> Built:
    return function(node, _depth_to_space, block=int(node.get("blocksize")), mode=node.get("mode", "DCR"))


def _depth_to_space(x: Tensor, *, block: int, mode: str) -> Tensor:
    """`DepthToSpace`: pixel shuffle is the mode CRD."""
    if mode == "CRD":
        return F.pixel_shuffle(x, block)
    n, _, h, w = x.shape
    return x.reshape(n, block, block, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)


@operator("SpaceToDepth")
def build_space_to_depth(node: OnnxNode) -> Built:
    return function(node, _space_to_depth, block=int(node.get("blocksize")))


def _space_to_depth(x: Tensor, *, block: int) -> Tensor:
    """`SpaceToDepth`."""
    n, _, h, w = x.shape
    x = x.reshape(n, -1, h // block, block, w // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block, w // block)


@operator("Pad")
def build_pad(node: OnnxNode) -> Built:
    mode = node.get("mode", "constant")
    if "pads" in node.attributes:
        value = float(node.get("value", 0.0))
        return Built(
            function(node, pad_axes, pads=list(node.get("pads")), value=value, mode=mode).module, node.inputs[:1]
        )
    if node.has(3):
        node.refuse("pads for some axes only are not known")
    value = node.value(2, 0.0)
    number = value.item() if isinstance(value, Tensor) else value[0] if isinstance(value, list) else value
    if node.known(1):
        pads = as_list(node.value(1))
        return Built(function(node, pad_axes, pads=pads, value=number, mode=mode).module, node.inputs[:1])
    return Built(function(node, _pad_to, value=number, mode=mode).module, node.inputs[:2])


def _pad_to(x: Tensor, pads: Any, *, value: Any, mode: str) -> Tensor:
    """`Pad` by sizes that are computed."""
    return pad_axes(x, pads=as_list(pads), value=value, mode=mode)


def pad_axes(x: Tensor, *, pads: list[int], value: Any, mode: str) -> Tensor:
    """`Pad`: the sizes before all axes, then those after them; negative ones cut."""
    rank = x.dim()
    pairs = [(pads[i], pads[rank + i]) for i in range(rank)]
    if mode == "constant":
        flat = [n for pair in reversed(pairs) for n in pair]
        return F.pad(x, flat, value=value) if any(flat) else x
    for axis, (before, after) in enumerate(pairs):
        if before or after:
            x = x.index_select(axis, _source(x.shape[axis], before, after, mode).to(x.device))
    return x


def _source(length: int, before: int, after: int, mode: str) -> Tensor:
    """From where each place of a padded axis is taken."""
    places = torch.arange(-before, length + after)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)
    places = places.abs() % period
    return torch.where(places >= length, period - places, places)


@operator("CastLike")
def build_cast_like(node: OnnxNode) -> Built:
    return function(node, _cast_like)


def _cast_like(x: Any, like: Any) -> Any:
    """`CastLike`."""
    return as_tensor(x).to(as_tensor(like).dtype)


@operator("EyeLike")
def build_eye(node: OnnxNode) -> Built:
    kind = TYPES.get(node.get("dtype", 1), torch.float32)
    return function(node, _eye_like, dtype=kind, diagonal=int(node.get("k", 0)))


def _eye_like(x: Tensor, *, dtype: torch.dtype, diagonal: int) -> Tensor:
    """`EyeLike`."""
    return torch.ones(*x.shape, dtype=dtype).triu(diagonal).tril(diagonal)
