"""The size of a compact file of an encoder of sentences against its cosine with the float network, without training.

    python -m benchmarks.real.compact_text FOLDER --seeds 0

FOLDER as in `benchmarks.real.int8_of_text`, whose test sentences judge. All weights, those of the embeddings too, are
rounded to the nearest code of a step per output or row, and the file's entropy coder takes what the codes leave over.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from benchmarks.real.int8_of_text import Encoder, rank_correlation, split
from gossamer.compact.writing import save
from gossamer.constraints.apply import materialize
from gossamer.measure import evaluate
from gossamer.methods.quantize.uniform import UniformQuantization

BITS = ((5, 5), (5, 6), (6, 6), (6, 7), (8, 8))  # of embeddings, of the other weights
LIMIT = 12_000_000  # bytes that are asked for, at a mean cosine of at least 0.999


def main() -> None:
    """Write the JSON after each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Encoder(args.folder).eval()
    tasks = [split(args.folder, model, seed) for seed in args.seeds]
    rows: dict[str, Any] = {}
    for tables, others in BITS:
        method = UniformQuantization(bits=others, layer_bits={"*embeddings": tables})
        constrained, _ = method(model)
        quantized = materialize(constrained).eval()
        with tempfile.TemporaryDirectory() as place:
            size = save(constrained, Path(place) / "model.gsr").stat().st_size
        rows[f"{tables} bits of embeddings, {others} of others"] = {
            "bytes": size,
            "cosine": [evaluate(quantized, task, "test").value for task in tasks],
            "spearman": [rank_correlation(quantized, task) for task in tasks],
        }
        document = {
            "measured": [run_conditions(args.seeds, 1, {"transformers": version("transformers")})],
            "asked": {"bytes": LIMIT, "cosine": 0.999},
            "rows": rows,
        }
        (paths.RESULTS / "compact-text.json").write_text(json.dumps(document, indent=1))
        print(list(rows)[-1], rows[list(rows)[-1]], flush=True)


if __name__ == "__main__":
    main()
