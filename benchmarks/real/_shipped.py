"""Networks that packages ship as `.onnx`, with inputs whose right answers are known or are what the network says."""

import random
import string
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.signal import lfilter
from torch import Tensor

from benchmarks.common.packages import from_wheel
from gossamer.core.batches import inputs_and_target

Judge = Callable[[Any, Iterable[Any]], Tensor]
HEIGHT, WIDTH, LONGEST = 48, 224, 12  # of a line of text, in pixels and letters
WINDOW, STEP, STEPS = 576, 512, 32  # samples of a call of silero-vad, new ones among them; calls of a sequence
RATE, THRESHOLD = 16_000, 0.5
BYTES = 1024  # of the begin and of the end of a file


@dataclass(frozen=True)
class Shipped:
    """A file, samples for it, and what decides.

    Attributes:
        batches: of one sample or one sequence each.
        judge: scores in [0, 1] by sample; None: agreement with the network.
        together: how many batches may be one.
    """

    file: Path
    batches: list[Any]
    judge: Judge | None
    metric: str
    together: int = 1


def recognizer(count: int) -> Shipped:
    """PP-OCRv4's recognizer: words of letters and digits in the fonts at hand, drawn by PIL; exact match."""
    (file,) = (f for f in from_wheel("rapidocr-onnxruntime==1.4.4", ".onnx") if "rec" in f.name)
    listed = next(p.value for p in onnx.load(file).metadata_props if p.key == "character")
    places = {letter: i for i, letter in enumerate(["", *listed.splitlines(), " "])}
    fonts = sorted(Path("/usr/share/fonts/truetype").rglob("*.ttf"))
    rng, batches = random.Random(0), []
    for _ in range(count):
        text = "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randint(4, LONGEST)))
        codes = [places[letter] for letter in text] + [-1] * (LONGEST - len(text))
        batches.append((_drawn(text, rng, fonts), torch.tensor([codes])))

    def exact(model: Any, loader: Iterable[Any]) -> Tensor:
        hits = []
        for batch in loader:
            (image,), codes = inputs_and_target(batch)
            best = model(image).argmax(2)
            for row, right in zip(best.tolist(), codes.tolist(), strict=True):
                said = [c for i, c in enumerate(row) if c and (i == 0 or c != row[i - 1])]
                hits.append(float(said == [c for c in right if c >= 0]))
        return torch.tensor(hits)

    return Shipped(file, batches, exact, "lines read exactly", 8)


def _drawn(text: str, rng: random.Random, fonts: Sequence[Path]) -> Tensor:
    """A line of text as the package prepares it, shape (1, 3, 48, 224), in [-1, 1]."""
    font = ImageFont.truetype(str(rng.choice(fonts)), rng.randint(18, 40))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = (tuple(rng.randint(a, b) for _ in range(3)) for a, b in ((170, 255), (0, 90)))
    size = (round(right - left) + 12, round(bottom - top) + 12)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((6 - left, 6 - top), text, font=font, fill=ink)
    width = min(WIDTH, max(8, round(HEIGHT * image.width / image.height)))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    resized = image.resize((width, HEIGHT), Image.Resampling.BILINEAR)
    pixels[:, :width] = np.asarray(resized, np.float32)[:, :, ::-1] / 127.5 - 1
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def voice_activity(count: int) -> Shipped:
    """silero-vad on vowels and pauses with noise, all synthetic; windows with the float network's decision."""
    (file,) = (f for f in from_wheel("silero-vad==6.2.3", ".onnx") if f.name == "silero_vad_16k_sequence.onnx")
    rng, state = np.random.default_rng(0), torch.zeros(1, 1, 128)
    batches = []
    for _ in range(count):
        sound = torch.nn.functional.pad(torch.from_numpy(spoken(rng, STEP * STEPS)), (WINDOW - STEP, 0))
        batches.append(((sound.unfold(0, WINDOW, STEP).contiguous(), state, state), None))
    reference = onnx_session(file)

    def same(model: Any, loader: Iterable[Any]) -> Tensor:
        hits = []
        for inputs, _ in loader:
            said = reference.run(None, {i.name: x.numpy() for i, x in zip(reference.get_inputs(), inputs)})[0]
            hits.append((model(*inputs)[0] > THRESHOLD).cpu() == (torch.from_numpy(said) > THRESHOLD))
        return torch.cat(hits).float()

    return Shipped(file, batches, same, "windows with the same decision")


def onnx_session(file: Path) -> Any:
    """A file on one thread of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options)


def spoken(rng: np.random.Generator, samples: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Syllables of vowels with pauses: pulses of a moving pitch through three resonances, and noise."""
    made, at = np.zeros(samples), int(rng.integers(0, RATE // 4))
    while at < samples:
        length = min(int(rng.integers(RATE // 12, RATE // 3)), samples - at)
        pitch = rng.uniform(85, 260) * (1 + 0.1 * np.sin(np.linspace(0, rng.uniform(1, 6), length)))
        wave = (np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0) > 0) + 0.05 * rng.normal(size=length)
        for center, width in zip(rng.uniform((250, 800, 1900), (900, 2400, 3400)), (90, 120, 180), strict=True):
            wave = lfilter([1], [1, -2 * np.exp(-np.pi * width / RATE) * np.cos(2 * np.pi * center / RATE),
                                 np.exp(-2 * np.pi * width / RATE)], wave)  # fmt: skip
        wave *= np.hanning(length) ** 0.5 / max(np.abs(wave).max(), 1e-9)
        made[at : at + length] = rng.uniform(0.02, 0.5) * wave
        at += length + int(rng.exponential(RATE / 8)) * int(rng.random() < 0.4)
    return (made + rng.normal(size=samples) * 10 ** rng.uniform(-4, -1.8)).astype(np.float32)


def file_types(count: int) -> Shipped:
    """magika on files of the machine, as many of each ending as of any other; agreement with the float network."""
    (file,) = from_wheel("magika==1.0.3", ".onnx")
    roots = [Path(sysconfig.get_paths()["stdlib"]), *map(Path, ("/usr/share", "/usr/include", "/usr/lib", "/etc"))]
    by_ending: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and 64 < path.stat().st_size < 2**20:
                by_ending.setdefault(path.suffix.lower(), []).append(path)
    rng, taken = random.Random(0), list[Path]()
    for paths in by_ending.values():
        rng.shuffle(paths)
    most = max(map(len, by_ending.values()))
    for number in range(most):
        some = [paths[number] for _, paths in sorted(by_ending.items()) if number < len(paths)]
        rng.shuffle(some)
        taken += some
        if len(taken) >= count:
            break
    taken = taken[:count]
    rng.shuffle(taken)
    return Shipped(file, [(_ends(path), None) for path in taken], None, "files of the same type", 8)


def _ends(path: Path) -> Tensor:
    """The begin and the end of a file without white space there, as the package takes them, shape (1, 2048)."""
    data = path.read_bytes()
    first, last = data[:4096].lstrip()[:BYTES], data[-4096:].rstrip()[-BYTES:]
    codes = [*first, *[256] * (BYTES - len(first)), *[256] * (BYTES - len(last)), *last]
    return torch.tensor([codes], dtype=torch.int32)


NETWORKS: dict[str, Callable[[int], Shipped]] = {"text": recognizer, "voice": voice_activity, "files": file_types}
