"""`gossamer compress`: the main job."""

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
    DataOption,
    DeviceProfileOption,
    DevicesOption,
    LearningRateOption,
    ModelArgument,
    RandomOption,
    SeedOption,
    TimeBudgetOption,
    parse_minutes,
    refuse_idle,
    refuse_idle_loading,
)
from gossamer.core.goal import GAINS, NO_BUDGET, Goal
from gossamer.errors import BadInput

if TYPE_CHECKING:
    from gossamer.jobs.recipe import Recipe


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer compress resnet20 --data fashion-mnist --max-drop 0.5 --speedup 3")(compress)


@grouped
def compress(
    context: typer.Context,
    model: ModelArgument,
    *,
    data: DataOption = "auto",
    loading: LoadingOptions,
    random: RandomOption = False,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Learn from this trained network instead of the one compressed."),
    ] = None,
    limits: LimitOptions,
    compression_ratio: Annotated[
        float | None, typer.Option(help="How many times smaller than float32 the compact file is, at least.")
    ] = None,
    timing: TimingOptions,
    device_profile: DeviceProfileOption = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Steps to take instead of planning; a file or a shipped name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Result folder.", show_default="out/MODEL-DATA")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Passes through the training data in every recovery.",
            show_default="12, more where data are few, or what fits into --time-budget",
        ),
    ] = None,
    lr: LearningRateOption = None,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train the smaller network, or fit it only: minutes, no labels.")
    ] = True,
    search: Annotated[
        float | None,
        typer.Option(
            parser=parse_minutes,
            metavar="TIME",
            help="Search the sub-networks of the network for so long (1h, 30m), instead of the tournament.",
        ),
    ] = None,
    time_budget: TimeBudgetOption = None,
    batches: BatchOptions,
    seed: SeedOption = 0,
    devices: DevicesOption = 1,
    output: OutputOptions,
) -> None:
    """Make a trained network smaller and faster, within a budget.

    Stopped or killed, the same command continues. Exit status 3: the goal was missed, the folder holds the best
    network inside the budget.
    """
    goal = _goal(
        asdict(limits) | {"compression_ratio": compression_ratio},
        recipe,
        runtime=timing.runtime,
        threads=timing.threads,
        time_budget=time_budget,
        device_profile=device_profile and str(device_profile),
    )
    for option, value in (("--epochs", epochs), ("--lr", lr), ("--time-budget", time_budget)):
        if recipe is not None and value is not None:
            raise BadInput(f"{option} is for planned jobs; with --recipe, write it into the steps of the recipe")
    if loading.weights is not None:
        refuse_idle(context, ["random"], "the weights are those of --weights")
    refuse_idle_loading(context, data)
    console = output.console()

    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading import Request, judged, load_model, ready_to_train
        from gossamer.cli.loading_data import load_data, usual_batch
        from gossamer.core.context import Context
        from gossamer.jobs.compression import compress as run_job
        from gossamer.jobs.recipe import load_recipe

        check_model(model, loading.weights)
        if teacher is not None:
            check_model(teacher)
        plan: Recipe | None = load_recipe(recipe) if recipe is not None else None
        if plan is not None and plan.training is not None and not plan.steps:
            raise BadInput(f"{recipe} has no steps, only a training; it is for `gossamer train --recipe`")
        if batches.augment is None and plan is not None:
            batches = replace(batches, augment=plan.augment)
        task = load_data(
            data, consumer=loading.consumer(model), **asdict(batches), seed=seed, progress=console.progress
        )
        goal = replace(goal, batch=usual_batch(task.example_inputs, timing.batch))
        folder = out or default_folder(model, task.name)
        source = load_model(
            Request(model=model, task=task, weights=loading.weights, random=random, seed=seed), console.progress
        )
        ready_to_train(model, source, task, console.progress.say)
        task = judged(task, source, console.progress.say)
        better = load_model(Request(model=teacher, task=task, seed=seed)).model if teacher is not None else None
    own = Context(
        seed=seed, devices=devices, folder=folder, progress=console.progress, note=source.note, teacher=better
    )
    with resumable(folder):
        how: dict[str, Any] = {
            "goal": goal,
            "recipe": plan,
            "epochs": epochs,
            "lr": lr,
            "train": train,
            "search": search,
        }
        artifact = run_job(source.model, task, **how, out=folder, context=own, command=command_line())
    conclude(console, artifact, ("before", "after", "change"))


def _goal(asked: dict[str, Any], recipe: Path | None, **conditions: Any) -> Goal:
    wanted = {name: value for name, value in asked.items() if value is not None}
    if recipe is None and not wanted.keys() & set(GAINS):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in GAINS)
        raise BadInput(f"say what to gain: at least one of {options}; or give the steps with --recipe")
    return Goal(**(wanted or {"max_drop": NO_BUDGET}), **conditions)
