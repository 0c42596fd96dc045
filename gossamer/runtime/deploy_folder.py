"""`deploy/` of a result: the network with programs that run it, and what measures it on a device."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossamer.core import record
from gossamer.core.folder import make_folder
from gossamer.core.preprocessing import BYTE_RANGE

PROGRAMS = Path(__file__).parent / "programs"
BENCH = "bench_on_device.py"
# For images; `run.py` and the others read what stands in `preprocessing.json` or in themselves.
FOR_IMAGES = ("run.py", "run.mjs", "run.cpp", "Run.kt")


def write_deploy_folder(model: Path, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write a folder that runs a network without gossamer.

    Args:
        model: the `.onnx` to ship.
        folder: is made anew.
        about: how images become inputs and the names of the classes, as `core.task.description` gives it. Without a
            size the network takes no images: the folder then has the file and `bench_on_device.py` alone.

    Returns:
        The folder.

    Example:
        >>> import tempfile, gossamer
        >>> net, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     file = gossamer.export_onnx(net, task.example_inputs, Path(place) / "net.onnx")
        ...     made = write_deploy_folder(file, Path(place) / "deploy", {})
        ...     sorted(path.name for path in made.iterdir())
        ['bench_on_device.py', 'net.onnx']
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    for path in (model, model.with_name(f"{model.name}.data")):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(PROGRAMS / BENCH, folder / BENCH)
    if "size" not in about:
        return folder
    record.write_text(folder / "preprocessing.json", json.dumps(dict(about), indent=1))
    record.write_text(folder / "labels.txt", "".join(f"{one}\n" for one in about.get("classes", ())))
    # The others get images of 8 bits from their platforms.
    for name in FOR_IMAGES if tuple(about.get("range", BYTE_RANGE)) == BYTE_RANGE else FOR_IMAGES[:1]:
        text = (PROGRAMS / name).read_text(encoding="utf-8")
        for mark, value in _marks(model.name, about).items():
            text = text.replace(mark, value)
        record.write_text(folder / name, text)
    return folder


def _marks(model: str, about: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the programs in the place of their marks."""
    form = {key: value for key, value in about.items() if key != "classes"}
    marks = {
        "MODEL_FILE": model,
        "FORM": json.dumps(form),
        "LABELS": json.dumps(about.get("classes", [])),
        "HEIGHT": str(about["size"]),
        "WIDTH": str(about["width"] or about["size"]),
        "CHANNELS_LAST": _truth(about["layout"] == "nhwc"),
        "CHANNELS": str(about["channels"]),
        "BGR": _truth(about["order"] == "bgr"),
        "CUBIC": _truth(about["interpolation"] == "bicubic"),
        "CROP": f"{float(about['crop'] or 0.0)!r}",
        "MEAN": _numbers(about["mean"]),
        "STD": _numbers(about["std"]),
    }
    return {f"/*{name}*/": value for name, value in marks.items()} | {'"MODEL_FILE"': json.dumps(model)}


def _numbers(values: Sequence[float]) -> str:
    """Floats as C++ and Kotlin write them."""
    return ", ".join(f"{float(value)!r}f" for value in values)


def _truth(value: bool) -> str:
    return "true" if value else "false"
