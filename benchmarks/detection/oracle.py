"""COCO's twelve numbers of random cases against pycocotools: ties, crowds, images without objects or detections.

Where faster-coco-eval is installed, it is asked and timed in the same run. Then all are timed on one larger case, of
images with many detections, as an evaluation has them.

python -m benchmarks.detection.oracle --cases 10000
python -m benchmarks.detection.oracle --table
"""

import argparse
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.detection._cases import evidence_of, faster_numbers, pycocotools_numbers, random_case
from gossamer.core.record import write_text
from gossamer.detection.metrics import CocoAP

RESULTS = paths.RESULTS / "detection-oracle.json"
EACH = 100  # cases after which results are written
IMAGES = 500  # of the larger case
LARGER = f"{IMAGES} images of up to 100 detections"


def table(document: dict[str, Any]) -> str:
    """Markdown from the JSON."""
    run = document["measured"][-1]
    seconds, larger = document["seconds"], document.get("larger", {})
    rows = [f"| {name}, processor seconds | {value:.1f} |\n" for name, value in seconds.items()]
    rows += [f"| the same, {LARGER}: {name} | {value:.2f} |\n" for name, value in larger.get("seconds", {}).items()]
    if larger:
        rows.append(f"| the same, {LARGER}: largest difference | {larger['largest']:.1e} |\n")
    return (
        "# Average precision against pycocotools\n\n"
        f"{document['cases']:,} random cases of six images, three classes, boxes on a coarse grid, so that "
        f"overlaps and scores are often equal. `{run['command']}`, {run['threads']} thread.\n\n"
        "| all twelve numbers of COCO | value |\n|---|---:|\n"
        f"| largest difference | {document['largest']:.1e} |\n"
        f"| cases with a difference above 1e-9 | {len(document['apart'])} |\n"
    ) + "".join(rows)


def compared(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int, seconds: dict[str, float]
) -> float:
    """The largest difference of gossamer's numbers from those of pycocotools; adds what each took."""
    found = {}
    for name, judge in JUDGES.items():
        began = time.process_time()
        found[name] = np.array(judge(annotations, results, images))
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
    return float(np.abs(found["gossamer"] - found["pycocotools"]).max())


def gossamer_numbers(annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int) -> list[float]:
    """COCO's twelve, -1 where there is no object."""
    numbers = CocoAP().summary(evidence_of(annotations, results, images)).values()
    return np.nan_to_num(list(numbers), nan=-1.0).tolist()  # type: ignore[no-any-return]


JUDGES: dict[str, Callable[..., list[float]]] = {"gossamer": gossamer_numbers, "pycocotools": pycocotools_numbers}
if importlib.util.find_spec("faster_coco_eval"):
    JUDGES["faster-coco-eval"] = faster_numbers


def peer_versions() -> dict[str, str]:
    """Of what is compared, where it is installed."""
    return {name: importlib.metadata.version(name) for name in JUDGES if name != "gossamer"}


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
    lines, run = Lines(), run_conditions([f"0 to {options.cases - 1}"], options.threads, peer_versions())
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    document["measured"] = with_run(document, run)
    seconds, largest, apart = dict[str, float](), 0.0, list[int]()
    for seed in range(options.cases):
        annotations, results = random_case(seed)
        difference = compared(annotations, results, 6, seconds)
        largest = max(largest, difference)
        apart += [seed] if difference > 1e-9 else []
        if (seed + 1) % EACH == 0 or seed + 1 == options.cases:
            document |= {"format": 1, "cases": seed + 1, "largest": largest, "apart": apart, "seconds": seconds}
            write_text(options.out, json.dumps(document, indent=1))
            write_table(options.out, table(document))
            lines.say(f"{seed + 1} cases: at most {largest:.1e} apart")
    taken = dict[str, float]()
    difference = compared(*random_case(0, IMAGES, 100), IMAGES, taken)
    document["larger"] = {"images": IMAGES, "largest": difference, "seconds": taken}
    write_text(options.out, json.dumps(document, indent=1))
    write_table(options.out, table(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
