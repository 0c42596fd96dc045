"""`gossamer distill`: train a small network from a large one."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import LOADING
from gossamer.cli.jobs import command_line, conclude, default_folder, resumable
from gossamer.cli.option_groups import (
    BatchOptions,
    LimitOptions,
    LoadingOptions,
    OutputOptions,
    TimingOptions,
    grouped,
)
from gossamer.cli.options import (
    MODEL_HELP,
    DataOption,
    DevicesOption,
    LearningRateOption,
    SeedOption,
    refuse_idle,
    refuse_idle_loading,
)
from gossamer.core.goal import GAINS, NO_BUDGET, Goal
from gossamer.errors import BadInput

if TYPE_CHECKING:
    from gossamer.cli.loading import Source
    from gossamer.core.task import Task
    from gossamer.methods._base import Method

AUTO = "auto"


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer distill --teacher resnet20 --student resnet8 --data fashion-mnist")(distill)


@grouped
def distill(
    context: typer.Context,
    *,
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL",
            help=f"{MODEL_HELP}; NAME=FILE with weights of its own; a --cache folder. Given "
            "several times: the mean of all.",
        ),
    ],
    student: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help=f"{MODEL_HELP}; or auto: cut out of the teacher for a goal. Untrained where no file has its weights.",
        ),
    ],
    data: DataOption = "auto",
    loading: LoadingOptions,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="One of those below distill; `gossamer methods` lists them.")
    ] = "distill.kd",
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes through the training data.")] = None,
    lr: LearningRateOption = None,
    batches: BatchOptions,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Any option of the method, such as temperature=6."),
    ] = None,
    assistant: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A network in between, taught first, which then teaches the next."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone/--no-alone", help="Also train the student without a teacher, to compare.")
    ] = True,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="At the end, make the student as sure as it is right.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what the teacher says there, for later epochs, students and runs."),
    ] = None,
    limits: LimitOptions,
    timing: TimingOptions,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Result folder.", show_default="out/STUDENT-from-TEACHER-DATA")
    ] = None,
    seed: SeedOption = 0,
    devices: DevicesOption = 1,
    output: OutputOptions,
) -> None:
    """Train a network from a larger one.

    Stopped or killed, the same command continues. Exit status 3: a goal of --student auto, or --max-drop, was missed.
    """
    console = output.console()
    goal = _goal(student, asdict(limits), runtime=timing.runtime, threads=timing.threads)
    if student == AUTO:
        refuse_idle(context, ["weights"], "--student auto is cut out of the teacher, with the teacher's weights")
    refuse_idle_loading(context, data)
    chosen = _method(method, option or [], epochs=epochs, lr=lr)

    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading_data import load_data, usual_batch
        from gossamer.core.context import Context
        from gossamer.core.folder import make_folder
        from gossamer.jobs.distillation import distill as run_job

        for text in teacher:
            _check_teacher(text)
        for text in ([] if student == AUTO else [student]) + (assistant or []):
            check_model(text, loading.weights if text == student else None)
        if cache is not None:
            make_folder(cache)
        known = replace(loading, weights=None).consumer(teacher[0].rpartition("=")[2])  # weights are the student's
        task = load_data(data, consumer=known, **asdict(batches), seed=seed, progress=console.progress)
        goal = replace(goal, batch=usual_batch(task.example_inputs, timing.batch))
        own = None if student == AUTO else _source(student, task, seed, weights=loading.weights, fresh=True)
        learner: Any = AUTO if own is None else own.model
        teachers = [_teacher(text, task, seed) for text in teacher]
        between = [_source(text, task, seed, fresh=True).model for text in assistant or []]
    short = (Path(text.partition("=")[0].rpartition(":")[2]).stem for text in (student, teacher[0]))
    folder = out or default_folder("-from-".join(short), task.name)
    note = own.note if own is not None else {}
    job_context = Context(seed=seed, devices=devices, folder=folder, progress=console.progress, cache=cache, note=note)
    how: dict[str, Any] = {"goal": goal, "assistants": between, "alone": alone, "calibrate": calibrate}
    with resumable(folder):
        artifact = run_job(
            teachers, learner, task, chosen, **how, out=folder, context=job_context, command=command_line()
        )
    conclude(console, artifact, ("teacher", "student"))


def _goal(student: str, limits: dict[str, Any], **conditions: Any) -> Goal:
    """What a student that is cut must reach; one that is named is judged by --max-drop alone, against its teacher."""
    wanted = {name: value for name, value in limits.items() if value is not None}
    if student == AUTO:
        return Goal(**wanted, **conditions).to_plan()
    if gains := wanted.keys() & set(GAINS):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(gains))
        raise BadInput(f"{options} is for --student auto; {student} is trained as it is")
    return Goal(**{"max_drop": NO_BUDGET, **wanted}, **conditions)


def _check_teacher(text: str) -> None:
    """Refuse what names no network, before the data are loaded."""
    from gossamer.cli.checks import check_model
    from gossamer.jobs.teachers import external_teacher

    name, _, file = text.partition("=")
    if Path(text).suffix == ".onnx" or external_teacher(Path(text)) is None:
        check_model(name, Path(file) if file else None)


def _teacher(text: str, task: "Task", seed: int) -> Any:
    """A network, with weights of its own where `NAME=FILE` says so; or a path whose outputs stand for one."""
    from gossamer.jobs.teachers import external_teacher

    found = external_teacher(Path(text))
    name, _, file = text.partition("=")
    return found or _source(name, task, seed, weights=Path(file) if file else None).model


def _source(text: str, task: "Task", seed: int, *, weights: Path | None = None, fresh: bool = False) -> "Source":
    """The network of a model argument. fresh: untrained, where no file has its weights."""
    from gossamer.cli.loading import Request, load_model

    random = fresh and weights is None and not Path(text).exists()
    return load_model(Request(model=text, task=task, weights=weights, random=random, seed=seed))


def _method(name: str, options: list[str], **given: Any) -> "Method":
    """The method with its options, checked as a recipe's step is."""
    from gossamer.jobs.recipe import read_step, read_yaml

    values = {key: value for key, value in given.items() if value is not None}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text}: write OPTION=VALUE, such as temperature=6")
        if value.startswith("{"):
            value = value.replace(":", ": ")  # {a:b} would be the key "a:b"
        values[key] = read_yaml(value, f"--set {key}")
    if not name.startswith("distill."):
        raise BadInput(f"--method {name}: only methods below distill learn from a teacher, such as distill.kd")
    return read_step({name: values}, "--method")
