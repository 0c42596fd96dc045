"""Image files as tensors: read with the range of their values, cut and scaled in bounded memory."""

import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from gossamer.core.preprocessing import BYTE_RANGE, Preprocessing
from gossamer.errors import BadInput, CorruptFile, first_line

S = TypeVar("S")
T = TypeVar("T")
# What Pillow's readers raise for broken files.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, OverflowError, Image.DecompressionBombError,
)  # fmt: skip
INTEGERS, FLOATS = ("I;16", "I;16L", "I;16B", "I;16N", "I"), ("F",)
DEEP = (*INTEGERS, *FLOATS)  # modes of more than 8 bits
GREY = ("1", "L", "LA", "La", *DEEP)
# Images that together need less are decoded once and kept.
CACHE_BYTES = 2**28
CHECKED_AT_ONCE = 20_000
RANGED = 256  # images that are decoded to find the range of deep values
NAMED = 10  # broken images that a message names
LARGE = 2**24  # pixels; images that have more are decoded one after the other
STRIP = 2**22  # pixels that are converted at a time
GAP = 3.0  # times the size asked for: larger images are first averaged down to this
TAIL = 32  # bytes from the end within which the mark of a whole file is looked for
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
ORIENTATION = 0x0112  # the tag that cameras write
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFiles:
    """Images in files as if they were a tensor (N, C, height, width): indexed by a tensor of positions.

    They come as uint8, or as floats in [0, 1] where the files hold more than 8 bits. Decoded by several threads when
    asked for, and kept if all of them fit into a quarter of a gibibyte.
    """

    def __init__(self, paths: Sequence[Path], form: Preprocessing) -> None:
        self.paths = list(paths)
        self.form = form
        self.shape = (len(self.paths), form.channels, *form.sides)
        self.cache: Tensor | None = None
        dtype = torch.uint8 if form.range == BYTE_RANGE else torch.float32
        if math.prod(self.shape) * dtype.itemsize <= CACHE_BYTES:
            self.cache = torch.empty(self.shape, dtype=dtype)
        self.cached = torch.zeros(len(self.paths), dtype=torch.bool)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if self.cache is None:
            return self._decode(index)
        missing = index[~self.cached[index]].unique()  # type: ignore[no-untyped-call]
        if len(missing):
            self.cache[missing] = self._decode(missing)
            self.cached[missing] = True
        return self.cache[index]

    def _decode(self, index: Tensor) -> Tensor:
        try:
            with large_images():
                paths = [self.paths[i] for i in index.tolist()]
                return torch.stack(each(paths, lambda path, most: decode_image(path, self.form, most)))
        except CorruptFile:
            # Who has to repair images wants to hear of all of them at once.
            refuse_broken(selected(self.paths), lambda path, most: decode_image(path, self.form, most))
            raise


class _Later(Exception):
    """An image that is too large to be decoded while others are."""


def each(paths: Sequence[S], work: Callable[[S, float], T]) -> list[T]:
    """What the work gives for every path, or number of an image, in order, by several threads. It is told how many
    pixels an image may have; what has more comes when all others are done, alone and in this thread: allocators keep
    memory for each thread."""

    def attempt(path: S) -> T | _Later:
        try:
            return work(path, LARGE)
        except _Later as later:
            return later

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(attempt, paths))
    return [work(p, math.inf) if isinstance(one, _Later) else one for p, one in zip(paths, found)]


@contextmanager
def _opened(path: Path, most: float, form: Preprocessing | None = None) -> Iterator[Image.Image]:
    """An image of at most so many pixels. form: what it is decoded for, which saves most of the work with JPEG."""
    with closing(Image.open(path)) as image:
        if form is not None:
            height, width = scaled_sides(form)
            image.draft("RGB" if form.channels == 3 else "L", (width, height))
        if math.prod(image.size) > most:
            raise _Later
        yield image


@contextmanager
def large_images() -> Iterator[None]:
    """Pillow warns of images from half of its limit on; here only what is above the limit is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def decode_image(path: Path, form: Preprocessing, most: float = math.inf) -> Tensor:
    """One image as (C, height, width): uint8, or float32 in [0, 1] where the form's range is not that of 8 bits.

    Only the part that is kept is converted, and what is much larger than asked for is averaged down strip by strip, so
    that memory is little more than what the decoder itself takes, whatever the sides are.
    """
    try:
        with _opened(path, most, form) as image:
            return _read(image, form)
    except UNREADABLE as error:
        raise CorruptFile(f"{unreadable(path, error)}; repair or remove it") from error


def _read(opened: Image.Image, form: Preprocessing) -> Tensor:
    opened.load()
    turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))  # after load(): TIFF files are turned by it
    box = kept_box(*opened.size, form)
    image = _resized(opened, box, form)
    image = image if turn is None else image.transpose(turn)
    values = torch.from_numpy(np.array(image))
    values = values.permute(2, 0, 1) if values.dim() == 3 else values.expand(form.channels, -1, -1)
    values = values.flip(0) if form.order == "bgr" else values
    if values.dtype == torch.uint8:
        return values.contiguous() if form.range == BYTE_RANGE else values / 255
    if not values.isfinite().all():
        raise ValueError("it holds NaN or infinite values")
    if form.range != BYTE_RANGE:
        return values.contiguous()
    if values.max() > 1:
        raise ValueError("its values go beyond 255, those of the training images do not")
    return values.mul(255).round().clamp(0, 255).to(torch.uint8)


def scaled_sides(form: Preprocessing) -> tuple[int, int]:
    """Height and width that the whole image is scaled to cover, of which the middle is taken."""
    height, width = (math.floor(side / (form.crop or 1.0) + 1e-6) for side in form.sides)
    return height, width


def kept_box(width: int, height: int, form: Preprocessing) -> tuple[float, float, float, float]:
    """The part of an image that is scaled to the form's sides: left, top, right, bottom, in its pixels.

    It is what is left when the image is scaled to cover them and the middle is cut out in whole pixels.
    """
    if form.crop is None:
        return 0.0, 0.0, float(width), float(height)
    scale = max(wanted / side for wanted, side in zip(scaled_sides(form), (height, width)))
    top, left = ((round(side * scale) - kept) // 2 / scale for side, kept in zip((height, width), form.sides))
    kept_height, kept_width = (side / scale for side in form.sides)
    return left, top, min(float(width), left + kept_width), min(float(height), top + kept_height)


def _resized(image: Image.Image, box: tuple[float, float, float, float], form: Preprocessing) -> Image.Image:
    """The box of an image, converted and scaled."""
    height, width = form.sides
    shrinks = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    factor = max(1, int(min(shrinks) / GAP))
    # What the filter looks at next to the box.
    margin = math.ceil(4 * max(1.0, *shrinks))
    left, top = (max(0, int(edge - margin)) for edge in box[:2])
    right, bottom = (min(side, math.ceil(edge + margin)) for side, edge in zip(image.size, box[2:]))
    rows = max(1, STRIP // (right - left) // factor) * factor
    small: Image.Image | None = None
    for start in range(top, bottom, rows):
        strip = _converted(image.crop((left, start, right, min(bottom, start + rows))), form)
        strip = strip if factor == 1 else strip.reduce(factor)
        if small is None:
            small = Image.new(strip.mode, (strip.width, math.ceil((bottom - top) / factor)))
        small.paste(strip, (0, (start - top) // factor))
    assert small is not None
    edges = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    limits = (*small.size, *small.size)
    inside = tuple(min(edge / factor, float(limit)) for edge, limit in zip(edges, limits))
    filter_ = Image.Resampling[form.interpolation.upper()]
    return small.resize((width, height), filter_, box=inside)  # type: ignore[arg-type]


def _converted(image: Image.Image, form: Preprocessing) -> Image.Image:
    """In the mode asked for, without transparency; deep values as floats, 0 and 1 at the ends of the form's range."""
    if image.mode in DEEP:
        low, high = form.range
        values = np.asarray(image)
        scaled = (values.astype(np.float32) - low) / (high - low)
        if "transparency" in image.info:
            scaled[values == image.info["transparency"]] = np.asarray(Image.new("L", (1, 1), form.background))[0] / 255
        return Image.fromarray(scaled)
    mode = "RGB" if form.channels == 3 else "L"
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, form.background), image).convert(mode)
    return image.convert(mode)


def unreadable(path: Path, error: BaseException) -> str:
    """What is wrong with an image file."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"{path} is too large to be read: it has more than {most:,} pixels, as a decompression bomb would"
    return f"{path} is not an image that can be read: {first_line(error)}"


def selected(paths: Sequence[Path]) -> Sequence[Path]:
    """All paths, or an even selection of very many."""
    return paths[:: 1 + len(paths) // CHECKED_AT_ONCE]


@dataclass(frozen=True)
class _Broken:
    """Why an image cannot be used."""

    why: str


def refuse_broken(paths: Sequence[Path], work: Callable[[Path, float], T]) -> list[T]:
    """Do the work with every file, and name all that it fails for in one message.

    Args:
        paths: Files of images.
        work: Takes a path and how many pixels its image may have.

    Returns:
        What the work gives for every path, in order.

    Raises:
        CorruptFile: The work failed with some of the files.
    """

    def attempt(path: Path, most: float) -> T | _Broken:
        try:
            return work(path, most)
        except CorruptFile as error:
            return _Broken(str(error).removesuffix("; repair or remove it"))
        except UNREADABLE as error:
            return _Broken(unreadable(path, error))

    with large_images():
        found = each(paths, attempt)
    broken = [one.why for one in found if isinstance(one, _Broken)]
    if len(broken) == 1:
        raise CorruptFile(f"{broken[0]}; repair or remove it")
    if broken:
        more = f"\n  and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        listed = "\n  ".join(broken[:NAMED])
        raise CorruptFile(f"{len(broken)} images cannot be used; repair or remove them:\n  {listed}{more}")
    return [one for one in found if not isinstance(one, _Broken)]


def image_header(path: Path, most: float) -> tuple[str, tuple[int, int]]:
    """Mode and size of an image from its header; a file that seems to end early is decoded to see whether it does."""
    with _opened(path, math.inf) as image, path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        mark = ENDS.get(image.format or "")
        if mark is None or mark not in file.read():
            if math.prod(image.size) > most:
                raise _Later
            image.load()
        return image.mode, image.size


def find_range(paths: Sequence[Path], modes: Mapping[Path, str]) -> tuple[float, float]:
    """The range of values that counts as black to white, from an even selection of the images with deep values.

    Integers from 0 to the largest number of as many bits as occur, at least 8; with negative numbers, and floats, from
    the smallest to the largest value; floats that fill [0, 1] are taken for what they are.
    """
    deep = [path for path in paths if modes.get(path) in DEEP]
    floats = [path for path in deep if modes[path] in FLOATS]
    if not deep:
        return BYTE_RANGE
    if floats and len(floats) < len(deep):
        integers = next(path for path in deep if modes[path] in INTEGERS)
        raise BadInput(f"{integers} holds integers, {floats[0]} floats: their ranges differ; write all of them alike")

    def ends(path: Path, most: float) -> tuple[float, float]:
        with _opened(path, most) as image:
            low, high = image.getextrema()
        return float(low), float(high)  # type: ignore[arg-type]

    found = refuse_broken(deep[:: 1 + len(deep) // RANGED], ends)
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if not math.isfinite(low - high):
        refuse_broken(deep, lambda path, most: _refuse_infinite(*ends(path, most)))
    if not floats and low >= 0:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    if floats and low >= 0 and 0.5 <= high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def _refuse_infinite(low: float, high: float) -> None:
    if not math.isfinite(low - high):
        raise ValueError("it holds NaN or infinite values")


def check_background(colour: str) -> str:
    """The name of a colour, or `#rrggbb`."""
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise BadInput(f"background = {colour!r} must be a colour: white, black, or #rrggbb") from error
    return colour
