"""What the user writes on the command line: sizes, counts, and the options that commands share."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

_NUMBER = re.compile(r"(?P<number>\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*(?P<prefix>[kKMG])?(?P<binary>i)?(?P<unit>B)?")
_POWER = {None: 0, "k": 1, "K": 1, "M": 2, "G": 3}


def parse_bytes(text: str) -> int:
    """Bytes of `30kB` (1000), `30KiB` (1024), `1.5MB`, `30000`."""
    return _parse(text, "a size in bytes, such as 30kB, 1.5MB or 30KiB", unit=True)


def parse_count(text: str) -> int:
    """A count such as `10M`, `250k` or `10000`."""
    return _parse(text, "a count, such as 250k or 10M", unit=False)


def _parse(text: str, what: str, *, unit: bool) -> int:
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (found["unit"] and not unit) or (found["binary"] and not (found["prefix"] and found["unit"])):
        raise typer.BadParameter(f"{text!r} is not {what}")
    base = 1024 if found["binary"] else 1000
    return int(Decimal(found["number"].replace("_", "")) * base ** _POWER[found["prefix"]])


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A zoo name (resnet20), package.module:factory, timm:NAME, torchvision:NAME, a .pt2 or .safetensors file.",
    ),
]
DATA_HELP = (
    "A built-in name (digits, fashion-mnist), a folder of class folders with images, package.module:task, "
    "or auto: Fashion-MNIST where it is found, else digits."
)
DataOption = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
OptionalDataOption = Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Trained weights: .safetensors, or .pt with tensors only."),
]
AugmentOption = Annotated[
    bool | None,
    typer.Option(
        "--augment/--no-augment", help="Shift and mirror training images.", show_default="the recipe's, or yes"
    ),
]
RandomOption = Annotated[bool, typer.Option("--random", help="Untrained weights, drawn from --seed.")]
MaxDropOption = Annotated[float | None, typer.Option(help="Points of accuracy that may be lost.", show_default="0.5")]
SpeedupOption = Annotated[float | None, typer.Option(help="How many times faster, at least.")]
LatencyOption = Annotated[float | None, typer.Option("--latency-ms", help="Time of one batch, at most.")]
MacsOption = Annotated[
    int | None, typer.Option(parser=parse_count, metavar="N", help="Multiply-adds of one sample, at most (10M).")
]
ParamsOption = Annotated[int | None, typer.Option(parser=parse_count, metavar="N", help="Parameters, at most (100k).")]
FileBytesOption = Annotated[
    int | None,
    typer.Option(
        "--file-bytes", parser=parse_bytes, metavar="SIZE", help="Size of the compact file, at most (30kB, 1MiB)."
    ),
]
RuntimeOption = Annotated[
    str, typer.Option(help="Where latency counts: torch, torch.compile, onnxruntime or openvino.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples per call when latency is measured.")]
LearningRateOption = Annotated[
    float | None, typer.Option("--lr", help="Highest learning rate.", show_default="found by short trials")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Samples per training step.", show_default="128"),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Threads that prepare batches ahead of the training.", show_default="0"),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
DevicesOption = Annotated[int, typer.Option(min=1, help="Devices to train on; on CPU, processes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes of one input, batch first: `1x3x224x224`."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise typer.BadParameter(f"{text!r} is not a shape such as 1x3x224x224")
    return tuple(int(size) for size in text.split("x"))


ShapeOption = Annotated[
    Any,
    typer.Option(
        "--input",
        parser=parse_shape,
        metavar="SHAPE",
        help="Shape of one input, such as 1x3x224x224, where no --data says it.",
    ),
]
