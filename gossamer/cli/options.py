"""What the user writes on the command line: sizes, counts, and the options that commands share."""

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.errors import BadInput, unknown

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


MODEL_HELP = (
    "A name of the zoo (resnet20), package.module:factory, timm:NAME, torchvision:NAME, hf:NAME, hf:FOLDER, an .onnx, "
    ".pt2, .gsr or .safetensors file, or a result folder"
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}.")]
DATA_HELP = (
    "A built-in name (digits, fashion-mnist), a folder of class folders with images, package.module:task, "
    "or auto: Fashion-MNIST where it is found, else digits."
)
DataOption = Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
OptionalDataOption = Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
AugmentOption = Annotated[
    bool | None,
    typer.Option(
        "--augment/--no-augment", help="Shift and mirror training images.", show_default="yes, or the recipe's"
    ),
]
RandomOption = Annotated[bool, typer.Option("--random", help="Untrained weights, drawn from --seed.")]
LatencyOption = Annotated[float | None, typer.Option("--latency-ms", help="Time of one batch, at most.")]
MacsOption = Annotated[
    int | None, typer.Option(parser=parse_count, metavar="N", help="Multiply-adds of one sample, at most (10M).")
]
ParamsOption = Annotated[int | None, typer.Option(parser=parse_count, metavar="N", help="Parameters, at most (100k).")]
DeviceProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--device-profile",
        metavar="FILE",
        help="Plan for the device where bench_on_device.py wrote this JSON; times are those of that device.",
    ),
]


def parse_threads(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise typer.BadParameter(f"{text!r} is not a whole number from 1")
    return int(text)


def usable_threads(asked: int | None) -> int:
    """As many threads as were asked for and there are cores for; says where these are fewer."""
    from gossamer.core.processors import available, usual_threads

    if asked is None:
        return usual_threads()
    if asked > (cores := available()):
        typer.echo(f"--threads {asked}: this process may use {cores} of the machine's cores: taking {cores}", err=True)
    return min(asked, cores)


_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>s|m|min|h)")
_MINUTES = {"s": 1 / 60, "m": 1.0, "min": 1.0, "h": 60.0}


def parse_minutes(text: str) -> float:
    """Minutes of `300s`, `5m` (or `5min`) and `1.5h`."""
    found = _TIME.fullmatch(text.strip())
    if found is None or float(found["number"]) == 0:
        raise typer.BadParameter(f"{text!r} is not a time, such as 300s, 5m or 1h")
    return float(found["number"]) * _MINUTES[found["unit"]]


TimeBudgetOption = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        parser=parse_minutes,
        metavar="TIME",
        help="Time for the whole job (300s, 5m, 1h): trainings are as long as fits.",
        show_default="none",
    ),
]
ThreadsOption = Annotated[
    Any,
    typer.Option(
        "--threads",
        parser=parse_threads,
        callback=usable_threads,
        metavar="N",
        show_default="2, or the cores there are",
        help="Threads of the runtime.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Samples per call when latency is measured.", show_default="64, fewer if large"
    ),
]
LearningRateOption = Annotated[
    float | None, typer.Option("--lr", help="Highest learning rate.", show_default="found by short trials")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, metavar="N", help="Samples per training step.", show_default="128"),
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Same seed, same result.")]
DevicesOption = Annotated[int, typer.Option(min=1, metavar="N", help="Devices to train on; on CPU, processes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of tables.")]


def refuse_idle(context: typer.Context, options: Iterable[str], reason: str) -> None:
    """Refuse options (by the names of their parameters) that were given and would do nothing."""
    flags = {p.name: max(p.opts, key=len) for p in context.command.params}
    given = [flags[name] for name in options if _is_given(context, name)]
    if given:
        raise BadInput(f"{', '.join(given)}: {reason}")


def refuse_idle_loading(context: typer.Context, data: str) -> None:
    """Refuse options of how data is loaded where the user's own code loads it."""
    from gossamer.core.user_code import is_reference

    if is_reference(data):
        names = {p.name for p in context.command.params} & {"augment", "batch_size", "workers"}
        refuse_idle(context, sorted(names), f"{data} makes its own batches; set it there")


def refuse_idle_images(context: typer.Context, data: str | None) -> None:
    """Refuse what says how images become inputs where there are none, and the shape of inputs where data have one."""
    if data is None:
        refuse_idle(context, ["preprocessing", "skip_faulty"], "it is about the images of --data")
    else:
        refuse_idle(context, ["shape"], "the shape of the inputs is that of --data")


def check_runtime(name: str) -> None:
    """Refuse a runtime that does not exist."""
    from gossamer.core.goal import RUNTIMES

    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


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
