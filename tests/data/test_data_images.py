"""Image files: the range of their values, transparency, damage, and memory."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gossamer.core.preprocessing import Preprocessing
from gossamer.data import images, load_task
from gossamer.data.images import decode_image, find_range, kept_box, scaled_sides
from gossamer.errors import BadInput, CorruptFile
from gossamer.runtime.memory import peak_growth

RAMP = np.linspace(0, 65535, 64).reshape(8, 8)
RGB = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def form(size: int, channels: int = 3, **more: Any) -> Preprocessing:
    return Preprocessing(size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels, **more)


def save_all(root: Path, values: NDArray[Any], suffix: str, each: int = 10) -> Path:
    """Two classes of shifted copies of an image."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for shift in range(each):
            Image.fromarray(np.roll(values, shift, 1)).save(root / name / f"{shift}{suffix}")
    return root


def first(root: Path, **options: Any) -> NDArray[np.float64]:
    """The first image of class a as the network sees it, from 0 to 1, by its number."""
    task = load_task(root, **options)
    assert task.preprocessing is not None
    paths = task.train.images.paths  # type: ignore[attr-defined]
    at = next(i for i, path in enumerate(paths) if path.parent.name == "a")
    x = task.train.images[torch.tensor([at])]  # type: ignore[attr-defined]
    shift = int(paths[at].stem)
    return np.roll(x[0, 0].double().numpy() / (255 if x.dtype == torch.uint8 else 1), -shift, 1)


@pytest.mark.parametrize(
    ("values", "suffix", "scale"),
    [
        ((RAMP / 257).astype(np.uint8), ".png", 255),
        (RAMP.astype(np.uint16), ".png", 65535),
        (RAMP.astype(np.uint16), ".tif", 65535),
        ((RAMP / 16).astype(np.uint16), ".png", 4095),  # 12 bits of a camera
        ((RAMP / 65535 * 200).astype(np.uint16), ".png", 255),
        (RAMP.astype(np.int32), ".tif", 65535),
        ((RAMP / 65535).astype(np.float32), ".tif", 1),
        ((RAMP / 65535 * 0.7).astype(np.float32), ".tif", 1),
    ],
)
def test_values_are_read_with_the_range_that_they_are_written_in(
    tmp_path: Path, values: NDArray[Any], suffix: str, scale: float
) -> None:
    seen = first(save_all(tmp_path, values, suffix))
    np.testing.assert_allclose(seen, values / scale, atol=0.5 / 255 if scale == 255 else 1e-6)


@pytest.mark.parametrize("values", [RAMP - 30000, RAMP / 7e3, -RAMP / 1e9])
def test_other_floats_go_from_their_smallest_to_their_largest(tmp_path: Path, values: NDArray[Any]) -> None:
    seen = first(save_all(tmp_path, values.astype(np.float32), ".tif"))
    np.testing.assert_allclose(seen, (values - values.min()) / np.ptp(values), atol=1e-5)


def test_negative_integers_too(tmp_path: Path) -> None:
    values = (RAMP - 1024).astype(np.int32)
    seen = first(save_all(tmp_path, values, ".tif"))
    np.testing.assert_allclose(seen, (values + 1024) / np.ptp(values), atol=1e-6)


def png(values: NDArray[np.uint16], kind: int) -> bytes:
    """A 16-bit PNG, which Pillow does not write in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_have_their_range(tmp_path: Path) -> None:
    values = np.stack([RAMP, RAMP.T, RAMP[::-1]], 2).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(values, 2))
    seen = decode_image(tmp_path / "a.png", form(8)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(seen / 255, values / 65535, atol=1 / 255)


def test_deep_grey_images_among_colours_have_their_range(tmp_path: Path) -> None:
    save_all(tmp_path, RAMP.astype(np.uint16), ".png")
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "b" / "colour.png")
    task = load_task(tmp_path)
    assert task.preprocessing == Preprocessing(
        size=8, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), range=(0, 65535)
    )
    deep = decode_image(tmp_path / "a" / "0.png", task.preprocessing)
    np.testing.assert_allclose(deep.numpy(), np.stack([RAMP / 65535] * 3), atol=2e-5)
    colour = decode_image(tmp_path / "b" / "colour.png", task.preprocessing)
    assert colour[:, 3, 3].tolist() == pytest.approx([1, 0, 0.2])


def test_integers_beside_floats_are_refused(tmp_path: Path) -> None:
    save_all(tmp_path, RAMP.astype(np.uint16), ".tif")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "b" / "odd.tif")
    paths = sorted(tmp_path.rglob("*.tif"))
    with pytest.raises(BadInput, match=r"tif holds integers, .*odd\.tif floats: their ranges differ"):
        find_range(paths, {path: "F" if path.name == "odd.tif" else "I;16" for path in paths})


def test_values_above_the_range_of_training_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(CorruptFile, match=r"a\.png .*its values go beyond 255"):
        decode_image(tmp_path / "a.png", form(8, 1))


def test_floats_that_are_not_finite_are_named(tmp_path: Path) -> None:
    save_all(tmp_path, (RAMP / 65535).astype(np.float32), ".tif")
    Image.fromarray(np.full((8, 8), np.inf, np.float32)).save(tmp_path / "a" / "11.tif")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "b" / "11.tif")
    with pytest.raises(CorruptFile, match=r"(?s)2 images cannot be used.*a/11\.tif.*b/11\.tif.*NaN or infinite"):
        task = load_task(tmp_path)
        for part in (task.train, task.validation, task.test):
            list(part)


@pytest.mark.parametrize("background", ["white", "black", "#ff0000"])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "PA", "tRNS", "tRNS grey", "tRNS 16"])
def test_transparent_images_lie_on_the_background(tmp_path: Path, background: str, kind: str) -> None:
    path = tmp_path / "a.png"
    opaque, through = Image.new("RGBA", (4, 8), (40, 40, 40, 255)), (7, 7, 7, 0)
    both = Image.new("RGBA", (8, 8), through)
    both.paste(opaque, (0, 0))
    match kind:
        case "RGBA" | "LA":
            both.convert(kind).save(path)
        case "P" | "PA":
            pixels = Image.new("P", (8, 8), 1)
            pixels.putpalette([40, 40, 40, 7, 7, 7])
            pixels.paste(0, (0, 0, 4, 8))
            pixels.save(path, transparency=1)
        case "tRNS":
            both.convert("RGB").save(path, transparency=(7, 7, 7))
        case "tRNS grey":
            both.convert("L").save(path, transparency=7)
        case "tRNS 16":
            Image.fromarray(np.asarray(both.convert("L")).astype(np.uint16)).save(path)
            data = path.read_bytes()
            at = data.index(b"IDAT") - 4
            chunk = b"tRNS" + struct.pack(">H", 7)
            path.write_bytes(
                data[:at] + struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]
            )
    grey = kind == "tRNS 16"
    seen = decode_image(path, form(8, background=background))
    expected = Image.new("RGB", (1, 1), background)
    behind = [expected.convert("L").getpixel((0, 0))] * 3 if grey else list(expected.getpixel((0, 0)))  # type: ignore[arg-type, call-overload]
    assert seen[:, 0, 0].tolist() == [40, 40, 40]
    assert seen[:, 0, 7].tolist() == behind


def test_half_transparent_is_half_way(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", form(4))[0, 0, 0] == 127


def test_a_background_that_is_no_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="background = 'wite' must be a colour"):
        load_task(save_all(tmp_path, RAMP.astype(np.uint8), ".png"), background="wite")


def test_printed_colours_are_the_screen_s(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert decode_image(tmp_path / "a.tif", form(8))[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_camera_is_followed(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 255, 128
    # The stored image is what the turn of the tag makes upright again.
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = Image.fromarray(upright)
    stored = stored if undo == 1 else stored.transpose(images.TURNS[undo])
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif)
    seen = decode_image(tmp_path / f"a{suffix}", form(16, 1))[0].int()
    corners = [int(seen[at]) for at in ((2, 2), (2, 13), (13, 2), (13, 13))]
    assert corners == pytest.approx([255, 128, 0, 0], abs=3)


@pytest.mark.parametrize("side", ["._x.png", ".hidden.jpg", "Thumbs.db", ".DS_Store", "sub/__MACOSX/x.png", ".t/x.png"])
def test_what_systems_leave_beside_images_is_not_looked_at(tmp_path: Path, side: str) -> None:
    save_all(tmp_path, RAMP.astype(np.uint8), ".png")
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "b" / side).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "b" / side).write_bytes(b"\0\5\26\7")
    task = load_task(tmp_path)
    assert task.classes == ("a", "b")
    assert sum(len(x) for part in (task.validation, task.test) for x, _ in part) + task.train.samples == 20  # type: ignore[attr-defined]


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    save_all(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), ".png")
    (tmp_path / "a" / "0.png").write_bytes(b"no")
    for name, suffix in (("1", ".jpg"), ("2", ".png"), ("3", ".webp"), ("4", ".bmp")):
        path = tmp_path / "b" / f"early{name}{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(CorruptFile) as caught:
        load_task(tmp_path)
    said = str(caught.value)
    assert said.startswith("5 images cannot be used; repair or remove them:\n")
    assert all(name in said for name in ("a/0.png", "early1.jpg", "early2.png", "early3.webp", "early4.bmp"))


def test_a_message_names_a_few_broken_images_and_counts_the_rest(tmp_path: Path) -> None:
    save_all(tmp_path, RAMP.astype(np.uint8), ".png")
    for number in range(25):
        (tmp_path / "a" / f"broken{number:02}.png").write_bytes(b"no")
    with pytest.raises(CorruptFile) as caught:
        load_task(tmp_path)
    assert str(caught.value).startswith("25 images") and str(caught.value).endswith("\n  and 15 more")
    assert str(caught.value).count("broken") == 2 * images.NAMED  # the reason says the name once more


def test_damage_that_only_decoding_shows_is_named_all_at_once(tmp_path: Path) -> None:
    save_all(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), ".png")
    task = load_task(tmp_path, batch_size=2)
    damaged = task.train.images.paths[::5]  # type: ignore[attr-defined]
    for path in damaged:
        data = bytearray(path.read_bytes())
        data[1000:1010] = bytes(10)
        path.write_bytes(data)
    with pytest.raises(CorruptFile) as caught:
        list(task.train)
    assert all(str(path) in str(caught.value) for path in damaged)


def with_chunks(path: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    """Change the chunks of a PNG, by kind and content; their checksums are right again."""
    data, at = path.read_bytes(), 8
    found = data[:8]
    while at < len(data):
        [length] = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        body = change(kind, body)
        found += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        at += 12 + length
    path.write_bytes(found)


def test_deep_images_whose_damage_only_decoding_shows_are_named_when_the_range_is_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    with_chunks(path, lambda kind, body: zlib.compress(b"") if kind == b"IDAT" else body)
    with pytest.raises(CorruptFile, match=r"a\.png is not an image that can be read.*repair or remove it"):
        find_range([path], {path: "I;16"})


def test_a_chunk_that_ends_too_early_is_damage_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, icc_profile=b"profile")
    with_chunks(path, lambda kind, body: b"name" if kind == b"iCCP" else body)
    with pytest.raises(CorruptFile, match=r"a\.png is not an image that can be read"):
        decode_image(path, form(8))


@pytest.mark.slow
def test_long_and_large_images_take_little_more_memory_than_their_decoder(tmp_path: Path) -> None:
    Image.new("L", (60_000, 1), 200).save(tmp_path / "long.png")
    Image.new("1", (8_000, 8_000), 1).save(tmp_path / "large.png", compress_level=1)

    def work() -> None:
        files = images.ImageFiles([tmp_path / "long.png", tmp_path / "large.png"] * 2, form(224))
        assert files[torch.arange(4)].flatten(1).float().mean(1).tolist() == [200, 255, 200, 255]

    assert peak_growth(work) < 64e6 + 60e6


def test_a_decompression_bomb_is_one_message_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path, RAMP.astype(np.uint8), ".png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (15, 15)).save(tmp_path / "a" / "bomb.png")
    with pytest.raises(CorruptFile, match=r"bomb\.png is too large to be read: it has more than 200 pixels.*repair or"):
        load_task(tmp_path)
    Image.new("1", (12, 12)).save(tmp_path / "a" / "bomb.png")
    list(load_task(tmp_path).train)  # nothing is said about what is large but not too large


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("shape", [(90, 200), (200, 90), (31, 33)])
@pytest.mark.parametrize("crop", [1.0, 0.875, None])
def test_strips_and_boxes_give_what_scaling_the_whole_and_cutting_gives(
    tmp_path: Path, mode: str, shape: tuple[int, int], crop: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "STRIP", 1000)
    rows, columns = np.indices(shape)
    values = 127 + 60 * np.sin(rows / 25) + 60 * np.cos(columns / 31)
    suffix = ".tif" if mode in ("F", "I;16") else ".png"
    whole = Image.fromarray(values.astype(np.float32))
    stored = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else whole
    stored = stored if mode in ("F", "I;16") else whole.convert("L").convert(mode, dither=Image.Dither.NONE)
    stored.save(tmp_path / f"a{suffix}")
    wanted = form(16, 1, crop=crop)
    seen = decode_image(tmp_path / f"a{suffix}", wanted)[0].float().numpy()
    plain = stored if mode in ("F", "I;16") else stored.convert("L")
    plain = Image.fromarray(np.asarray(plain).astype(np.float32))
    if crop is None:
        expected = plain.resize((16, 16), Image.Resampling.BILINEAR)
    else:
        scale = scaled_sides(wanted)[0] / min(plain.size)
        width, height = (round(side * scale) for side in plain.size)
        left, top = (width - 16) // 2, (height - 16) // 2
        expected = plain.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 16))
    # Half tones of one bit vary more from place to place.
    assert np.abs(seen - np.asarray(expected)).mean() < (12 if mode == "1" else 2.5)


def test_the_middle_is_what_pretrained_networks_are_evaluated_on() -> None:
    """256 scaled and 224 cut out, as everywhere: the middle 7/8 of the shorter side."""
    wanted = form(224, crop=0.875)
    assert scaled_sides(wanted) == (256, 256)
    assert kept_box(512, 512, wanted) == (32, 32, 480, 480)
    assert scaled_sides(form(224, crop=224 / 232)) == (232, 232)
    assert scaled_sides(form(224, crop=0.9)) == (248, 248)
    assert kept_box(100, 50, form(224, crop=None)) == (0, 0, 100, 50)
