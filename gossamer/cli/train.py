"""`gossamer train` and `gossamer evaluate`."""

import json as json_
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import LOADING, Console
from gossamer.cli.jobs import resumable
from gossamer.cli.option_groups import BatchOptions, LoadingOptions, OutputOptions, grouped
from gossamer.cli.options import (
    MODEL_HELP,
    DataOption,
    DevicesOption,
    LearningRateOption,
    ModelArgument,
    OptionalDataOption,
    RandomOption,
    SeedOption,
    ThreadsOption,
    check_runtime,
    refuse_idle,
    refuse_idle_loading,
)
from gossamer.errors import BadInput, unknown

if TYPE_CHECKING:
    from torch import nn

    from gossamer.core.context import Context
    from gossamer.core.record import Record
    from gossamer.core.task import Task
    from gossamer.jobs.recipe import Recipe
    from gossamer.train import Training

SPLITS = ("validation", "test")


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer train resnet20 --data fashion-mnist --epochs 8 --out mine.safetensors")(train)
    app.command(epilog="Example: gossamer evaluate out/resnet20-fashion-mnist --data fashion-mnist")(evaluate)


@grouped
def train(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}."),
    ] = None,
    *,
    data: OptionalDataOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .safetensors file.", show_default="MODEL-DATA.safetensors")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Model, data and hyper-parameters; a file or a shipped name.")
    ] = None,
    loading: LoadingOptions,
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes through the training data.")] = None,
    lr: LearningRateOption = None,
    batches: BatchOptions,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Same seed, same result.", show_default="0, or the recipe's")
    ] = None,
    devices: DevicesOption = 1,
    output: OutputOptions,
) -> None:
    """Train a network, from fresh weights or from --weights.

    Stopped or killed, the same command continues.
    """
    from gossamer.jobs.recipe import load_recipe

    plan = load_recipe(recipe) if recipe is not None else None
    if plan is not None and plan.training is None:
        raise BadInput(f"{recipe} has no training section; it is for `gossamer compress --recipe`")
    if plan is not None:
        model, data = model or plan.model, data or plan.data
    if not model or not data:
        raise BadInput("which network on which data? Give MODEL and --data, or a recipe that has both")
    refuse_idle_loading(context, data)
    if seed is None:
        seed = plan.seed if plan is not None else 0
    if batches.augment is None and plan is not None:
        batches = replace(batches, augment=plan.augment)
    target = out or Path(f"{model.rpartition(':')[2]}-{Path(data).name}.safetensors")
    if target.suffix != ".safetensors":
        raise BadInput(f"--out {target}: trained weights are written as .safetensors")
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading import Request, load_model
        from gossamer.cli.loading_data import load_data
        from gossamer.core.context import Context
        from gossamer.core.folder import lock_folder, make_place

        check_model(model, loading.weights)
        _refuse_files(model)
        training = _training(plan, epochs, lr)
    make_place(target)
    training_context = Context(seed=seed, devices=devices, folder=target.parent, progress=console.progress)
    with lock_folder(target.parent, f".{target.name}.lock"):
        # Fresh weights know nothing of images; the files of a network of transformers say their size.
        fresh = loading.weights is None
        known = loading.consumer(model if not fresh or model.startswith("hf:") else None)
        with console.progress.busy(LOADING):
            task = load_data(data, consumer=known, **asdict(batches), seed=seed, progress=console.progress)
            wanted: dict[str, Any] = {"weights": loading.weights, "random": fresh, "new_head": not fresh}
            source = load_model(Request(model=model, task=task, **wanted, seed=seed), console.progress)
        row = _train(source.model, task, training, training_context, target, model)
    _show(console, {"split": task.final_split}, row)
    console.line(f"weights: {target}")
    console.document({"out": target, "metric": task.metric.name, "score": row})


def _refuse_files(model: str) -> None:
    """Weights are written for code that makes the network; a file that holds its network has none."""
    from gossamer.cli.checks import RESULTS

    inside = any((Path(model) / name).is_file() for name in RESULTS)
    if Path(model).suffix in (".onnx", ".pt2", ".gsr") or inside:
        raise BadInput(
            f"{model} holds a network without the code that makes it, so that no file of weights would be of use: "
            "compress and distill train such networks and write files like it; or name the code, with --weights "
            "model.safetensors of a result"
        )


def _training(plan: "Recipe | None", epochs: int | None, lr: float | None) -> "Training":
    from gossamer.train import Training

    base = plan.training if plan is not None and plan.training is not None else Training(lr=None, clip=5.0)
    return replace(base, **{k: v for k, v in (("epochs", epochs), ("lr", lr)) if v is not None})  # type: ignore[arg-type]


def _train(
    model: "nn.Module", task: "Task", training: "Training", context: "Context", target: Path, name: str
) -> "Record":
    """Train, measure on test data, and write the weights with a note of what network they are for."""
    from gossamer.core.folder import writing
    from gossamer.measure import evaluate, score_record
    from gossamer.models import save_weights
    from gossamer.task import check
    from gossamer.train import fit

    with context.progress.busy("trying a batch"):
        check(task, model)
    checkpoint = target.with_suffix(".ckpt")
    with resumable(checkpoint):
        fitted = fit(model, task, training, context, checkpoint=checkpoint)
    last = task.final_split
    with context.progress.busy(f"{task.metric.name} on {last} data"):
        scores = evaluate(fitted.model.eval(), task, last)
    row = score_record("trained", scores, split=last)
    with writing(target):
        save_weights(fitted.model, target, _note(name, task, row))
    checkpoint.unlink(missing_ok=True)
    return row


def _note(model: str, task: "Task", row: "Record") -> dict[str, str]:
    """The header of the file of weights, from which `gossamer.cli.loading` makes the network again."""
    from gossamer.cli.loading_data import PREPROCESSING
    from gossamer.core.task import description
    from gossamer.core.units import shown_text

    score = f"{row.conditions['metric']} {shown_text(row.value, row.unit)}"
    note = {"model": model, "data": task.name, "score": score, "classes": str(len(task.classes))}
    if task.example_inputs[0].ndim == 4:
        _, channels, _, side = task.example_inputs[0].shape
        note |= {"in_channels": str(channels), "input_size": str(side)}
    return note | ({PREPROCESSING: json_.dumps(about)} if (about := description(task)) else {})


@grouped
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    *,
    data: DataOption,
    loading: LoadingOptions,
    random: RandomOption = False,
    split: Annotated[
        str | None, typer.Option(help="validation or test.", show_default="test, where there is one")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="torch, torch.compile, onnxruntime, openvino or binary.",
            show_default="onnxruntime for .onnx, else torch",
        ),
    ] = None,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """Measure a network on data; of classifiers also the calibration."""
    if loading.weights is not None:
        refuse_idle(context, ["random"], "the weights are those of --weights")
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if runtime is not None:
        check_runtime(runtime)
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading import Request
        from gossamer.cli.loading_data import load_data
        from gossamer.cli.runners import open_model
        from gossamer.measure import calibration, evaluate, score_record

        check_model(model, loading.weights)
        task = load_data(data, consumer=loading.consumer(model), seed=seed, progress=console.progress)
        request = Request(model=model, task=task, weights=loading.weights, random=random, seed=seed)
        runner = open_model(request, runtime=runtime, threads=threads).runner
    split = split or task.final_split
    with console.progress.busy(f"{model} on {split}"):
        scores = evaluate(runner, task, split)
        sure = calibration.confidence(runner, getattr(task, split))
    row = score_record(model, scores, split=split, data=task.name, runtime=runner.runtime, precision=runner.precision)
    more = {"calibration error %": f"{100 * sure['ece']:.2f}", "NLL": f"{sure['nll']:.4f}"} if sure else {}
    _show(console, {"model": model, "runtime": runner.runtime, "split": split}, row, more)
    console.document({**asdict(row), **sure})


def _show(console: Console, what: dict[str, str], row: "Record", more: dict[str, str] | None = None) -> None:
    """One line: what was measured, the score with its unit, and more columns."""
    from gossamer.core.units import shown_text

    shown = (shown_text(x or 0.0, row.unit) for x in (row.low, row.value, row.high))
    low, value, high = (one.removesuffix(row.unit).strip() for one in shown)
    score = f"{row.conditions['metric']} {row.unit}".strip()
    columns = {**what, score: value, "95 % interval": f"{low} to {high}", "samples": str(row.n), **(more or {})}
    console.table("", tuple(columns), [tuple(columns.values())])
