"""The job of `scripts/demo`, with several seeds: whether it meets its goal, and in which time.

    python -m benchmarks.speed.demo --data fashion-mnist digits --seeds 0 1 2

Each run is the command that the script ends in, in a process of its own. A run that missed its goal is a row like any
other. Rows are kept by data, seed and processor: a second run of the same replaces none of them, unless `--again` says
so. The load is that of the machine when the run began.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from gossamer.core.record import write_text

RESULTS = paths.RESULTS / "demo.json"
JOB = ("compress", "resnet14", "--max-drop", "0.5", "--speedup", "2.5", "--time-budget", "5m")
MISSED = 3  # the exit status


def run(data: str, seed: int) -> dict[str, Any]:
    """One job, and what its records say."""
    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gossamer", *JOB, "--data", data, "--seed", str(seed), "--out", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, MISSED):
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        seconds = time.monotonic() - began
        records = json.loads((Path(folder) / "records.json").read_text())
    print(done.stdout, flush=True)
    return {"data": data, "seed": seed, "met": records["met"], "seconds": round(seconds), "load": load} | facts(records)


def facts(document: dict[str, Any]) -> dict[str, Any]:
    """Times on ONNX Runtime, and points lost on test data."""
    times, drops = dict[str, float](), dict[str, dict[str, Any]]()
    for row in document["records"]:
        where = row["conditions"]
        if row["what"] == "latency" and where.get("runtime") == "onnxruntime":
            times[row["subject"]] = row["value"]
        if row["what"] == "drop" and where.get("split") == "test":
            bounds = {"drop_low": row["low"], "drop_high": row["high"], "n": row["n"]}
            drops[row["subject"]] = {"drop_points": row["value"], **bounds}
    before = times["original"]
    after = times.get("result int8", times.get("result", before))
    lost = drops.get("result int8", drops.get("result", {}))
    return {"before_ms": before, "after_ms": after, "speedup": before / after, **lost}


def main() -> None:
    """Run, print, and write after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["fashion-mnist", "digits"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="run what is there already, too; both rows stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    document: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    conditions = run_conditions(options.seeds, 2)
    for seed in options.seeds:
        for data in options.data:
            key = (data, seed, conditions["processor"])
            if not options.again and key in [(row["data"], row["seed"], row["processor"]) for row in document["rows"]]:
                continue
            row = run(data, seed) | {name: conditions[name] for name in ("processor", "commit", "date")}
            document["rows"].append(row)
            document["measured"] = with_run(document, conditions)
            write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
