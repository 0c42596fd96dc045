"""How images become inputs, by `--preprocessing` or by what an `.onnx` file says of its input."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import onnx

from gossamer.core.preprocessing import Preprocessing
from gossamer.errors import BadInput, unknown

# What numbers a network expects for the values of a pixel, by name: mean and std in the scale 0 to 1.
NUMBERS: dict[str, dict[str, tuple[float, ...]]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "0-1": {"mean": (0.0,), "std": (1.0,)},
    "0-255": {"mean": (0.0,), "std": (1 / 255,)},
    "-1-1": {"mean": (0.5,), "std": (0.5,)},
}
FIELDS = tuple(one.name for one in fields(Preprocessing))
CHANNELS = (1, 3)


def parse_fields(text: str) -> dict[str, Any]:
    """Fields of a `Preprocessing` out of a JSON file, such as `preprocessing.json` of a result, or of
    `size=640x480,order=bgr,numbers=0-255`.

    Raises:
        BadInput: a field is not known, or its value is none.
    """
    if Path(text).is_file():
        return _from_json(Path(text))
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (one.strip() for one in part.partition("="))
        if not equals:
            raise BadInput(f"--preprocessing {text}: {part!r} is no field=value, and there is no file of that name")
        found |= _field(name, value)
    return found


def _from_json(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise BadInput(f"--preprocessing {path}: it is no JSON: {error}") from error
    if not isinstance(known, dict):
        raise BadInput(f"--preprocessing {path}: a JSON object with fields such as size, mean and std is expected")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items() if key in FIELDS}


def _field(name: str, value: str) -> dict[str, Any]:
    """One field as it was written."""
    if name == "numbers" and value not in NUMBERS:
        raise unknown("numbers", value, NUMBERS)
    try:
        match name:
            case "size":
                height, _, width = value.partition("x")
                return {"size": int(height), "width": int(width) if width and width != height else None}
            case "numbers":
                return dict(NUMBERS[value])
            case "mean" | "std":
                return {name: tuple(float(one) for one in value.split("/"))}
            case "crop":
                return {name: None if value == "none" else float(value)}
            case "channels":
                return {name: int(value)}
            case "order" | "layout" | "interpolation" | "background":
                return {name: value}
    except ValueError as error:
        raise BadInput(f"--preprocessing: {name}={value} cannot be read; {_example()}") from error
    raise unknown("field of --preprocessing", name, ("numbers", *FIELDS))


def _example() -> str:
    return "such as size=224, size=480x640, mean=0.5/0.5/0.5, crop=0.875 or crop=none"


def fields_of_onnx(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """What an `.onnx` file says of the images that it takes: their sides and where their channels stand. It cannot say
    which numbers it expects; what is taken is said."""
    from gossamer.runtime.onnx_read import read_onnx

    sizes = _image_sizes(read_onnx(path))
    if sizes is None:
        return {}
    layout, channels, height, width = sizes
    known: dict[str, Any] = {"channels": channels, "layout": layout}
    if height and width:
        known |= {"size": height, "width": None if width == height else width}
    say(
        f"{path.name} does not say how images become numbers: ImageNet's mean and std in the order RGB are taken; "
        "--preprocessing says otherwise (numbers=0-255,order=bgr)"
    )
    return known


def _image_sizes(model: onnx.ModelProto) -> tuple[str, int, int, int] | None:
    """Layout, channels, height and width (0 where it is free) of the one image that a file takes; None for others."""
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in given]
    if len(inputs) != 1:
        return None
    sizes = [max(0, one.dim_value) for one in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        return None
    if sizes[1] in CHANNELS:
        return "nchw", sizes[1], sizes[2], sizes[3]
    return ("nhwc", sizes[3], sizes[1], sizes[2]) if sizes[3] in CHANNELS else None
