"""Runs the network on images: python run.py photo.jpg ... Needs onnxruntime, numpy and pillow."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
FORM = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
LABELS = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def prepared(path: str | Path) -> Any:
    """One image as a batch of one: scaled to cover the input, its middle cut out, in the network's numbers."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode in DEEP:  # values of 16 bits and floats: 0 and 1 stand for the ends of the range
        low, high = FORM["range"]
        image = Image.fromarray((np.asarray(image).astype(np.float32) - low) / (high - low))
    else:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, FORM["background"])
        image = Image.alpha_composite(ground, image).convert("RGB" if FORM["channels"] == 3 else "L")
    height, width = FORM["size"], FORM["width"] or FORM["size"]
    box = (0.0, 0.0, float(image.width), float(image.height))
    if FORM["crop"] is not None:
        covered = [int(side / FORM["crop"] + 1e-6) for side in (width, height)]
        scale = max(side / own for side, own in zip(covered, image.size))
        left, top = ((round(own * scale) - side) // 2 / scale for own, side in zip(image.size, (width, height)))
        box = (left, top, min(image.width, left + width / scale), min(image.height, top + height / scale))
    image = image.resize((width, height), Image.Resampling[FORM["interpolation"].upper()], box=box)
    x = np.asarray(image, np.float32).reshape(height, width, -1) / (1 if image.mode == "F" else 255)
    x = np.broadcast_to(x, (height, width, FORM["channels"]))
    x = x[:, :, ::-1] if FORM["order"] == "bgr" else x
    x = (x - np.array(FORM["mean"], np.float32)) / np.array(FORM["std"], np.float32)
    x = x if FORM["layout"] == "nhwc" else x.transpose(2, 0, 1)
    return np.ascontiguousarray(x[None])


def main() -> None:
    """Print the three best classes of every image, or the shapes of the outputs where there are no classes."""
    session = onnxruntime.InferenceSession(str(HERE / "MODEL_FILE"), providers=["CPUExecutionProvider"])
    for path in sys.argv[1:]:
        outputs = session.run(None, {session.get_inputs()[0].name: prepared(path)})
        first = outputs[0][0]
        if first.ndim != 1:
            print(path, *("x".join(map(str, one.shape)) for one in outputs))
            continue
        shown = [f"{LABELS[i] if i < len(LABELS) else i}={first[i]:.3f}" for i in first.argsort()[::-1][:3]]
        print(path, *shown)


if __name__ == "__main__":
    main()
