"""int8 of networks that packages ship as `.onnx`: a text recognizer, a voice detector, a detector of file types.

    python -m benchmarks.real.int8_of_files --seeds 0 1 2

Each seed splits the samples anew: some calibrate gossamer and ONNX Runtime's own quantization, others choose among
gossamer's settings, and what is reported are the third part. Lines of text are drawn, voices are synthetic, files are
those of the machine: only their float network says what is right of the last two. Times are those of one sample (of
voice: 32 windows of 32 ms), of the first seed, all files in the same rounds.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.real._shipped import NETWORKS, Shipped, onnx_session
from gossamer.core.batches import inputs_and_target
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.measure import evaluate, judged_by, steady_latency, whole_samples
from gossamer.onnx_import import import_onnx

RESULTS = paths.RESULTS / "int8-of-files.json"
PARTS = (0.3, 0.3)  # of the samples: what calibrates, what chooses; the rest is reported


def joined(batches: list[Any], together: int) -> list[Any]:
    """Several batches as one, where they may be."""
    if together == 1:
        return batches
    found = []
    for i in range(0, len(batches), together):
        some = [inputs_and_target(batch) for batch in batches[i : i + together]]
        inputs = tuple(torch.cat(parts) for parts in zip(*(x for x, _ in some), strict=True))
        target = torch.cat([y for _, y in some]) if some[0][1] is not None else None
        found.append((inputs, target))
    return found


def split(shipped: Shipped, seed: int) -> Task:
    """The three parts of the samples."""
    order = random.Random(seed).sample(shipped.batches, len(shipped.batches))
    first, second = (round(len(order) * sum(PARTS[: i + 1])) for i in range(2))
    parts = [joined(one, shipped.together) for one in (order[:first], order[first:second], order[second:])]
    options: dict[str, Any] = {} if shipped.judge is None else {"metric": shipped.judge}
    return Task.from_loaders(*parts, calibration=parts[0], example_inputs=inputs_of(parts[0][0]), **options)


def inputs_of(batch: Any) -> tuple[Tensor, ...]:
    return inputs_and_target(batch)[0]


def by_onnxruntime(file: Path, task: Task, folder: Path) -> dict[str, Path]:
    """ONNX Runtime's own ways, after its preparation of the file: ranges taken while it runs, and static ones."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, dynamic, static = (folder / f"{name}.onnx" for name in ("prepared", "dynamic.int8", "static.int8"))
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    session = onnx_session(file)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Any] = iter(
                [
                    {one.name: x.numpy() for one, x in zip(session.get_inputs(), inputs_of(batch), strict=True)}
                    for batch in task.calibration
                ]
            )

        def get_next(self) -> Any:
            return next(self.feeds, None)

    files = {}
    try:
        quantize_dynamic(prepared, dynamic, per_channel=True, weight_type=QuantType.QInt8)
        files["ONNX Runtime, dynamic"] = dynamic
        quantize_static(
            prepared,
            static,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        files["ONNX Runtime, static"] = static
    except Exception as error:
        print(f"ONNX Runtime: {type(error).__name__}: {error}"[:300], flush=True)
    return files


def of_one_seed(shipped: Shipped, task: Task, args: argparse.Namespace, *, timed: bool) -> dict[str, dict[str, Any]]:
    """Quantize in all ways, judge on test samples, and time."""
    network = import_onnx(shipped.file)
    if shipped.judge is None:
        task = judged_by(task, network)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {"float32": shipped.file, **by_onnxruntime(shipped.file, task, folder)}
        ours = folder / "ours"
        ours.mkdir()
        exported = gossamer.export_onnx(network, task.example_inputs, ours / "model.onnx")
        reference = evaluate(network, task)
        budget = whole_samples(args.max_drop, reference)
        found = gossamer.quantize_int8(
            exported,
            task,
            ours,
            goal=gossamer.Goal(max_drop=budget, threads=args.threads),
            reference=reference,
        )
        files["gossamer, float32"], files["gossamer"] = exported, found.path
        runners, rows = {}, {}
        for name, file in files.items():
            try:
                one = runner(file, args.threads)
                value = 100 * evaluate(one, task, "test").value
            except Exception as error:  # a peer's file that cannot run is a result, too
                if not name.startswith("ONNX Runtime"):
                    raise
                rows[name] = {"failed": f"{type(error).__name__}: {error}".replace(f"{folder}/", "")[:300]}
                continue
            runners[name] = one
            rows[name] = {"score": value, "bytes": file.stat().st_size, "setting": ""}
        rows["gossamer"]["setting"] = found.chosen
        rows["gossamer"]["tried"] = [f"{step.name} {step.note}: {step.drop:+.2f} points" for step in found.steps]
        sample = inputs_of(shipped.batches[0])
        times = steady_latency(runners, sample, tries=2, repeats=20, seconds=20) if timed else {}
        for name, time in times.items():
            rows[name]["latency_ms"] = [time.median_ms, time.q1_ms, time.q3_ms]
        return rows


def runner(file: Path, threads: int) -> Any:
    """A file in ONNX Runtime."""
    return gossamer.open_runner(
        "onnxruntime", file, threads=threads, precision="int8" if "int8" in file.name else "float32"
    )


def together(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The rows of all seeds so far as one: mean and deviation of the scores, the rest of the first seed."""
    rows = {}
    for name, first in seeds[0].items():
        found = [one[name]["score"] for one in seeds if "score" in one.get(name, {})]
        if not found:
            rows[name] = first
            continue
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        rows[name] = {**first, "score": found, "mean": statistics.mean(found), "deviation": spread}
        rows[name]["settings"] = [one[name]["setting"] for one in seeds if "setting" in one.get(name, {})]
    return rows


def main() -> None:
    """Quantize, judge and time; write the JSON after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=320, help="lines, sequences or files")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    document = json.loads(args.out.read_text()) if args.out.exists() else {"networks": {}}
    for name in args.networks:
        shipped = NETWORKS[name](args.samples)
        seeds: list[dict[str, dict[str, Any]]] = []
        for seed in args.seeds:
            seeds.append(of_one_seed(shipped, split(shipped, seed), args, timed=not seeds))
            document["measured"] = with_run(document, run_conditions(args.seeds[: len(seeds)], args.threads))
            document["networks"][name] = {
                "file": shipped.file.name,
                "opset": onnx.load(shipped.file).opset_import[0].version,
                "metric": shipped.metric,
                "samples": len(shipped.batches),
                "max_drop": args.max_drop,
                "rows": together(seeds),
            }
            write_text(args.out, json.dumps(document, indent=1))
            said = {k: (round(v["score"], 2), v["setting"]) if "score" in v else v for k, v in seeds[-1].items()}
            print(name, seed, said, flush=True)


if __name__ == "__main__":
    main()
