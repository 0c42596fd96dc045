"""Images of many formats, and changes of them: of bytes, and of the chunks of a PNG with their checksums made right."""

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.robustness.fuzz_gsr import damaged
from gossamer.core.preprocessing import Preprocessing
from gossamer.data import folder, images
from gossamer.errors import CorruptFile

FORM = Preprocessing(size=8, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
PNG = 8  # bytes before its first chunk
SIZES = (0, 1, 7, 255, 1 << 13, 1 << 15, 1 << 16, (1 << 31) - 1, (1 << 32) - 1)


def sample_images() -> list[bytes]:
    """Small images of every format and depth that is read."""
    draw = np.random.default_rng(0)
    grey = Image.fromarray(draw.integers(0, 256, (9, 12), dtype=np.uint8))
    deep = Image.fromarray(draw.integers(0, 1 << 16, (9, 12)).astype(np.uint16))
    real = Image.fromarray(draw.random((9, 12), dtype=np.float32))
    colour = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    clear = Image.fromarray(draw.integers(0, 256, (9, 12, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    chosen = [(colour, "PNG", {}), (clear, "PNG", {}), (grey.convert("P"), "PNG", {"transparency": 3})]
    chosen += [(deep, "PNG", {}), (grey.convert("1"), "PNG", {}), (colour, "JPEG", {"exif": exif}), (grey, "JPEG", {})]
    chosen += [(colour, "BMP", {}), (grey, "GIF", {}), (clear, "WEBP", {}), (colour, "PPM", {}), (deep, "TIFF", {})]
    chosen += [(real, "TIFF", {}), (colour, "TIFF", {"compression": "tiff_lzw"})]
    found = []
    for image, kind, options in chosen:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


def changed_image(whole: list[bytes], draw: random.Random) -> bytes:
    """One of the images with one to three changes."""
    data = draw.choice(whole)
    return _changed_chunks(data, draw) if data[1:4] == b"PNG" and draw.random() < 0.7 else damaged(data, draw)


def _changed_chunks(data: bytes, draw: random.Random) -> bytes:
    """A PNG with chunks changed, gone, twice, or in another order; all checksums are right."""
    chunks, at = [], PNG
    while at < len(data):
        [length] = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(len(chunks))
        kind, body = chunks[place]
        match draw.randrange(6):
            case 0 if kind == b"IHDR" and len(body) >= 13:
                sides = struct.pack(">II", draw.choice(SIZES), draw.choice((*SIZES, 9, 9)))
                body = sides + bytes(draw.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5))
            case 1 if kind == b"IDAT":
                body = zlib.compress(bytes(draw.choice((0, 1, 100, 1 << 10, 1 << 20))))
            case 2:
                chunks.insert(draw.randrange(len(chunks) + 1), chunks[place])
            case 3:
                kind = draw.choice((b"tRNS", b"PLTE", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"IEND"))
            case _:
                body = damaged(body, draw) if body else draw.randbytes(draw.choice((1, 4, 300)))
        chunks[place] = (kind, body)
    return data[:PNG] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def take_image(path: Path) -> None:
    """Look at it as a data set's image, and decode it: both must give an image or refuse."""
    with contextlib.suppress(CorruptFile):
        folder.common_form([path], [path], size=8, background="white")
    with images.large_images():
        images.decode_image(path, FORM)
