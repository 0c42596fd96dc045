"""How images become inputs of a network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gossamer.errors import BadInput

BYTE_RANGE = (0.0, 255.0)
ORDERS, LAYOUTS = ("rgb", "bgr"), ("nchw", "nhwc")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to an image before the network sees it: by gossamer, and by whoever deploys the network.

    The image is scaled to cover `size / crop` x `width / crop` pixels, and the middle of `size` x `width` is cut out;
    crop None: the whole image is scaled to `size` x `width`. width None: a square. channels: 3 for colour in `order`, 1
    for grey. Values of `range` become 0 to 1, then (x - mean) / std; one number a channel, in that order. layout: of a
    batch; "nhwc" has the channels last. background: what shows through where an image is transparent.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = 1.0
    interpolation: str = "bilinear"
    range: tuple[float, float] = BYTE_RANGE
    background: str = "white"
    width: int | None = None
    order: str = "rgb"
    layout: str = "nchw"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed with."""
        try:
            one_each = len(self.mean) == len(self.std) == self.channels and self.channels in (1, 3)
            sound = min(self.sides) >= 1 and self.order in ORDERS and self.layout in LAYOUTS
            sound = sound and (self.crop is None or self.crop > 0) and self.range[0] < self.range[1]
            numbers = (*self.sides, *self.mean, *self.std, *self.range, self.crop or 1.0)
            sound = sound and min(self.std) > 0 and all(math.isfinite(number) for number in numbers)
        except (TypeError, ValueError, IndexError):
            sound = one_each = False
        if not sound or not one_each or self.interpolation not in INTERPOLATIONS:
            raise BadInput(
                f"{self} is no preprocessing: needs a size, 1 or 3 channels with mean and std > 0 each, crop > 0, a "
                f"range from low to high, an order of {' or '.join(ORDERS)}, a layout of {' or '.join(LAYOUTS)}, and "
                f"an interpolation of {', '.join(INTERPOLATIONS)}"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.size, self.size if self.width is None else self.width

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Preprocessing":
        """From JSON values, such as `description` gives; BadInput where they are none."""
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {key: _frozen(raw[key]) for key in names if key in raw}
        try:
            return cls(**values)
        except TypeError as error:
            raise BadInput(f"it does not say how images become inputs: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
