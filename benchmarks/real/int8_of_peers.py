"""int8 without labels: gossamer and NNCF quantize the same network with the same photographs.

    python -m benchmarks.real.int8_of_peers mycode:mobilenet photos

Both calibrate on the same images; agreement with the float network counts on images that neither has seen. gossamer
chooses among its settings on a third part. Needs the package `nncf` beside gossamer (a virtual environment of its own).
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from gossamer.cli.loading import Request, load_model
from gossamer.core.batches import inputs_and_target, sample_count
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.task import Task
from gossamer.measure import evaluate, judged_by, paired_drop, steady_latency
from gossamer.search.cost_model import first_samples

BATCH = 8  # samples of a call that is timed


def by_nncf(path: Path, task: Task, target: Path) -> Path:
    """NNCF's quantization after training, with its defaults, for ONNX."""
    import nncf

    images = [inputs_and_target(batch)[0][0] for batch in task.calibration]
    one_by_one = [x[i : i + 1].numpy() for x in images for i in range(len(x))]
    network = onnx.load(path)
    name = network.graph.input[0].name
    data = nncf.Dataset(one_by_one, lambda x: {name: x})
    onnx.save(nncf.quantize(network, data, subset_size=len(one_by_one)), target)
    return target


def main() -> None:
    """Quantize, judge and time; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("photos")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    task = gossamer.load_task(args.photos, preprocessing=_imagenet(), augment=False)
    source = load_model(Request(model=args.model, task=task))
    task = judged_by(task, source.model)
    out = paths.RESULTS / "int8-of-peers.json"
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = {"float32": gossamer.export_onnx(source.model, source.example_inputs, folder / "net.onnx")}
        files["NNCF"] = by_nncf(files["float32"], task, folder / "nncf.onnx")
        goal = gossamer.Goal(max_drop=0.5, threads=args.threads)
        reference = evaluate(source.model, task)
        ours = gossamer.quantize_int8(files["float32"], task, folder, goal=goal, reference=reference)
        files["gossamer"] = ours.path
        before = evaluate(source.model, task, "test")
        for runtime in ("onnxruntime", "openvino"):
            runners = {
                name: gossamer.open_runner(
                    runtime, path, threads=args.threads, precision="float32" if name == "float32" else "int8"
                )
                for name, path in files.items()
            }
            times = steady_latency(runners, first_samples(task.validation, BATCH), tries=3, repeats=30, seconds=20)
            for name, runner in runners.items():
                found = evaluate(runner, task, "test")
                rows[f"{name} on {runtime}"] = {
                    "agreement": found.value,
                    "drop_points": paired_drop(before, found).points,
                    "samples": len(found),
                    "latency_ms": [times[name].median_ms, times[name].q1_ms, times[name].q3_ms],
                    "bytes": files[name].stat().st_size,
                    "setting": ours.chosen if name == "gossamer" else "",
                }
                print(f"{name} on {runtime}: {rows[f'{name} on {runtime}']}", flush=True)
                run = run_conditions([0], args.threads, {"nncf": version("nncf")})
                document = {
                    "measured": [run],
                    "calibration": sample_count(task.calibration),
                    "batch": BATCH,
                    "rows": rows,
                }
                out.write_text(json.dumps(document, indent=1))


def _imagenet() -> Preprocessing:
    usual = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return Preprocessing(size=224, channels=3, crop=224 / 256, **usual)


if __name__ == "__main__":
    main()
