"""`gossamer quantize`: an int8 network without any training."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossamer.cli.console import LOADING, Console
from gossamer.cli.errors import GOAL_MISSED
from gossamer.cli.option_groups import LoadingOptions, OutputOptions, grouped
from gossamer.cli.options import BatchOption, DataOption, ModelArgument, SeedOption, ThreadsOption
from gossamer.errors import BadInput, unknown

if TYPE_CHECKING:
    from gossamer.cli.loading import Source
    from gossamer.core.metric import Evaluation
    from gossamer.core.task import Task
    from gossamer.measure import Latency
    from gossamer.ptq.fallback import Quantized

RUNS = ("onnxruntime", "openvino")  # int8 files


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: gossamer quantize resnet20 --data fashion-mnist --max-drop 0.5")(quantize)


@grouped
def quantize(
    model: ModelArgument,
    *,
    data: DataOption = "auto",
    loading: LoadingOptions,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An .onnx file.", show_default="MODEL.int8.onnx, here")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, max=100, help="Points that may be lost: of accuracy, or of agreement.")
    ] = 0.5,
    runtime: Annotated[str, typer.Option(help="Where it is judged and timed: onnxruntime or openvino.")] = RUNS[0],
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Samples that it is calibrated on.")] = 512,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    seed: SeedOption = 0,
    output: OutputOptions,
) -> None:
    """Quantize a network to int8, without training.

    Images without labels will do, in a folder without class folders: what the network itself says is then right.
    Calibrated on one part of the data, judged on another. Exit status 3: the best that was found loses more than
    --max-drop; it is written.
    """
    if runtime not in RUNS:
        raise unknown("runtime of int8 files", runtime, RUNS)
    if out is not None and out.suffix != ".onnx":
        raise BadInput(f"--out {out}: the name must end in .onnx")
    console = output.console()
    with console.progress.busy(LOADING):
        from gossamer.cli.checks import check_model
        from gossamer.cli.loading import Request, judged, load_model
        from gossamer.cli.loading_data import load_data, usual_batch
        from gossamer.core.folder import make_place, replacing, writing
        from gossamer.search.cost_model import first_samples

        check_model(model, loading.weights)
        task = load_data(data, consumer=loading.consumer(model), seed=seed, progress=console.progress)
        source = load_model(Request(model=model, task=task, weights=loading.weights, seed=seed), console.progress)
        task = judged(task, source, console.progress.say)
        inputs = first_samples(task.validation, usual_batch(task.example_inputs, batch))
        out = out or Path(f"{source.name}.int8.onnx")
        make_place(out)
    with writing(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = quantized(
            source, task, Path(folder), max_drop, console, runtime=runtime, threads=threads, samples=samples
        )
        times = _times(made, inputs, console, runtime=runtime, threads=threads)
        with replacing(out) as temporary:
            shutil.copyfile(made.int8.path, temporary)
        sizes = made.float_path.stat().st_size, out.stat().st_size
    _show(console, out, made, times, sizes)
    if not made.int8.met:
        raise typer.Exit(GOAL_MISSED)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A network before and after. before: what it gave of the validation samples."""

    before: "Evaluation"
    float_path: Path
    int8: "Quantized"


def quantized(
    source: "Source",
    task: "Task",
    folder: Path,
    max_drop: float,
    console: Console,
    *,
    runtime: str = RUNS[0],
    threads: int,
    samples: int = 512,
) -> Made:
    """Quantize in a folder, by as much of the fallback sequence as the budget needs."""
    from gossamer.core.context import Context
    from gossamer.core.goal import Goal
    from gossamer.core.task import description
    from gossamer.measure import evaluate, whole_samples
    from gossamer.ptq.fallback import quantize_int8
    from gossamer.runtime.onnx_export import export_onnx
    from gossamer.runtime.runners import open_runner

    float_path = folder / "model.onnx"
    with console.progress.busy(f"export {source.name}"):
        export_onnx(source.model, source.example_inputs, float_path, about=description(task))
    with console.progress.busy(f"{task.metric.name} of {source.name}"):
        before = evaluate(open_runner("torch", source.model, threads=threads), task)
    budget = whole_samples(max_drop, before)
    goal = Goal(max_drop=budget, runtime=runtime, threads=threads)  # type: ignore[arg-type]  # checked by Goal
    context = Context(progress=console.progress)
    int8 = quantize_int8(float_path, task, folder, goal=goal, reference=before, samples=samples, context=context)
    return Made(before=before, float_path=float_path, int8=int8)


def _times(
    made: Made, inputs: "tuple[Any, ...]", console: Console, *, runtime: str, threads: int
) -> "dict[str, Latency]":
    """Of one batch, before and after, side by side."""
    from gossamer.measure import steady_latency
    from gossamer.runtime.runners import open_runner

    with console.progress.busy("measuring latency"):
        runners = {
            "before": open_runner(runtime, made.float_path, threads=threads),
            "after": open_runner(runtime, made.int8.path, threads=threads, precision="int8"),
        }
        return steady_latency(runners, inputs, seconds=10)


def _show(console: Console, out: Path, made: Made, times: "dict[str, Latency]", sizes: tuple[int, int]) -> None:
    drop, metric, (before, after) = made.int8.drop, made.before.metric, times.values()
    speedup = before.median_ms / after.median_ms
    lost = f"{drop.points:+.2f} points ({drop.low:+.2f} to {drop.high:+.2f}) on {drop.n:,} validation samples"
    where = f"{before.runtime}, batch {before.batch}, {before.threads} threads"
    rows = [
        (metric.name, str(made.before), str(made.int8.scores), f"drop {lost}"),
        (
            f"latency ({where})",
            f"{before.median_ms:.2f} ms",
            f"{after.median_ms:.2f} ms",
            f"{speedup:.2f} times as fast",
        ),
        ("file", f"{sizes[0]:,} bytes", f"{sizes[1]:,} bytes", f"{sizes[0] / sizes[1]:.2f} times smaller"),
    ]
    console.table("", ("", "float32", "int8", ""), rows)
    verdict = "within the budget" if made.int8.met else "MORE THAN ALLOWED: the best that was found"
    console.line(f"{out}: {made.int8.chosen}; {verdict}")
    document: dict[str, Any] = {
        "out": out,
        "met": made.int8.met,
        "rule": made.int8.chosen,
        "metric": metric.name,
        "before": made.before.shown,
        "after": made.int8.scores.shown,
        "drop": drop.points,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "n": drop.n,
        "latency_ms": {"before": before.median_ms, "after": after.median_ms},
        "speedup": speedup,
        "bytes": {"before": sizes[0], "after": sizes[1]},
    }
    console.document(document)
