"""`gossamer export` and `gossamer bench`."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import LOADING, Console
from gossamer.cli.errors import GOAL_MISSED
from gossamer.cli.option_groups import LoadingOptions, OutputOptions, grouped
from gossamer.cli.options import (
    MODEL_HELP,
    BatchOption,
    ModelArgument,
    OptionalDataOption,
    SeedOption,
    ShapeOption,
    ThreadsOption,
    check_runtime,
    refuse_idle,
    refuse_idle_images,
)
from gossamer.errors import BadInput, unknown

if TYPE_CHECKING:
    from gossamer.cli.loading import Source
    from gossamer.core.task import Task
    from gossamer.measure import Latency


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer export resnet20 --data fashion-mnist --int8 --out small.onnx")(export)
    app.command(epilog="Example: gossamer bench resnet20 small.onnx --runtime openvino --threads 2 --batch 64")(bench)


@grouped
def export(
    context: typer.Context,
    model: ModelArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="An .onnx or a .pt2 file, or the target's own.")],
    data: OptionalDataOption = None,
    loading: LoadingOptions,
    shape: ShapeOption = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="executorch or executorch-int8 (.pte), litert or litert-int8 (.tflite), ncnn (.param), onnx-web, "
            "onnx-w4, onnx-w8 or onnx-binary (.onnx)."
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize to int8 (.onnx), calibrated and checked on --data.")
    ] = False,
    max_drop: Annotated[float, typer.Option(min=0, max=100, help="Points of accuracy that int8 may cost.")] = 0.5,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """Write a network for a runtime, checked to compute the same.

    Nothing is written when the check fails. Exit status 3: int8 costs more than --max-drop; the best int8 is written.
    """
    if target is not None:
        _check_target(context, target, out)
    elif out.suffix not in (".onnx", ".pt2"):
        raise BadInput(f"--out {out}: the name must end in .onnx or .pt2")
    if int8 and (data is None or out.suffix != ".onnx"):
        raise BadInput("--int8 writes an .onnx and needs --data, on which it is calibrated and checked")
    if not int8:
        refuse_idle(context, ["max_drop"], "it is about --int8")
    refuse_idle_images(context, data)
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading import Request, judged, load_model
        from gossamer.cli.loading_data import load_data
        from gossamer.core.folder import make_place, replacing, writing

        check_model(model, loading.weights)
        make_place(out)
        known = loading.consumer(model)
        task = load_data(data, consumer=known, seed=seed, progress=console.progress) if data is not None else None
        request = Request(model=model, task=task, weights=loading.weights, shape=shape, seed=seed)
        source = load_model(request, console.progress)
        task = judged(task, source, console.progress.say) if task is not None else None
        about = _about(source, task, (loading.weights, model))
    with writing(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        written = Path(folder) / out.name
        with console.progress.busy(f"export {source.name}"):
            if target is not None:
                met, rows = True, _target(target, source, task, written, console)
            elif int8 and task is not None:
                met, rows = _int8(source, task, written, max_drop, threads, console)
            else:
                met, rows = True, _float(source, task, written, threads, about)
        for file in Path(folder).iterdir():
            with replacing(out.parent / file.name) as temporary:
                shutil.move(file, temporary)
    size = out.stat().st_size
    console.table("", ("", ""), [("file", f"{out} ({size:,} bytes)"), *rows])
    console.document({"out": out, "bytes": size, "met": met, **dict(rows)})
    if not met:
        raise typer.Exit(GOAL_MISSED)


def _check_target(context: typer.Context, target: str, out: Path) -> None:
    from gossamer.targets import TARGETS

    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    refuse_idle(context, ["int8", "threads"], "--target has its own form and one thread")
    if out.suffix != TARGETS[target].suffix:
        raise BadInput(f"--out {out}: --target {target} writes files that end in {TARGETS[target].suffix}")


def _target(target: str, source: "Source", task: "Task | None", path: Path, console: Console) -> list[tuple[str, str]]:
    """Write for a runtime, run it there, and compare on the validation data or else on the example inputs."""
    from gossamer.targets import compare_target, write_target

    loader = task.validation if task is not None else [(source.example_inputs, None)]
    calibration = task.calibration if task is not None else None
    write_target(target, source.model, source.example_inputs, path, calibration=calibration, progress=console.progress)
    found = compare_target(target, source.model, path, loader)
    rows = [("largest difference", f"{found.relative:.2g} relative"), ("cosine", f"{found.cosine:.6f}")]
    same = [("same top-1", f"{100 * found.top1:.1f} %")] if found.top1 is not None else []
    return [*rows, *same, ("samples", str(found.samples))]


def _about(source: "Source", task: "Task | None", origins: tuple[Path | str | None, ...]) -> dict[str, Any]:
    """What the file has to say of images: as the data are made, or else as the weights or the network's library say, at
    the size of the example inputs."""
    from torch import Tensor

    from gossamer.cli.loading_data import preprocessing_for
    from gossamer.core.task import description

    if task is not None:
        return description(task)
    form = next((one for origin in origins if origin is not None and (one := preprocessing_for(str(origin)))), None)
    image = source.example_inputs[0]
    if form is None or not isinstance(image, Tensor) or image.ndim != 4:
        return {}
    height, width, channels = (image.shape[dim] for dim in ((2, 3, 1) if form.layout == "nchw" else (1, 2, 3)))
    if channels != form.channels:
        return {}
    return asdict(replace(form, size=height, width=None if width == height else width))


def _float(
    source: "Source", task: "Task | None", path: Path, threads: int, about: dict[str, Any]
) -> list[tuple[str, str]]:
    """Export in float32 and compare, on the validation data or else on the example inputs."""
    from gossamer.runtime.onnx_export import export_onnx
    from gossamer.runtime.pt2.file import export_pt2, load_pt2
    from gossamer.runtime.runners import open_runner
    from gossamer.runtime.verification import verify

    if path.suffix == ".onnx":
        export_onnx(source.model, source.example_inputs, path, about=about)
        runner = open_runner("onnxruntime", path, threads=threads)
    else:
        export_pt2(source.model, source.example_inputs, path)
        runner = open_runner("torch", load_pt2(path), threads=threads)
    loader = task.validation if task is not None else [(source.example_inputs, None)]
    records = verify(source.model, runner, loader)
    return [(record.what, f"{record.value:.3g} {record.unit} over {record.n} samples") for record in records]


def _int8(
    source: "Source", task: "Task", path: Path, max_drop: float, threads: int, console: Console
) -> tuple[bool, list[tuple[str, str]]]:
    """Quantize as far as the budget needs."""
    from gossamer.cli.quantize import quantized

    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        int8 = quantized(source, task, Path(work), max_drop, console, threads=threads).int8
        shutil.copyfile(int8.path, path)
    drop = f"{int8.drop.points:+.2f} points on validation"
    return int8.met, [("int8", int8.chosen), ("drop", drop), (task.metric.name, f"{int8.scores} on validation")]


@grouped
def bench(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=f"{MODEL_HELP}; several.")],
    *,
    runtime: Annotated[
        list[str],
        typer.Option(help="torch, torch.compile, onnxruntime, openvino or binary; may be given several times."),
    ] = ["onnxruntime"],  # noqa: B006 (typer copies it)
    data: OptionalDataOption = None,
    loading: LoadingOptions,
    shape: ShapeOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs of each network.")] = 50,
    output: OutputOptions,
) -> None:
    """Time networks side by side, interleaved in one process.

    Networks of the zoo get untrained weights.
    """
    refuse_idle_images(context, data)
    for kind in runtime:
        check_runtime(kind)
    from gossamer.cli.checks import check_model
    from gossamer.cli.loading import Request
    from gossamer.cli.loading_data import load_data, usual_batch
    from gossamer.cli.runners import open_model, with_batch
    from gossamer.measure import latency

    console = output.console()
    for name in models:
        check_model(name, loading.weights)
    known = loading.consumer(models[0])
    task = load_data(data, consumer=known, progress=console.progress) if data is not None else None
    opened = {}
    for name in dict.fromkeys(models):
        for kind in dict.fromkeys(runtime):
            request = Request(
                model=name, task=task, weights=loading.weights, random=loading.weights is None, shape=shape
            )
            with console.progress.busy(f"open {name} on {kind}"):
                opened[name, kind] = open_model(request, runtime=kind, threads=threads)
    inputs = _same_inputs({name: o.example_inputs for (name, _), o in opened.items()})
    batch = usual_batch(inputs, batch)
    with console.progress.busy("measure"):
        times = latency(
            {"\n".join(key): o.runner for key, o in opened.items()}, with_batch(inputs, batch), repeats=repeats
        )
    found = {key: times["\n".join(key)] for key in opened}
    console.table(
        f"one batch of {batch} samples, {threads} threads, median of {repeats}, interleaved",
        ("model", "runtime", "dtype", "ms", "quartiles", "speedup"),
        [_bench_row(models[0], found, *key) for key in opened],
    )
    if wide := [" on ".join(key) for key, row in found.items() if row.unsteady]:
        console.note(
            f"note: the machine was busy: quartiles far apart for {', '.join(wide)}; measure again on a quiet one"
        )
    console.document([{"model": name, "latency": row} for (name, _), row in found.items()])


def _bench_row(first: str, found: "Mapping[tuple[str, str], Latency]", name: str, kind: str) -> tuple[str, ...]:
    """A line of the table; the speedup is that over the first network on the same runtime."""
    row = found[name, kind]
    quartiles = f"{row.q1_ms:.3g} to {row.q3_ms:.3g}"
    return (
        name,
        kind,
        row.dtype,
        f"{row.median_ms:.3g}",
        quartiles,
        f"{found[first, kind].median_ms / row.median_ms:.2f}x",
    )


def _same_inputs(inputs: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The inputs of the first network; all must take inputs of one shape to be timed side by side."""
    shapes = {name: [tuple(x.shape[1:]) for x in values] for name, values in inputs.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise BadInput(
                f"{name} takes inputs of shape {shape}, {first} of {shapes[first]} (without the batch); "
                "give --data, or time them apart"
            )
    return inputs[first]
