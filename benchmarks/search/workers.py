"""Trials per hour of two workers on one search against one, and whether they decide the same.

    python -m benchmarks.search.workers --repetitions 3

A tiny search on digits; every process has one thread. All processes of a run are started and have loaded their data
before the clock starts, and it stops when all have seen the last result. Busy is the time in steps of trials over the
time of all processes: what is missing to 1 is waiting for others, reading and writing. Where other programs use the
cores as well, trials per hour say more of them than of the workers, but busy does not.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.record import write_text
from gossamer.data import load_task
from gossamer.nas import MobileSpace, SearchPlan
from gossamer.nas.backends import ThisProcess
from gossamer.nas.job import follow
from gossamer.nas.study import Study, describe_study
from gossamer.nas.trials import TrialRunner, TrialStep

TARGET = RESULTS / "search_workers.json"
GOAL = Goal(max_drop=0, runtime="torch", threads=1, batch=16)
PLAN = SearchPlan(searcher="evolution", trials=6, epochs=1, concurrent=4)


class Narrow(MobileSpace):
    """The smaller half of the space, so that a run takes a minute."""

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(min(n, 2) for n in super().choices)


def work(folder: Path, first: bool) -> None:
    """One process of a run: says when it is ready, waits for a line, works, and says what it did and found."""
    torch.set_num_threads(1)
    task = load_task("digits", augment=False)
    channels, side = task.example_inputs[0].shape[1], task.example_inputs[0].shape[2]
    space = Narrow(channels=channels, classes=len(task.classes), side=side)
    study = Study.start(folder, describe_study(space, task, GOAL, PLAN, 0))
    backend = ThisProcess(study, TrialRunner(space, task, GOAL, PLAN, Context()), measure=first)
    warm = TrialStep("warm", "train", space.random(Random(0)), 1)
    backend.runner(warm)  # what happens once, such as imports, happens before the clock starts
    print("ready", flush=True)
    sys.stdin.readline()
    found = follow(backend).found
    own = [row for row in study.known.values() if row["by"] == study.owner["name"]]
    decided = repr([(one.genes, one.epochs, one.value) for one in found])
    row = {"trials": sum("value" in one for one in own), "busy": sum(one["seconds"] for one in own)}
    print(json.dumps({**row, "decided": hashlib.sha256(decided.encode()).hexdigest()[:12]}), flush=True)


def timed(workers: int) -> dict[str, Any]:
    """One run with so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.search.workers", "--folder", folder]
        running = []
        for number in range(workers):
            own = [*command, "--first"] if not number else command
            process = subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            running.append(process)
        began = time.monotonic()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        rows = [json.loads(process.communicate()[0]) for process in running]
        seconds = time.monotonic() - began
    return {
        "workers": workers,
        "seconds": round(seconds, 2),
        "trials_an_hour": round(3600 * PLAN.trials / seconds, 1),
        "busy": round(sum(row["busy"] for row in rows) / (workers * seconds), 3),
        "trials_of_each": [row["trials"] for row in rows],
        "decided": sorted({row["decided"] for row in rows}),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Two workers over one; nothing as long as one of them was not measured."""
    if not {row["workers"] for row in rows} >= {1, 2}:
        return {}

    def middle(name: str, workers: int) -> float:
        return float(median(row[name] for row in rows if row["workers"] == workers))

    return {
        "repetitions": min(sum(row["workers"] == workers for row in rows) for workers in (1, 2)),
        "ratio": round(middle("trials_an_hour", 2) / middle("trials_an_hour", 1), 3),
        "busy_ratio": round(2 * middle("busy", 2) / middle("busy", 1), 3),
        "same_decisions": len({one for row in rows for one in row["decided"]}) == 1,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table."""
    whole = document["summary"]
    lines = [
        "# Workers on one search",
        "",
        f"{PLAN.trials} trials of {PLAN.epochs} epochs on digits, {PLAN.concurrent} at a time, one thread each, "
        f"{whole['repetitions']} repetitions in turn. {document['load']}",
        "",
        "| workers | trials an hour, median | busy, median | trials of each |",
        "|---:|---:|---:|---|",
    ]
    for workers in (1, 2):
        rows = [row for row in document["rows"] if row["workers"] == workers]
        each = "; ".join("+".join(map(str, row["trials_of_each"])) for row in rows)
        hourly, busy = (median(row[name] for row in rows) for name in ("trials_an_hour", "busy"))
        lines.append(f"| {workers} | {hourly:.0f} | {busy:.3f} | {each} |")
    same = "the same" if whole["same_decisions"] else "not the same"
    ratio, busy = whole["ratio"], whole["busy_ratio"]
    text = (
        f"Two over one: {ratio:.2f} by trials an hour; {busy:.2f} by busy, which is twice that of two over that of one."
    )
    lines += ["", f"{text} Decisions of all runs: {same}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="of each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="how many, run after run")
    parser.add_argument("--load", default="Nothing else ran.", help="what else ran on the machine, for the table")
    parser.add_argument("--target", type=Path, default=TARGET, help="the JSON of results")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder is not None:
        return work(asked.folder, asked.first)
    progress = Lines()
    earlier: dict[str, Any] = json.loads(asked.target.read_text()) if asked.target.exists() else {}
    rows: list[dict[str, Any]] = list(earlier.get("rows", []))
    for _ in range(asked.repetitions):
        for workers in asked.workers:
            rows.append(timed(workers))
            progress.say(f"{rows[-1]}")
            document = {
                "measured": with_run(earlier, run_conditions([0], 1)),
                "load": asked.load,
                "rows": rows,
                "summary": summary(rows),
            }
            write_text(asked.target, json.dumps(document, indent=1))
            if document["summary"]:
                write_table(asked.target, markdown(document))
    return None


if __name__ == "__main__":
    main()
