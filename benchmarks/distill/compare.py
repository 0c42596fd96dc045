"""Teachers and students: what distillation is worth, row by row of the table in docs/comparisons.md.

    python -m benchmarks.distill.compare --rows hinton quarter --seeds 0 1 2

Every row is a function of a seed that gives numbers by name. A row and seed that stand in the JSON are not run again;
what was trained is kept below --work, so that a killed run goes on where it was. --scale shortens every training.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import torch

from benchmarks.common import paths
from benchmarks.distill._rows import ROWS, Numbers, Setting
from gossamer.core.record import environment, write_text

RESULTS = paths.RESULTS / "distill.json"


def shown(results: dict[str, Numbers]) -> str:
    """Means over seeds, one line for each number."""
    lines = []
    for row in ROWS:
        runs = [value["numbers"] for key, value in results.items() if key.split("/")[0] == row]
        if runs:
            lines += [f"{row} ({len(runs)} seeds)", *_lines(runs, "  ")]
    return "\n".join(lines)


def _lines(runs: list[Numbers], indent: str) -> list[str]:
    lines = []
    for name, first in runs[0].items():
        values = [run[name] for run in runs if name in run]
        if isinstance(first, dict):
            parts = {k: [v[k] for v in values if isinstance(v.get(k), int | float)] for k in first}
            numbers = ", ".join(f"{k} {mean(v):.4g}" for k, v in parts.items() if v)
            lines.append(f"{indent}{name}: {numbers}")
        elif all(isinstance(v, int | float) for v in values):
            each = ", ".join(f"{v:.4g}" for v in values)
            lines.append(f"{indent}{name}: {mean(values):.4g} ({each})")
        else:
            lines.append(f"{indent}{name}: {values}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--scale", type=float, default=1.0, help="times the epochs of every training")
    parser.add_argument("--work", type=Path, default=Path("out/benchmark-distill"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Numbers] = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        for seed in options.seeds:
            key = f"{row}/{options.data}/{options.scale:g}/{seed}"
            if key in results:
                continue
            print(f"{key} ...", flush=True)
            start = time.monotonic()
            numbers = ROWS[row](Setting(options.data, seed, options.scale, options.work))
            spent = round(time.monotonic() - start, 1)
            conditions = {"threads": torch.get_num_threads(), **environment()}
            results[key] = {"numbers": numbers, "seconds": spent, "conditions": conditions}
            write_text(options.out, json.dumps(results, indent=1))
    print(shown(results))


if __name__ == "__main__":
    main()
