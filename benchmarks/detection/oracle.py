"""COCO's twelve numbers of random cases against pycocotools: ties, crowds, images without objects or detections.

python -m benchmarks.detection.oracle --cases 10000
python -m benchmarks.detection.oracle --table
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.detection._cases import evidence_of, pycocotools_numbers, random_case
from gossamer.core.record import write_text
from gossamer.detection.metrics import CocoAP

RESULTS = paths.RESULTS / "detection-oracle.json"
EACH = 100  # cases after which results are written


def table(document: dict[str, Any]) -> str:
    """Markdown from the JSON."""
    run = document["measured"][-1]
    return (
        "# Average precision against pycocotools\n\n"
        f"{document['cases']:,} random cases of six images, three classes, boxes on a coarse grid, so that "
        f"overlaps and scores are often equal. `{run['command']}`, {run['threads']} thread.\n\n"
        "| all twelve numbers of COCO | value |\n|---|---:|\n"
        f"| largest difference | {document['largest']:.1e} |\n"
        f"| cases with a difference above 1e-9 | {len(document['apart'])} |\n"
        f"| gossamer, processor seconds | {document['seconds']['gossamer']:.1f} |\n"
        f"| pycocotools, processor seconds | {document['seconds']['pycocotools']:.1f} |\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table of the JSON again")
    options = parser.parse_args(arguments)
    if options.table:
        write_table(options.out, table(json.loads(options.out.read_text())))
        return 0
    torch.set_num_threads(options.threads)
    lines, run = Lines(), run_conditions([f"0 to {options.cases - 1}"], options.threads)
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    document["measured"] = with_run(document, run)
    seconds, largest, apart = {"gossamer": 0.0, "pycocotools": 0.0}, 0.0, list[int]()
    for seed in range(options.cases):
        annotations, results = random_case(seed)
        began = time.process_time()
        found = np.nan_to_num(list(CocoAP().summary(evidence_of(annotations, results)).values()), nan=-1.0)
        between = time.process_time()
        expected = pycocotools_numbers(annotations, results)
        seconds["gossamer"] += between - began
        seconds["pycocotools"] += time.process_time() - between
        difference = float(np.abs(found - expected).max())
        largest = max(largest, difference)
        apart += [seed] if difference > 1e-9 else []
        if (seed + 1) % EACH == 0 or seed + 1 == options.cases:
            document |= {"format": 1, "cases": seed + 1, "largest": largest, "apart": apart, "seconds": seconds}
            write_text(options.out, json.dumps(document, indent=1))
            write_table(options.out, table(document))
            lines.say(f"{seed + 1} cases: at most {largest:.1e} apart")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
