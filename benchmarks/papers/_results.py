"""The JSON of each row: the facts of the row, and what every seed measured under which conditions."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.papers._row import Row
from benchmarks.papers.rows import all_rows
from gossamer.core.record import write_text

FOLDER = paths.RESULTS / "papers"
Document = dict[str, Any]


def read(folder: Path = FOLDER) -> list[Document]:
    """All documents, in the order of the papers."""
    documents = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return sorted(documents, key=lambda one: (int(one["row"].split("-")[0]), one["row"]))


def document_of(name: str, row: Row, folder: Path = FOLDER) -> Document:
    """The document of a row: its facts as they are now, and the seeds that are measured already."""
    file = folder / f"{name}.json"
    before: Document = json.loads(file.read_text()) if file.exists() else {}
    return json.loads(json.dumps(row.facts(name))) | {
        "measured": before.get("measured", []),
        "by_seed": before.get("by_seed", {}),
    }


def write(document: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Put a document in the place of the earlier one, at once."""
    write_text(folder / f"{document['row']}.json", json.dumps(document, indent=1) + "\n")


def write_facts(rows: Mapping[str, Row], folder: Path = FOLDER) -> None:
    """Bring the facts in all documents up to date; rows that were not run get one as well."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in rows.items():
        write(document_of(name, row, folder), folder)


def with_seed(measured: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions of all seeds, one entry for each kind of processor: that of its last seed.

    Args:
        measured: the entries until now.
        conditions: of one seed.
    """
    [seed] = conditions["seeds"]
    others = [{**one, "seeds": [s for s in one["seeds"] if s != seed]} for one in measured]
    same = [one for one in others if one["processor"] == conditions["processor"]]
    seeds = sorted({seed, *(s for one in same for s in one["seeds"])})
    rest = [one for one in others if one not in same and one["seeds"]]
    return [*rest, {**conditions, "seeds": seeds}]


def run(names: Sequence[str], seeds: Sequence[int] | None = None, folder: Path = FOLDER) -> None:
    """Measure the seeds that are missing; each is written as it comes, all rows' first seed first."""
    rows = all_rows()
    wanted = [(index, name, seed) for name in names for index, seed in enumerate(seeds or rows[name].seeds)]
    for _, name, seed in sorted(wanted, key=lambda one: one[0]):
        measure = rows[name].measure
        document = document_of(name, rows[name], folder)
        if measure is None or str(seed) in document["by_seed"]:
            continue
        began, worked = time.perf_counter(), time.process_time()
        numbers = dict(measure(seed))
        document = document_of(name, rows[name], folder)  # another process may have added a seed since
        conditions = run_conditions([seed], torch.get_num_threads())
        conditions["command"] = f"python -m benchmarks.papers run {name}"
        document["by_seed"][str(seed)] = {
            "numbers": numbers,
            "seconds": round(time.perf_counter() - began),
            "processor_seconds": round(time.process_time() - worked),
            "commit": conditions["commit"],
        }
        document["by_seed"] = dict(sorted(document["by_seed"].items(), key=lambda one: int(one[0])))
        document["measured"] = with_seed(document["measured"], conditions)
        write(document, folder)
        print(f"{name}, seed {seed}: {json.dumps(numbers)}", flush=True)
