"""`gossamer analyze` and `gossamer inspect`: looking at a network, and at a file."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import Console
from gossamer.cli.option_groups import LoadingOptions, OutputOptions, grouped
from gossamer.cli.options import (
    BatchOption,
    JsonOption,
    ModelArgument,
    OptionalDataOption,
    SeedOption,
    ShapeOption,
    ThreadsOption,
    check_runtime,
    refuse_idle,
    refuse_idle_images,
)
from gossamer.core.goal import Goal
from gossamer.errors import BadInput, CorruptFile, unknown

if TYPE_CHECKING:
    from gossamer.cli.loading import Source
    from gossamer.core.record import LayerCost
    from gossamer.core.task import Task
    from gossamer.graph.groups import Group
    from gossamer.measure.robustness import Distorted
    from gossamer.search.advise import Advice
    from gossamer.search.sensitivity import Sensitivity


GAINS = {"time": "speedup", "size": "compression_ratio", "params": "params", "macs": "macs"}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer analyze resnet20 --data fashion-mnist --sensitivity")(analyze)
    app.command(epilog="Example: gossamer inspect out/resnet20-fashion-mnist/model.onnx")(inspect)


@grouped
def analyze(
    context: typer.Context,
    model: ModelArgument,
    *,
    data: OptionalDataOption = None,
    loading: LoadingOptions,
    shape: ShapeOption = None,
    runtime: Annotated[
        str | None, typer.Option(help="Also time every layer: onnxruntime or openvino (float32).")
    ] = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Cut every group alone and measure the drop; needs --data.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Score it under distorted weights and activations; needs --data.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Other weights of the same network, for --robustness."),
    ] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Measure what each scheme could save on --runtime, and say why.")
    ] = False,
    gain: Annotated[
        str, typer.Option(help="What --advise is to save: time, size (of the compact file), params or macs.")
    ] = "time",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where --sensitivity or --robustness draws its plot, their name by default."),
    ] = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """What a network costs by layer; which channels are cut together.

    Untrained weights do, except for --sensitivity and --robustness.
    """
    drawing = "sensitivity" if sensitivity else "robustness" if robustness else ""
    if sensitivity and robustness:
        raise BadInput("--sensitivity and --robustness draw a plot each: ask for one at a time")
    if drawing and data is None:
        raise BadInput(f"--{drawing} measures the drop on validation data: add --data")
    if not drawing:
        refuse_idle(context, ["out"], "it is where --sensitivity or --robustness draws its plot")
    if not robustness:
        refuse_idle(context, ["against"], "--robustness compares with it")
    if not advise:
        refuse_idle(context, ["gain"], "it is what --advise is to save")
    if runtime is None and not (advise and gain == "time"):
        refuse_idle(context, ["threads", "batch"], "nothing is timed; add --runtime, or --advise for time")
    refuse_idle_images(context, data)
    if runtime is not None:
        check_runtime(runtime)
    if gain not in GAINS:
        raise unknown("gain", gain, GAINS)
    from gossamer.cli.checks import check_model
    from gossamer.cli.loading import Request, load_model
    from gossamer.cli.loading_data import load_data, usual_batch
    from gossamer.core.folder import make_place
    from gossamer.modules.blocks import removable
    from gossamer.modules.cost import analyze as analyze_network
    from gossamer.train.feature_hooks import stages, stages_in_words

    check_model(model, loading.weights)
    if against is not None:
        check_model(model, against)
    plot = out or Path(f"{drawing}.html")
    if drawing:
        make_place(plot)
    console = output.console()
    known = loading.consumer(model)
    task = load_data(data, consumer=known, seed=seed, progress=console.progress) if data is not None else None
    untrained = loading.weights is None and not drawing
    request = Request(model=model, task=task, weights=loading.weights, random=untrained, shape=shape, seed=seed)
    source = load_model(request)
    batch = usual_batch(source.example_inputs, batch)
    with console.progress.busy("analyze"):
        analysis = analyze_network(source.model, source.example_inputs)
    times = _layer_times(source, runtime, threads, batch) if runtime is not None else {}
    _show_layers(console, analysis.layers, times)
    at_once = f"{analysis.activation_bytes:,} bytes at once in int8, {4 * analysis.activation_bytes:,} in float32"
    console.line(f"activations of one sample: {at_once}")
    _show_groups(console, analysis.groups)
    blocks = removable(source.model, source.example_inputs)
    console.line(f"blocks or layers that can be removed: {', '.join(block.name for block in blocks) or 'none'}")
    found_stages = stages(source.model, source.example_inputs)
    console.line(f"last layers of each resolution, for students and teachers: {stages_in_words(found_stages)}")
    for note in analysis.notes:
        console.line(f"note: {note}")
    found: dict[str, Any] = {
        "layers": analysis.layers,
        "groups": analysis.groups,
        "blocks": blocks,
        "resolutions": [{"size": size, "first": first, "last": last} for size, (first, last) in found_stages.items()],
        "activation_bytes": analysis.activation_bytes,
        "notes": analysis.notes,
        "times_ms": times,
    }
    if sensitivity and task is not None:
        found["sensitivity"] = _sensitivity(console, source, task, seed, plot)
    if robustness and task is not None:
        sources = {source.name: source}
        if against is not None:
            sources[against.name] = load_model(replace(request, weights=against))
        found["robustness"] = _robustness(console, sources, task, seed, plot)
    if advise:
        goal = Goal(**{GAINS[gain]: 1}, runtime=runtime or "onnxruntime", threads=threads, batch=batch)  # type: ignore[arg-type]
        found["advice"] = _advice(console, source, goal)
    console.document(found)


def _advice(console: Console, source: "Source", goal: Goal) -> "list[Advice]":
    from gossamer.core.layer_names import reasons
    from gossamer.search.advise import advise

    rows = advise(source.model, source.example_inputs, goal, progress=console.progress)
    on = f" on {goal.runtime}, batch {goal.batch}, {goal.threads} threads" if goal.time_gains else ""
    console.line()
    console.table(
        f"What each scheme alone could save in {rows[0].unit}{on}; what it costs in accuracy only training tells",
        ("scheme", "times less", "measured", "why"),
        [(row.scheme, f"{row.times:.2f}" if row.helps else "nothing", row.tried, row.reason) for row in rows],
    )
    for reason in reasons({name: why for row in rows for name, why in row.left.items()}):
        console.line(f"no cheaper module for {reason}")
    if not any(row.helps for row in rows):
        console.line(f"nothing here saves {rows[0].unit}")
    return rows


def _layer_times(source: "Source", runtime: str, threads: int, batch: int) -> dict[str, float]:
    """Milliseconds of one batch by layer."""
    from gossamer.cli.runners import with_batch
    from gossamer.runtime.onnx_export import export_onnx
    from gossamer.runtime.profiling import layer_times

    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(source.model, source.example_inputs, Path(folder) / "model.onnx")
        return layer_times(runtime, path, with_batch(source.example_inputs, batch), threads=threads)


def _show_layers(console: Console, layers: "Sequence[LayerCost]", times: dict[str, float]) -> None:
    total = sum(layer.macs for layer in layers)
    rows = [
        (
            layer.name,
            layer.kind,
            f"{layer.in_channels} > {layer.out_channels}",
            f"{layer.params:,}",
            f"{layer.macs:,}",
            _share(layer.macs, total),
            f"{layer.bytes:,}",
            *([f"{times[layer.name]:.3f}" if layer.name in times else ""] if times else []),
        )
        for layer in layers
    ]
    sums = (f"{sum(x.params for x in layers):,}", f"{total:,}", "100.0 %", f"{sum(x.bytes for x in layers):,}")
    rows.append(("all", "", "", *sums, *([f"{sum(times.values()):.3f}"] if times else [])))
    columns = ("layer", "kind", "channels", "params", "MACs", "share", "bytes", *(["ms"] if times else []))
    console.table("Layers", columns, rows)


def _show_groups(console: Console, groups: "Sequence[Group]") -> None:
    rows = [
        (group.name, group.size, group.step, ", ".join(group.layers), "yes" if group.reason is None else group.reason)
        for group in groups
    ]
    console.line()
    console.table("Groups: channels that are cut together", ("group", "channels", "step", "layers", "can be cut"), rows)


def _sensitivity(console: Console, source: "Source", task: "Task", seed: int, out: Path) -> "list[Sensitivity]":
    from gossamer.core.context import Context
    from gossamer.core.folder import writing
    from gossamer.report import write_sensitivity
    from gossamer.search.sensitivity import sensitivity

    rows = sensitivity(source.model, task, Context(seed=seed, progress=console.progress))
    console.line()
    console.table(
        "Points of accuracy lost when a group is cut alone, without training",
        ("group", "sparsity", "channels", "drop"),
        [(row.group, f"{row.sparsity:.2f}", f"{row.size} > {row.kept}", f"{row.drop:+.2f}") for row in rows],
    )
    with writing(out):
        write_sensitivity(
            [(row.group, row.sparsity, row.drop) for row in rows], out, title=f"{source.name} on {task.name}"
        )
    console.line(f"plot: {out}")
    return rows


def _robustness(
    console: Console, sources: "Mapping[str, Source]", task: "Task", seed: int, out: Path
) -> "dict[str, list[Distorted]]":
    from gossamer.core.context import Context
    from gossamer.core.folder import writing
    from gossamer.measure.robustness import robustness
    from gossamer.report import write_robustness

    context = Context(seed=seed, progress=console.progress)
    found = {name: robustness(source.model, task, context) for name, source in sources.items()}
    rows = [
        (one[0].what, one[0].projection, *(f"{row.drop:+.2f}" for row in one))
        for one in zip(*found.values(), strict=True)
    ]
    console.line()
    console.table(
        "Points lost under distorted weights and activations, without training",
        ("distorted", "projection", *found),
        rows,
    )
    drops = {name: [(row.what, row.projection, row.drop) for row in rows] for name, rows in found.items()}
    with writing(out):
        write_robustness(drops, out, title=f"{next(iter(sources))} on {task.name}")
    console.line(f"plot: {out}")
    return found


def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".gsr, .onnx, .pt2, .safetensors, .pt, or a result folder.")
    ],
    json: JsonOption = False,
) -> None:
    """What a file holds: tensors, their types and shares of the file."""
    console = Console(as_json=json)
    if file.is_dir():
        _inspect_folder(console, file)
        return
    if file.suffix == ".gsr":
        _inspect_gsr(console, file)
        return
    from gossamer.cli.file_summary import read_contents

    contents = read_contents(file)
    rows = [
        (t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", f"{t.bytes:,}", _share(t.bytes, contents.file_bytes))
        for t in contents.tensors
    ]
    rows.append(
        ("(graph and metadata)", "", "", f"{contents.other_bytes:,}", _share(contents.other_bytes, contents.file_bytes))
    )
    rows.append(("file", "", "", f"{contents.file_bytes:,}", "100.0 %"))
    console.table(str(file), ("tensor", "dtype", "shape", "bytes", "share"), rows)
    console.document(contents)


def _inspect_gsr(console: Console, file: Path) -> None:
    """A compact file: how each tensor is coded, and how near that is to the entropy of its integers."""
    from gossamer.compact.inspection import inspect_file

    found = inspect_file(file)
    rows = [
        (
            t.name,
            t.dtype,
            "x".join(map(str, t.shape)) or "scalar",
            t.coding,
            f"{t.density:.1%}",
            f"{t.bytes:,.0f}",
            f"{t.bits_per_weight:.3f}",
            f"{t.share:.1%}",
            f"{t.entropy_bytes:,.0f}",
        )
        for t in found.tensors
    ]
    header = "names, shapes and graph" if found.has_graph else "names and shapes"
    share = f"{found.header_bytes / found.file_bytes:.1%}"
    rows.append((f"({header})", "", "", "", "", f"{found.header_bytes:,}", "", share, ""))
    rows.append(("file", "", "", "", "", f"{found.file_bytes:,}", "", "100.0%", ""))
    columns = ("tensor", "dtype", "shape", "coding", "density", "bytes", "bits/weight", "share", "order-0 entropy")
    console.table(str(file), columns, rows)
    ratio = found.dense_bytes / found.file_bytes
    console.line(f"{found.dense_bytes:,} bytes in memory, {found.file_bytes:,} in the file: {ratio:.1f}x smaller")
    console.document(found)


def _inspect_folder(console: Console, folder: Path) -> None:
    """The result of a job: its files, and what they are worth."""
    from gossamer.core.record import JobDocument
    from gossamer.report.verdict import sentence

    source = folder / "records.json"
    if not source.is_file():
        raise BadInput(
            f"{folder} holds no records.json; it is not a result of gossamer compress, or the job has not ended"
        )
    try:
        document = JobDocument.parse(source.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{source} is damaged: {error}") from error
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    total = sum(sizes.values())
    rows = [(name, f"{size:,}", _share(size, total)) for name, size in sizes.items()]
    console.table(str(folder), ("file", "bytes", "share"), [*rows, ("all", f"{total:,}", "100.0 %")])
    console.line(sentence(document))
    console.document({"folder": folder, "files": sizes, "met": document.met, "missed": document.missed})


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
