"""`gossamer distill`: train a small network from a large one."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.compress import default_folder
from gossamer.cli.console import Console
from gossamer.cli.exits import Stopped
from gossamer.cli.values import (
    AugmentOption,
    DataOption,
    DevicesOption,
    JsonOption,
    QuietOption,
    SeedOption,
    WeightsOption,
)
from gossamer.errors import BadInput

if TYPE_CHECKING:
    from gossamer.job import Artifact
    from gossamer.methods.base import Method

MODEL_HELP = "As for compress: a zoo name, package.module:factory, timm:NAME, torchvision:NAME, a .pt2 or .safetensors"


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: [bold]gossamer distill --teacher resnet20 --student resnet8 --data fashion-mnist[/bold]"
    )(distill)


def distill(
    teacher: Annotated[
        list[str],
        typer.Option(metavar="MODEL", help=f"{MODEL_HELP}; or NAME=FILE with its weights. Several: their mean counts."),
    ],
    student: Annotated[
        str, typer.Option(metavar="MODEL", help=f"{MODEL_HELP}. Untrained where --weights is not given.")
    ],
    data: DataOption = "auto",
    augment: AugmentOption = None,
    weights: WeightsOption = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="One of those below distill: gossamer methods.")] = (
        "distill.kd"
    ),
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes through the training data.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Any option of the method, such as temperature=6."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone/--no-alone", help="Also train the student without a teacher, to compare.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Result folder. Default: out/STUDENT-from-TEACHER-DATA.")
    ] = None,
    seed: SeedOption = 0,
    devices: DevicesOption = 1,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network from a larger one.

    Stopped or killed, the same command continues.
    """
    console = Console(as_json=json, quiet=quiet)
    command = shlex.join(["gossamer", *sys.argv[1:]])
    chosen = _method(method, option or [], epochs=epochs, lr=lr)

    from gossamer.distillation import distill as run_job
    from gossamer.run import Run
    from gossamer.sources import Request, load_data, load_model

    task = load_data(data, seed=seed, augment=augment is not False, progress=console.progress)
    fresh = weights is None and Path(student).suffix == ""
    made = load_model(Request(model=student, data=task.name, task=task, weights=weights, random=fresh, seed=seed))
    teachers = [load_model(_teacher(text, task, seed)).model for text in teacher]
    folder = out or default_folder(f"{made.name}-from-{Path(teacher[0].rpartition(':')[2]).name}", task.name)
    run = Run(seed=seed, devices=devices, folder=folder, progress=console.progress)
    try:
        artifact = run_job(teachers, made.model, task, chosen, alone=alone, out=folder, run=run, command=command)
    except KeyboardInterrupt as error:
        raise Stopped(
            f"stopped; {folder} keeps what is done. To continue, run the same command:\n  {command}"
        ) from error
    _show(console, artifact, folder)


def _teacher(text: str, task: Any, seed: int) -> Any:
    """What `NAME=FILE` or a name asks for."""
    from gossamer.sources import Request

    name, _, file = text.partition("=")
    return Request(model=name, data=task.name, task=task, weights=Path(file) if file else None, seed=seed)


def _method(name: str, options: list[str], **given: Any) -> "Method":
    """The method with its options, checked as a recipe's step is."""
    import yaml

    from gossamer.recipe import parse

    values = {key: value for key, value in given.items() if value is not None}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text}: write OPTION=VALUE, such as temperature=6")
        values[key] = yaml.safe_load(value)
    if not name.startswith("distill."):
        raise BadInput(f"--method {name}: only methods below distill learn from a teacher, such as distill.kd")
    [step] = parse(yaml.safe_dump({"name": "taught", "steps": [{name: values}]}), source="--method").steps
    return step


def _show(console: Console, artifact: "Artifact", folder: Path) -> None:
    from gossamer.report import summary_rows
    from gossamer.report.table import plain
    from gossamer.report.verdict import sentence

    document = artifact.document
    rows = [
        (f"{row.name} ({row.conditions})" if row.conditions else row.name, plain(row.before), plain(row.after))
        for row in summary_rows(document)
    ]
    console.table("", ("", "teacher", "student"), rows)
    console.line(sentence(document))
    console.line(f"report: {(folder / 'report.html').resolve()}")
    console.document({"folder": folder.resolve(), "document": document})
