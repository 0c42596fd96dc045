"""From a compressed network to the files that leave the job: exported, quantized, checked, measured."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.compact.writing import save
from gossamer.constraints.apply import materialize
from gossamer.core.batches import inputs_and_target
from gossamer.core.context import Context
from gossamer.core.copies import parameter_count
from gossamer.core.detector_rows import DetectorRows
from gossamer.core.goal import AT_LEAST, FROM_MODULES, Goal
from gossamer.core.record import ClassRow, FallbackStep, LayerCost, Record, write_text
from gossamer.core.task import Task, description
from gossamer.detection.metrics import BoxMetric
from gossamer.errors import BadInput
from gossamer.jobs.detections import gather_detections, precision_rows
from gossamer.measure import (
    Drop,
    Evaluation,
    Runner,
    evaluate,
    paired_drop,
    peak_memory,
    score_record,
    steady_latency,
)
from gossamer.models.weights import save_weights
from gossamer.modules.cost import dense_bytes, layer_costs
from gossamer.modules.replay import structure_of
from gossamer.modules.structure import Structure, Unreplayable
from gossamer.ptq.fallback import quantize_int8
from gossamer.runtime.deploy_folder import write_deploy_folder
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.profiling import layer_times
from gossamer.runtime.pt2.file import export_pt2
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify
from gossamer.search.cost_model import first_samples
from gossamer.search.device_profile import predicted_ms, profile_of
from gossamer.search.failures import ends_the_job, failure_reason

PREPROCESSING = "preprocessing.json"  # in a result folder: how images become inputs, and the names of the classes
DEPLOY = "deploy"  # in a result folder: the file to ship with programs that run it
EXPORTED = ("onnxruntime", "openvino")
INT8_LUCK = 0.1  # points: a float32 network that is over the budget by more will not be saved by rounding
ORIGINAL, RESULT, INT8 = "original", "result", "result int8"


@dataclass(frozen=True, kw_only=True)
class ExportedArtifacts:
    """The network in the form in which it is deployed. held: the network with what holds its weights. compact_bytes: 0
    where no compact file is written yet. scores: of the validation samples, by the deployed network."""

    held: nn.Module
    model: nn.Module
    float_path: Path
    int8_path: Path | None
    compact_bytes: int
    scores: Evaluation
    drop: Drop
    int8_steps: tuple[FallbackStep, ...]
    records: tuple[Record, ...]

    @property
    def deployed(self) -> Path:
        """The file to ship."""
        return self.int8_path or self.float_path

    @property
    def precision(self) -> str:
        """Of the file to ship."""
        return "int8" if self.int8_path else "float32"


def export_artifacts(
    model: nn.Module,
    task: Task,
    goal: Goal,
    context: Context,
    folder: Path,
    *,
    reference_scores: Evaluation,
    int8: bool,
    compact: bool = True,
) -> ExportedArtifacts:
    """Export, check the export on the validation set, and quantize as far as the budget of the goal allows.

    model: what holds its weights may say how the compact file stores them; what is delivered is plain.
    reference_scores: of the original on the validation samples; every drop is against them, sample by sample. compact:
    whether the compact file is written, which takes seconds; `with_compact` does it later.
    """
    held, model = model.eval(), materialize(model)
    (folder / "model.int8.onnx").unlink(missing_ok=True)  # of an earlier try
    with context.progress.busy("exporting"):
        float_path = export_onnx(model, task.example_inputs, folder / "model.onnx", about=description(task))
        runner = open_runner("onnxruntime", float_path, threads=goal.threads)
        records = list(verify(model, runner, task.validation))
        scores = evaluate(runner, task)
    int8_path: Path | None = None
    int8_steps: tuple[FallbackStep, ...] = ()
    if int8 and paired_drop(reference_scores, scores).within(goal.max_drop + INT8_LUCK):
        quantized = quantize_int8(
            float_path,
            task,
            folder,
            goal=goal if goal.runtime in EXPORTED else replace(goal, runtime="onnxruntime"),
            reference=reference_scores,
            context=context,
        )
        int8_path, int8_steps, scores = quantized.path, tuple(quantized.steps), quantized.scores
    result = ExportedArtifacts(
        held=held,
        model=model,
        float_path=float_path,
        int8_path=int8_path,
        compact_bytes=0,
        scores=scores,
        drop=paired_drop(reference_scores, scores),
        int8_steps=int8_steps,
        records=tuple(records),
    )
    return with_compact(result, task, context, folder) if compact else result


def with_compact(result: ExportedArtifacts, task: Task, context: Context, folder: Path) -> ExportedArtifacts:
    """The same with its compact file in the folder."""
    return replace(result, compact_bytes=save_compact(result.held, task, folder / "model.gsr", context))


def changes(model: nn.Module, task: Task, context: Context) -> Structure | None:
    """What is stored next to the weights, so that they load into a network like the original; None where they do so
    without, or where it cannot be told as data."""
    if context.original is None:
        return None
    try:
        return structure_of(context.original, model, task.example_inputs)
    except Unreplayable as why:
        context.progress.say(f"the weights do not load into the original's class again: {why}")
        return None


def save_compact(model: nn.Module, task: Task, path: Path, context: Context) -> int:
    """Write the compact file, checked to compute the same; gives its size. Networks whose graph it cannot hold are
    written without one: such a file loads into the user's own class."""
    with context.progress.busy("writing the compact file"):
        original = changes(materialize(model), task, context)
        try:
            save(model, path, task.example_inputs, original=original)
        except BadInput as error:
            context.progress.say(f"{path.name} holds the weights alone, for load(path, into=model): {error}")
            save(model, path, original=original)
    return path.stat().st_size


class Measured(NamedTuple):
    """All rows of the headline table, what of each class is right, and what there is to say of detectors."""

    records: list[Record]
    classes: list[ClassRow]
    detectors: DetectorRows | None


def measure_networks(
    original: nn.Module | None, result: ExportedArtifacts, task: Task, goal: Goal, context: Context, folder: Path
) -> Measured:
    """Measure scores on the test set, latency on every runtime here, sizes and peak memory.

    original: None measures the result alone.
    """
    subject = INT8 if result.int8_path else RESULT
    models = {RESULT: result.model}
    files = {subject: (result.deployed, result.precision)}
    compact = {RESULT: (result.compact_bytes, "model.gsr")}
    if original is not None:
        models = {ORIGINAL: original, **models}
        path = export_onnx(original, task.example_inputs, folder / "original.onnx")
        files = {ORIGINAL: (path, "float32"), **files}
        compact = {ORIGINAL: (dense_bytes(original), "weights in float32"), **compact}
    last = task.final_split
    with context.progress.busy(f"measuring {task.metric.name} on {last} data"):
        runners = {
            name: open_runner("onnxruntime", path, threads=goal.threads, precision=kind)
            for name, (path, kind) in files.items()
        }
        scores = {name: evaluate(runner, task, last) for name, runner in runners.items()}
    rows = [score_record(name, one, split=last) for name, one in scores.items()]
    if original is not None:
        if last != "validation":
            rows.append(paired_drop(scores[ORIGINAL], scores[subject]).to_record(subject, split=last))
        rows.append(result.drop.to_record(subject, split="validation"))
    with context.progress.busy("measuring latency"):
        for runtime in runtimes(goal):
            try:
                rows += _latencies(runtime, models, files, result, task, goal)
            except Exception as error:
                if ends_the_job(error) or runtime in ("onnxruntime", goal.runtime):
                    raise
                context.progress.say(f"times on {runtime} are left out: {failure_reason(error)}")
    rows += _predicted(files, task, goal)
    rows += _sizes(models, files, task)
    for name, (size, what) in compact.items():
        rows.append(Record(subject=name, what="compact_bytes", value=size, unit="bytes", conditions={"format": what}))
    inputs = first_samples(task.validation, goal.batch)
    for name, (path, kind) in files.items():
        used = peak_memory(path, inputs, threads=goal.threads, precision=kind)
        rows.append(
            Record(subject=name, what="peak_memory", value=used, unit="bytes", conditions={"runtime": "onnxruntime"})
        )
    return Measured(rows, by_class(scores, task), gather_detections(scores, runners, task))


def by_class(scores: Mapping[str, Evaluation], task: Task) -> list[ClassRow]:
    """The share of samples of each class that is right, percent, where scores are hits and misses and every target is a
    class; of detectors the average precision of each class."""
    if isinstance(task.metric, BoxMetric):
        return precision_rows(scores, task)
    hits = {name: found for name, one in scores.items() if (found := one.per_sample) is not None}
    if len(hits) < len(scores):
        return []
    targets = [inputs_and_target(batch)[1] for batch in task.final]
    if not all(isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() for y in targets):
        return []
    labels = torch.cat([y.cpu() for y in targets])
    if not all(len(one) == len(labels) and bool(((one == 0) | (one == 1)).all()) for one in hits.values()):
        return []
    rows = []
    for number in sorted(set(labels.tolist())):
        here = labels == number
        top1 = {name: 100 * float(one[here].mean()) for name, one in hits.items()}
        named = task.classes[number] if 0 <= number < len(task.classes) else str(number)
        rows.append(ClassRow(name=named, samples=int(here.sum()), top1=top1))
    return rows


def runtimes(goal: Goal) -> list[str]:
    """The runtimes of this machine on which results are timed; the goal's own first."""
    names = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else []), "torch"]
    return [goal.runtime, *(name for name in names if name != goal.runtime)]


def _latencies(
    runtime: str,
    models: Mapping[str, nn.Module],
    files: Mapping[str, tuple[Path, str]],
    result: ExportedArtifacts,
    task: Task,
    goal: Goal,
) -> list[Record]:
    """The original and the result, in every precision that the runtime has, timed side by side."""
    runners: dict[str, Runner] = {}
    if runtime in FROM_MODULES:
        runners |= {name: open_runner(runtime, model, threads=goal.threads) for name, model in models.items()}
    else:
        timed = {**files, RESULT: (result.float_path, "float32")}
        order = [name for name in (ORIGINAL, RESULT, INT8) if name in timed]
        for name in order:
            path, kind = timed[name]
            runners[name] = open_runner(runtime, path, threads=goal.threads, precision=kind)
    inputs = first_samples(task.validation, goal.batch)
    tries = 3 if runtime == goal.runtime else 1  # a moment in which something else ran must not decide
    times = steady_latency(runners, inputs, tries=tries, repeats=60, warmup=10, seconds=10)
    return [times[name].to_record(name) for name in runners]


def _predicted(files: Mapping[str, tuple[Path, str]], task: Task, goal: Goal) -> list[Record]:
    """Times on the device of the goal's profile, where it has one."""
    profile = profile_of(goal)
    if profile is None:
        return []
    inputs = first_samples(task.validation, goal.batch)
    found = []
    for name, (path, kind) in files.items():
        known = {"device": profile.label, "runtime": goal.timed_on, "threads": goal.threads, "batch": goal.batch}
        value = predicted_ms(profile, path, inputs, threads=goal.threads)
        conditions = {**known, "dtype": kind}
        found.append(Record(subject=name, what="latency", value=value, unit="ms", conditions=conditions))
    return found


def _sizes(models: Mapping[str, nn.Module], files: Mapping[str, tuple[Path, str]], task: Task) -> list[Record]:
    rows = []
    for name, model in models.items():
        macs = sum(cost.macs for cost in layer_costs(model, task.example_inputs))
        rows.append(Record(subject=name, what="macs", value=macs, unit="multiply-adds", conditions={"per": "sample"}))
        params = parameter_count(model)
        rows.append(Record(subject=name, what="params", value=params, unit="parameters"))
    for name, (path, _) in files.items():
        size = path.stat().st_size
        rows.append(Record(subject=name, what="file_bytes", value=size, unit="bytes", conditions={"file": path.name}))
    return rows


def save_files(result: ExportedArtifacts, task: Task, folder: Path, context: Context) -> dict[str, int]:
    """Write `.pt2`, `.safetensors` and the folder that runs the network elsewhere; gives the sizes of the files."""
    (folder / "model.pt2").unlink(missing_ok=True)  # of an earlier job
    for dynamic in (True, False):
        try:
            export_pt2(result.model, task.example_inputs, folder / "model.pt2", dynamic_batch=dynamic)
            break
        except BadInput as error:
            kept = "only for this number of samples" if dynamic else "not at all"
            context.progress.say(f"model.pt2 is written {kept}: {error}")
    structure = changes(result.model, task, context)
    save_weights(result.model, folder / "model.safetensors", context.note, structure=structure)
    if about := description(task):
        write_text(folder / PREPROCESSING, json.dumps(about, indent=1))
    write_deploy_folder(result.deployed, folder / DEPLOY, description(task))
    names = (
        "model.gsr", "model.onnx", "model.int8.onnx", "model.pt2", "model.safetensors", "recipe.yaml", PREPROCESSING,
    )  # fmt: skip
    return {name: (folder / name).stat().st_size for name in names if (folder / name).exists()}


def layers(model: nn.Module, path: Path, task: Task, goal: Goal, *, precision: str) -> list[LayerCost]:
    """Costs per layer, for the report; the time is of one batch on the goal's runtime, where that can tell."""
    times: dict[str, float] = {}
    if goal.runtime in EXPORTED:
        inputs = first_samples(task.validation, goal.batch)
        times = layer_times(goal.runtime, path, inputs, threads=goal.threads, precision=precision)
    with torch.no_grad():
        rows = layer_costs(model, task.example_inputs)
    return [replace(row, time_ms=times.get(row.name)) for row in rows]


def missed(goal: Goal, rows: list[Record], drop: Drop) -> list[str]:
    """What of the goal was not reached, in words with the numbers."""
    found = []
    if not drop.within(goal.max_drop):
        found.append(f"max_drop: {drop.points:.2f} points on validation, asked for at most {goal.max_drop:g}")
    value = {(row.what, row.subject): row.value for row in rows if _counts(row, goal)}
    reached: Mapping[str, float | None] = {
        "latency_ms": _after(value, "latency"),
        "speedup": _ratio(value, "latency"),
        "macs": _after(value, "macs"),
        "params": _after(value, "params"),
        "file_bytes": _after(value, "compact_bytes"),
        "compression_ratio": _ratio(value, "compact_bytes"),
    }
    for gain, asked in goal.gains.items():
        got = reached[gain]
        if got is None or (got < asked if gain in AT_LEAST else got > asked):
            bound = "at least" if gain in AT_LEAST else "at most"
            shown = "not measured" if got is None else _shown(got)
            found.append(f"{gain}: {shown}, asked for {bound} {_shown(asked)}")
    return found


def other_runtimes(goal: Goal, rows: list[Record]) -> list[str]:
    """Which of the other runtimes would reach a goal of time that this one missed, and how fast the result is there."""
    if not goal.time_gains:
        return []
    found: dict[str, tuple[float, bool]] = {}
    times = [row for row in rows if row.what == "latency"]
    for runtime in dict.fromkeys(str(row.conditions["runtime"]) for row in times):
        value = {(row.what, row.subject): row.value for row in times if row.conditions["runtime"] == runtime}
        ratio, after = _ratio(value, "latency"), _after(value, "latency")
        if runtime != goal.runtime and ratio and after:
            enough = (goal.speedup is None or ratio >= goal.speedup) and after <= (goal.latency_ms or after)
            found[runtime] = ratio, enough
    reach = [f"{name} ({ratio:.2f}x)" for name, (ratio, enough) in found.items() if enough]
    if reach:
        return [f"this network reaches it on {' and '.join(reach)}"]
    return (
        [f"elsewhere it runs {', '.join(f'{ratio:.2f}x on {name}' for name, (ratio, _) in found.items())}"]
        if found
        else []
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _counts(row: Record, goal: Goal) -> bool:
    return row.what != "latency" or row.conditions["runtime"] == goal.timed_on


def _after(value: Mapping[tuple[str, str], float], what: str) -> float | None:
    return value.get((what, INT8), value.get((what, RESULT)))


def _ratio(value: Mapping[tuple[str, str], float], what: str) -> float | None:
    before: Any = value.get((what, ORIGINAL))
    after = _after(value, what)
    return before / after if before and after else None
