"""`gossamer search`: an architecture for the data and the device at hand."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import LOADING, Console
from gossamer.cli.jobs import resumable
from gossamer.cli.option_groups import OutputOptions, TimingOptions, grouped
from gossamer.cli.options import (
    AugmentOption,
    BatchSizeOption,
    DataOption,
    LatencyOption,
    MacsOption,
    ParamsOption,
    SeedOption,
    TimeBudgetOption,
    parse_bytes,
)
from gossamer.errors import BadInput, unknown

if TYPE_CHECKING:
    from gossamer.core.task import Task
    from gossamer.nas import Space
    from gossamer.nas.job import SearchResult

SPACES = ("mobile", "cells")
QUIET_MACHINE = "Measure times here: nothing else runs, and the machine is of the kind that the network is for."
LEARNING_RATE = 0.1


_PICK = re.compile(r"(?P<cost>latency|macs|params|activations)=(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>ms|s|k|M|G)?")
_UNITS = {None: 1.0, "ms": 1.0, "s": 1e3, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_pick(text: str) -> tuple[str, float]:
    """`latency=3ms` as the name of a cost and its limit in the cost's unit.

    Raises:
        BadInput: it cannot be read so.
    """
    found = _PICK.fullmatch(text)
    timed = found is not None and found["cost"] == "latency"
    if found is None or (found["unit"] is not None and timed != (found["unit"] in ("ms", "s"))):
        raise BadInput(f"--pick {text}: give latency=3ms, macs=5M, params=100k or activations=64k")
    cost = {"latency": "latency_ms", "activations": "activation_bytes"}.get(found["cost"], found["cost"])
    return cost, float(found["number"]) * _UNITS[found["unit"]]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer search --data fashion-mnist --latency-ms 4 --trials 20")(search)
    app.command(epilog="Example: gossamer worker --study out/search-mobile-fashion-mnist")(worker)


@grouped
def search(
    *,
    data: DataOption = "auto",
    space: Annotated[str, typer.Option(help="Which networks: mobile or cells.")] = SPACES[0],
    searcher: Annotated[
        str, typer.Option(help="Who proposes: random, evolution, predictor, halving, tpe, nsga2, darts or darts2.")
    ] = "evolution",
    latency_ms: LatencyOption = None,
    macs: MacsOption = None,
    params: ParamsOption = None,
    activation_bytes: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="SIZE",
            help="Activations that live at once, of one sample in int8, at most (64kB).",
        ),
    ] = None,
    timing: TimingOptions,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Trainings, at most.")] = 20,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of each training of the search.", show_default="2, or 150 steps"),
    ] = None,
    final_epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of the training of the best one.", show_default="5 times --epochs"),
    ] = None,
    pick: Annotated[
        Any,
        typer.Option(
            parser=parse_pick,
            metavar="COST=LIMIT",
            help="Which network of the front to give: latency=3ms, macs=5M, params=100k or activations=64k.",
            show_default="the best of all",
        ),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = LEARNING_RATE,
    batch_size: BatchSizeOption = None,
    augment: AugmentOption = None,
    time_budget: TimeBudgetOption = None,
    concurrent: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trials at a time, on all workers together. Decisions depend on it.")
    ] = 4,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train on a Ray cluster: auto, ray://HOST:10001, or local for a new one."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help=f"{QUIET_MACHINE} A worker does it otherwise.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Result folder.", show_default="out/search-SPACE-DATA")
    ] = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """Find an architecture for the data and the device.

    What is slower than --latency-ms, or larger, is never trained. Stopped or killed, the same command continues; with
    more --trials it goes on from what it knows. `gossamer worker` on the folder of the result helps.
    """
    if space not in SPACES:
        raise unknown("space", space, SPACES)
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.cli.loading_data import load_data, usual_batch
        from gossamer.core.context import Context
        from gossamer.core.goal import Goal
        from gossamer.nas.job import StudyOptions
        from gossamer.nas.job import search as run_search
        from gossamer.nas.plan import SearchPlan

        task = load_data(data, batch_size=batch_size, seed=seed, augment=augment, progress=console.progress)
        goal = Goal(
            max_drop=0,
            latency_ms=latency_ms,
            macs=macs,
            params=params,
            runtime=timing.runtime,  # type: ignore[arg-type]  # checked by Goal
            threads=timing.threads,
            batch=usual_batch(task.example_inputs, timing.batch),
            time_budget=time_budget,
        )
        plan = SearchPlan(
            searcher=searcher,
            trials=trials,
            epochs=epochs,
            final_epochs=final_epochs,
            lr=lr,
            activation_bytes=activation_bytes,
            pick=pick,
            concurrent=concurrent,
        )
        networks = space_of(space, task)
    folder = out or Path("out") / f"search-{space}-{task.name}"
    origin = {"data": data, "batch_size": batch_size, "augment": augment is not False, "space": space}
    with resumable(folder):
        found = run_search(
            networks,
            task,
            goal=goal,
            plan=plan,
            out=folder,
            context=Context(seed=seed, progress=console.progress),
            options=StudyOptions(measure=measure, ray=ray, origin=origin),
        )
    _show(console, found)


@grouped
def worker(
    *,
    study: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the search: its --out.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Where the data of the search are here.", show_default="as the search says"),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help=QUIET_MACHINE)] = False,
    output: OutputOptions,
) -> None:
    """Work on the trials of a search that runs elsewhere.

    Start any number of them, on any machine that sees the folder, and stop them at any time. What is found depends on
    the search alone, not on how many workers there are.
    """
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.core.context import Context
        from gossamer.nas.job import join_search
        from gossamer.nas.study import read_description

        known = read_description(study)
        task, networks = _as_there(study, known.origin, data, known.seed, console)
    with resumable(study):
        done = join_search(study, networks, task, measure=measure, context=Context(progress=console.progress))
    console.line(f"all trials of {study} are done, {done} steps of them here")
    console.document({"study": study, "steps": done})


def _as_there(
    study: Path, origin: dict[str, Any] | None, data: str | None, seed: int, console: Console
) -> "tuple[Task, Space]":
    """The task and the space that a study says. Code of the user is not run because a file in a folder says so."""
    from gossamer.cli.loading_data import load_data
    from gossamer.core.user_code import is_reference

    if origin is None:
        raise BadInput(f"{study} was started from Python; join it with gossamer.nas.join_search")
    if data is None and is_reference(origin["data"]):
        raise BadInput(f"{study} takes its data from your code; say that it may run: --data {origin['data']}")
    task = load_data(
        data or origin["data"],
        batch_size=origin["batch_size"],
        seed=seed,
        augment=origin["augment"],
        progress=console.progress,
    )
    return task, space_of(origin["space"], task)


def space_of(name: str, task: "Task") -> "Space":
    """The space of a name for the images and classes of a task.

    Raises:
        BadInput: the inputs are no square images, or the data have no classes.
    """
    from gossamer.nas import CellSpace, MobileSpace

    shape = tuple(task.example_inputs[0].shape) if task.example_inputs else ()
    if len(shape) != 4 or len(task.example_inputs) > 1 or shape[2] != shape[3]:
        raise BadInput(f"{task.name} has inputs of shape {shape}; these spaces are for square images (N, C, H, W)")
    if not task.classes:
        raise BadInput(f"{task.name} has no class names: a search trains classifiers; give the task its `classes`")
    channels, classes = shape[1], len(task.classes)
    if name == "cells":
        return CellSpace(channels=channels, classes=classes)
    return MobileSpace(channels=channels, classes=classes, side=shape[2])


def _show(console: Console, result: "SearchResult") -> None:
    rows = [
        (one.words, f"{one.costs['latency_ms']:.2f} ms", f"{one.costs['params']:,.0f}", result_value(result, one.value))
        for one in result.found
        if one.value is not None
    ]
    console.table("trained", ("architecture", "latency", "parameters", result.validation.metric.name), rows)
    test = f", {result.test} on test" if result.test is not None else ""
    console.line(f"{result.folder}: {result.best.words}")
    console.line(f"{result.validation} on validation{test}, {result.best.costs['latency_ms']:.2f} ms")
    console.document(
        {
            "out": result.folder,
            "architecture": result.best.words,
            "genes": list(result.best.genes),
            "validation": result.validation.shown,
            "test": result.test.shown if result.test is not None else None,
            "costs": result.best.costs,
            "trained": sum(one.trained for one in result.found),
        }
    )


def result_value(result: "SearchResult", value: float | None) -> str:
    """A value of the search in the unit of the metric."""
    metric = result.validation.metric
    return "" if value is None else metric.text(metric.merit(value))
