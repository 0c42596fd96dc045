"""Resize and Upsample: by `interpolate` where PyTorch computes the same, else by the formula of the operator."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.onnx_import.registry import Built, Function, OnnxNode, operator
from gossamer.onnx_import.values import as_list

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@operator("Resize", "Upsample")
def build_resize(node: OnnxNode) -> Built:
    mode = str(node.get("mode", "nearest"))
    old = node.op == "Upsample" or node.opset < 11
    where = "asymmetric" if old else str(node.get("coordinate_transformation_mode", "half_pixel"))
    rounding = "floor" if old else str(node.get("nearest_mode", "round_prefer_floor"))
    known = where in ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")
    if mode not in ("nearest", "linear") or not known or node.get("antialias", 0) or "axes" in node.attributes:
        node.refuse(f"mode {mode!r} with coordinates {where!r} is not known")
    options: dict[str, Any] = {"mode": mode, "where": where, "rounding": rounding}
    if "scales" in node.attributes:
        return Built(Function(_resize, **options, scales=list(node.get("scales")), target=None), node.inputs[:1])
    places = {"scales": 1 if old else 2} | ({} if old else {"target": 3})
    given = [(name, i) for name, i in places.items() if node.has(i) and not (node.known(i) and _empty(node.value(i)))]
    if not given:
        node.refuse("neither scales nor sizes are given")
    name, index = given[-1]
    if node.known(index):
        value = node.value(index)
        fixed = {"scales": None, "target": None} | {name: _numbers(value)}
        return Built(Function(_resize, **options, **fixed), node.inputs[:1])
    return Built(Function(_resize_to, **options, name=name), (node.inputs[0], node.inputs[index]))


def _empty(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.numel() == 0) or (isinstance(value, list) and not value)


def _numbers(value: Any) -> list[Any]:
    return [float(x) for x in value] if isinstance(value, Tensor) and value.is_floating_point() else as_list(value)


def _resize_to(x: Tensor, given: Any, *, name: str, mode: str, where: str, rounding: str) -> Tensor:
    """`Resize` by scales or to sizes that are computed."""
    fixed: dict[str, Any] = {"scales": None, "target": None} | {name: _numbers(given)}
    return _resize(x, mode=mode, where=where, rounding=rounding, **fixed)


def _resize(
    x: Tensor, *, mode: str, where: str, rounding: str, scales: list[float] | None, target: list[int] | None
) -> Tensor:
    """`Resize` of images (N, C, ...)."""
    sizes = [math.floor(n * s) for n, s in zip(x.shape, scales)] if target is None and scales else list(target or ())
    ratios = scales if scales is not None else [m / n for m, n in zip(sizes, x.shape)]
    if list(x.shape) == sizes:
        return x
    outer = sizes[2:] if len(sizes) == x.dim() else sizes
    whole = all(float(r).is_integer() for r in ratios[-len(outer) :])
    if mode == "nearest" and whole and (where, rounding) in EQUAL:
        return F.interpolate(x, scale_factor=[float(r) for r in ratios[-len(outer) :]], mode="nearest")
    ends = where == "align_corners"
    exact = all(n * r == m for n, r, m in zip(x.shape[-len(outer) :], ratios[-len(outer) :], outer))
    alike = ends or (where != "asymmetric" and min(outer) > 1 and (exact or scales is None))
    if mode == "linear" and len(outer) in LINEAR and alike:
        return F.interpolate(x, outer, mode=LINEAR[len(outer)], align_corners=ends)
    for axis, ratio in zip(range(x.dim() - len(outer), x.dim()), ratios[-len(outer) :]):
        x = _along(x, axis, sizes[axis - x.dim()], ratio, mode, where, rounding)
    return x


# By whole numbers, every one of these repeats each pixel.
EQUAL = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
}


def _along(x: Tensor, axis: int, size: int, ratio: float, mode: str, where: str, rounding: str) -> Tensor:
    """One axis, by the coordinates that the operator defines."""
    length = x.shape[axis]
    places = torch.arange(size, dtype=torch.float64, device=x.device)
    if where == "asymmetric":
        places = places / ratio
    elif where == "align_corners":
        places = places * ((length - 1) / max(size - 1, 1))
    elif where == "pytorch_half_pixel" and size == 1:
        places = torch.zeros_like(places)
    else:
        places = (places + 0.5) / ratio - 0.5
    if mode == "nearest":
        rounded = {
            "floor": places.floor,
            "ceil": places.ceil,
            "round_prefer_floor": (places - 0.5).ceil,
            "round_prefer_ceil": (places + 0.5).floor,
        }[rounding]()
        return x.index_select(axis, rounded.long().clamp(0, length - 1))
    low = places.floor()
    share = (places - low).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1 - axis))
    first, second = (x.index_select(axis, i.long().clamp(0, length - 1)) for i in (low, low + 1))
    return first + share * (second - first)
