"""gossamer against what a user combines by hand, on the same trained networks: accuracy, latency, speed-up.

The hand's tools are Torch-Pruning with fine-tuning, ONNX Runtime int8, and NNCF int8 on OpenVINO; `_by_hand.py` runs
them in a Python of their own. Finished steps are kept in the work folder, and are not run again.
docs/comparisons.md says what is compared with what.

    python -m benchmarks.speed.compare --peers-python peers/bin/python
    python -m benchmarks.speed.compare --model vgg16_small --goals openvino:8 --peers-python peers/bin/python
    python -m benchmarks.speed.compare --table
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.speed import _by_hand, _measure, _table
from benchmarks.speed._steps import Bench, missing, steps
from gossamer.core.folder import lock_folder
from gossamer.core.goal import Goal
from gossamer.core.record import environment, write_text
from gossamer.errors import BadInput, GossamerError
from gossamer.search.cost_model import first_samples

RESULTS = paths.RESULTS
# "tune" is the part of "hand" that is worth an accelerator; it needs no more than torch-pruning.
STAGES = ("dense", "int8", "gossamer", "tune", "hand", "measure")
# MACs:cap:widths, as _by_hand.py takes them; what an experienced user would choose comes first.
CUTS = ("4:0.6:8", "2:0.6:8", "4:0.6:1", "2:0.6:1", "4:1:1")
WIDE_CUTS = ("4:0.6:8", "8:0.8:8", "4:0.6:1", "8:0.8:1", "2:0.6:8")


def measure(bench: Bench, seed: int) -> list[dict[str, Any]]:
    """Accuracy of what is new, latency of everything together."""
    options, folder = bench.options, bench.folder(seed)
    cells = _measure.find_cells(folder)
    if not any(cell.by == _measure.BY_DENSE for cell in cells):
        return []
    task = bench.task(seed)
    say = bench.lines.say
    if "measure" in options.stages:
        _measure.measure_accuracy(cells, task, folder / "accuracy.json", options.threads, say)
        inputs = first_samples(task.validation, options.batch)
        _measure.measure_latency(
            cells, inputs, folder / "latency.json", threads=options.threads, repeats=options.repeats, say=say
        )
    elif not (folder / "latency.json").exists():
        return []
    return _measure.rows(cells, seed, folder, task)


def write_results(bench: Bench) -> bool:
    """The JSON of all seeds measured so far, and the table made from it. Gives whether there was anything."""
    options = bench.options
    rows = [row for seed in options.seeds for row in measure(bench, seed)]
    if not rows:
        return False
    facts = [path for seed in options.seeds for path in sorted(bench.folder(seed).glob(f"hand/*/{_by_hand.FACTS}"))]
    peers = [json.loads(path.read_text()) | {"seed": int(path.parents[2].name[4:])} for path in facts]
    versions = peers[0]["versions"] if peers else {}
    run = run_conditions(sorted({row["seed"] for row in rows}), options.threads, versions)
    run["command"] = command(sys.argv[1:], options.peers_python)
    document = {
        "format": 1,
        "measured": [run],
        "conditions": bench_conditions(options)
        | {"seeds": sorted({row["seed"] for row in rows}), "repeats": options.repeats},
        "command": run["command"],
        "environment": environment(),
        "load_before": loads(bench),
        "peers_versions": versions,
        "dense": _facts(bench, "dense.json"),
        "int8": _facts(bench, f"gossamer/{_measure.INT8_ALONE}/job.json"),
        "jobs": [job for job in _facts(bench, "gossamer/*/job.json") if "goal" in job],
        "hand": peers,
        "missing": [name for seed in options.seeds for name in missing(bench, seed)],
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps(document, indent=1))
    write_table(options.out, _table.render(document))
    bench.lines.say(f"results: {options.out}")
    return True


def command(arguments: Sequence[str], peers_python: str | None) -> str:
    """As docs/comparisons.md writes it, wherever the peers' Python lies."""
    plain = ["peers/bin/python" if argument == peers_python else argument for argument in arguments]
    return shlex.join(["python", "-m", "benchmarks.speed.compare", *plain])


def _facts(bench: Bench, pattern: str) -> list[dict[str, Any]]:
    found = [(seed, path) for seed in bench.options.seeds for path in sorted(bench.folder(seed).glob(pattern))]
    return [{"seed": seed} | json.loads(path.read_text()) for seed, path in found]


def loads(bench: Bench) -> dict[int, float]:
    """How busy the machine was right before the latencies of a seed were measured: mean of the last minute."""
    files = {seed: bench.folder(seed) / "latency.json" for seed in bench.options.seeds}
    return {seed: json.loads(file.read_text())["load_before"] for seed, file in files.items() if file.exists()}


def bench_conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What all results of one work folder have in common."""
    names = ("model", "data", "epochs", "dense_epochs", "max_drop", "batch", "threads")
    return {name: getattr(options, name) for name in names}


def execute(options: argparse.Namespace) -> int:
    """All stages, seed after seed; results are written after every part that can be measured. Gives the exit status."""
    bench, failed, written = Bench(options, Lines()), [], False
    with lock_folder(bench.work):
        kept = bench.work / "conditions.json"
        conditions = json.dumps(bench_conditions(options), indent=1)
        if kept.exists() and kept.read_text() != conditions:
            raise BadInput(f"{bench.work} holds results under other conditions, see {kept}; choose another --work")
        write_text(kept, conditions)
        for seed in options.seeds:
            for name, work in steps(bench, seed):
                if not work():
                    failed.append(name)
            written = write_results(bench)
    if written:
        print(options.out.with_suffix(".md").read_text())
    else:
        bench.lines.say("nothing is measured yet")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="resnet20", help="a name of the zoo")
    add("--data", default="fashion-mnist")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--goals", nargs="+", metavar="RUNTIME:SPEEDUP", help="of gossamer, one job each (default: openvino:5)")
    add("--max-drop", type=float, default=0.5, help="points that gossamer may lose on validation data")
    add("--epochs", type=int, default=12, help="of every recovery, gossamer's and the hand's")
    add("--dense-epochs", type=int, help="of the dense network, instead of the recipe's")
    add("--weights", nargs="+", default=[], metavar="SEED=FILE", help="dense networks that are there already")
    add("--cuts", nargs="+", metavar="DIVISOR:CAP:ROUND_TO", help="of Torch-Pruning (default: five)")
    add("--batch", type=int, default=64)
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=60, help="timed runs of every network on every runtime")
    add("--peers-python", help="the Python with torch-pruning, nncf, openvino and gossamer")
    add(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=[name for name in STAGES if name != "tune"],
        help="only these; the rest is kept",
    )
    add("--work", type=Path, default=Path("out/speed"), help="where finished steps are kept")
    add("--out", type=Path, help="the JSON; the table lies beside it (default: results/speed-MODEL.json)")
    add("--table", action="store_true", help="only make the table again from the JSON")
    options = parser.parse_args(arguments)
    try:
        options.cuts = [
            _by_hand.Cut.parse(c) for c in options.cuts or (CUTS if options.model == "resnet20" else WIDE_CUTS)
        ]
        options.goals = [_goal(text, options) for text in options.goals or ["openvino:5"]]
        options.weights = dict(_weights(text) for text in options.weights)
    except ValueError as error:
        parser.error(str(error))
    if not options.table and options.peers_python is None and {"int8", "tune", "hand"} & set(options.stages):
        parser.error(
            "--peers-python is needed for the stages int8, tune and hand; docs/comparisons.md says how to make it"
        )
    name = options.model if options.data == "fashion-mnist" else f"{options.model}-{options.data}"
    options.out = options.out or RESULTS / f"speed-{name}.json"
    return options


def _goal(text: str, options: argparse.Namespace) -> Goal:
    runtime, colon, speedup = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r}: a goal is RUNTIME:SPEEDUP, such as openvino:5")
    return Goal(
        max_drop=options.max_drop,
        speedup=float(speedup),
        runtime=runtime,  # type: ignore[arg-type]  # checked by Goal
        threads=options.threads,
        batch=options.batch,
    )


def _weights(text: str) -> tuple[int, Path]:
    seed, equals, file = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: weights are given as SEED=FILE, such as 1=dense.safetensors")
    return int(seed), Path(file)


def main() -> int:
    options = parse()
    if options.table:
        text = _table.render(json.loads(options.out.read_text()))
        write_table(options.out, text)
        print(text)
        return 0
    try:
        return execute(options)
    except GossamerError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
