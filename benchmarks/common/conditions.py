"""The conditions that every JSON of results holds under `measured`, one entry for each run that added to it."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from gossamer.core.record import environment

MACHINE = ("date", "processor", "cores")


def run_conditions(seeds: Sequence[Any], threads: int, peers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Of the run that is under way: command, commit, date, seeds, threads, processor and versions (peers: theirs)."""
    machine = environment()
    return {
        "command": shlex.join(["python", "-m", module(Path(sys.argv[0])), *sys.argv[1:]]),
        "commit": commit(),
        **{name: machine[name] for name in MACHINE},
        "seeds": list(seeds),
        "threads": threads,
        "versions": {k: v for k, v in machine.items() if k not in MACHINE} | dict(peers or {}),
    }


def module(file: Path) -> str:
    """The dotted name of a benchmark, by which it is run again."""
    return ".".join(file.resolve().relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__main__")


def commit() -> str:
    """The code that runs; "+" where it was changed since."""
    command = ["git", "-C", str(paths.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known: no repository"


def with_run(document: Mapping[str, Any], run: Mapping[str, Any]) -> list[Any]:
    """What `measured` becomes: the earlier runs, and this one once, however often it writes."""
    earlier = [one for one in document.get("measured", []) if one.get("command") != run["command"]]
    return [*earlier, dict(run)]
