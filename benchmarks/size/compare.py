"""Small files: the networks of the papers, compressed to several sizes, with test accuracy and whole files by getsize.

For every network and seed: the dense network is trained as its recipe says; `smallest-NETWORK` makes files of several
sizes from it; Deep Compression is run as published, and with our epochs and teacher; general compressors pack the
weights. Every job is the main job with a recipe, so nothing is chosen by looking at accuracy. Finished parts are kept
in the work folder.

    python -m benchmarks.size.compare
    python -m benchmarks.size.compare --models lenet300 --seeds 0 --peers-python peers/bin/python
    python -m benchmarks.size.compare --papers           # with the methods of the papers on the same networks
    python -m benchmarks.size.compare --table
"""

import argparse
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from benchmarks.size import _papers
from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.writing import save
from gossamer.core.folder import lock_folder
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task
from gossamer.jobs.recipe import Recipe, load_recipe
from gossamer.measure import evaluate
from gossamer.methods.quantize.rate import RateConstrainedQuantization
from gossamer.models import build_for, load_weights, save_weights
from gossamer.modules.cost import dense_bytes

PEER = str(Path(__file__).with_name("_nncodec.py"))
RATIOS = {"lenet300": (40, 60, 100, 130), "lenet5": (60, 80, 150, 200), "resnet20": (10, 15, 25)}
# Whole-file ratios of the papers, on MNIST (LeNets) and CIFAR-10 (a ResNet-32); weights only where they say so.
PAPERS = {
    "lenet300": "Deep Compression 40x (error 1.64 to 1.58 %), soft weight-sharing 64x (1.89 to 1.94 %)",
    "lenet5": "Deep Compression 39x (0.80 to 0.74 %), Choi et al. 51x, soft weight-sharing 162x (0.88 to 0.97 %)",
    "resnet20": "Choi et al. 22x (ResNet-32 on CIFAR-10)",
}
PUBLISHED = "Deep Compression as published (15 epochs, no teacher), our coder"
EQUAL = "Deep Compression with as many epochs as ours and the original as teacher"
TARGETS = {"lenet300": ((0.0, 60), (0.5, 100)), "lenet5": ((0.0, 80), (0.5, 150)), "resnet20": ((0.0, 15), (0.5, 25))}


class Bench:
    """The options and one network and seed at a time."""

    def __init__(self, options: argparse.Namespace, model: str, seed: int) -> None:
        self.options, self.name, self.seed = options, model, seed
        self.folder = Path(options.work) / model / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = Lines()
        self.recipe = load_recipe(Path(f"smallest-{model}"))

    def task(self) -> Task:
        return gossamer.load_task("fashion-mnist", seed=self.seed, augment=self.recipe.augment)

    def run(self) -> gossamer.Context:
        return gossamer.Context(seed=self.seed, progress=self.lines)

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The facts of a part, from its file where it is there."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            self.lines.say(f"{self.name}, seed {self.seed}: {name}")
            write_text(file, json.dumps(make(), indent=1))
        return dict(json.loads(file.read_text()))

    def dense(self) -> nn.Module:
        path, task = self.folder / "dense.safetensors", self.task()
        torch.manual_seed(self.seed)
        model = build_for(self.name, task)
        if not path.exists():
            training = load_recipe(Path(f"train-{self.name}-fashion-mnist")).training
            assert training is not None
            self.lines.say(f"{self.name}, seed {self.seed}: dense")
            gossamer.fit(model, task, training, self.run(), checkpoint=path.with_suffix(".ckpt"), label="dense")
            save_weights(model, path, {})
        return load_weights(model, path).eval()


def top1(model: nn.Module, task: Task, split: str) -> float:
    return evaluate(model.eval(), task, split).shown


def dense_row(bench: Bench) -> dict[str, Any]:
    model, task = bench.dense(), bench.task()
    raw = b"".join(t.detach().float().numpy().tobytes() for t in model.state_dict().values() if t.is_floating_point())
    half = b"".join(t.detach().half().numpy().tobytes() for t in model.state_dict().values() if t.is_floating_point())
    whole = save(model, bench.folder / "dense.gsr", task.example_inputs).stat().st_size
    sizes = {"fp32 gzip": len(gzip.compress(raw)), "fp32 xz": len(lzma.compress(raw)), "fp16": len(half)}
    sizes |= {"fp16 gzip": len(gzip.compress(half)), "fp32 .gsr (exact)": whole}
    scores = {split: top1(model, task, split) for split in ("validation", "test")}
    return {"bytes": dense_bytes(model), "packed": sizes, **scores}


def by_recipe(bench: Bench, recipe: Recipe, name: str) -> dict[str, Any]:
    """The main job with a recipe; size by getsize, accuracy of the network that is loaded from the file."""
    task, out = bench.task(), bench.folder / name
    made = gossamer.compress(bench.dense(), task, recipe=replace(recipe, seed=bench.seed), out=out, context=bench.run())
    loaded = gossamer.load(out / "model.gsr")
    return {
        "bytes": (out / "model.gsr").stat().st_size,
        **{split: top1(loaded, task, split) for split in ("validation", "test")},
        "seconds": made.document.seconds,
    }


def ours(bench: Bench, ratio: float) -> dict[str, Any]:
    step = bench.recipe.steps[-1]
    assert isinstance(step, RateConstrainedQuantization)
    step = replace(step, compression_ratio=ratio, epochs=bench.options.epochs or step.epochs)
    return by_recipe(bench, replace(bench.recipe, steps=(*bench.recipe.steps[:-1], step)), f"{ratio:g}x")


def nncodec(bench: Bench) -> dict[str, Any]:
    """NNCodec without data, at several step sizes: whole files, decoded and judged here; batch norms folded."""
    model, task = fold_batch_norm(bench.dense()), bench.task()
    source, target, rows = bench.folder / "nncodec-in.npz", bench.folder / "nncodec-out.npz", {}
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    np.savez(source, **{name: tensor.numpy() for name, tensor in state.items()})
    for qp in bench.options.qp:
        command = [bench.options.peers_python, PEER, str(source), str(target), str(qp)]
        size = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        decoded = np.load(target)
        model.load_state_dict(
            {name: torch.as_tensor(decoded[name]).view_as(t) for name, t in state.items()}, strict=False
        )
        rows[f"qp {qp}"] = {"bytes": size, "test": top1(model, task, "test")}
    return rows


def hashed(bench: Bench, part: int) -> dict[str, Any]:
    """A hashed network and a dense one with as many weights, both from scratch: whole files, loaded and judged."""
    task, rows = bench.task(), {}
    training = replace(_papers.SCRATCH, epochs=bench.options.epochs or _papers.SCRATCH.epochs)
    networks = zip(("hashed", "dense of equal size"), _papers.hashed_pair(bench.dense(), part, bench.seed))
    for name, model in networks:
        path = bench.folder / f"{_papers.slug(name)}-{part}"
        gossamer.fit(model, task, training, bench.run(), checkpoint=path.with_suffix(".ckpt"), label=path.name)
        size = save(model, path.with_suffix(".gsr"), task.example_inputs).stat().st_size
        rows[name] = {"bytes": size, "test": top1(gossamer.load(path.with_suffix(".gsr")), task, "test")}
    return rows


def papers(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """The methods of the papers on the same network."""
    for label, recipe in _papers.recipes(bench.name, bench.options.epochs).items():
        yield label, bench.once(recipe.name, lambda: by_recipe(bench, recipe, recipe.name))  # noqa: B023
    for part in _papers.PARTS if bench.name == "lenet300" else ():
        both = bench.once(f"hashed-{part}", lambda: hashed(bench, part))  # noqa: B023
        for name, row in both.items():
            yield f"HashedNets at 1/{part}: {name}", row


def parts(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "dense", bench.once("dense", lambda: dense_row(bench))
    for ratio in bench.options.ratios or RATIOS[bench.name]:
        yield f"{ratio:g}x", bench.once(f"{ratio:g}x", lambda: ours(bench, ratio))  # noqa: B023
    if bench.name.startswith("lenet"):
        recipe = load_recipe(Path(f"deep-compression-{bench.name}"))
        yield "deep-compression", bench.once("deep-compression", lambda: by_recipe(bench, recipe, "dc"))
        last = bench.recipe.steps[-1]
        assert isinstance(last, RateConstrainedQuantization)
        equal = _papers.with_budget(recipe, bench.options.epochs or last.epochs or 30)
        yield EQUAL, bench.once("deep-compression-equal", lambda: by_recipe(bench, equal, "dc-equal"))
    if bench.options.papers:
        yield from papers(bench)
    if bench.options.peers_python:
        yield "nncodec", bench.once("nncodec", lambda: nncodec(bench))


def render(document: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Size of the compact file", ""]
    conditions = document["conditions"]
    lines += [f"Fashion-MNIST, {conditions}. Made by `{document['command']}`.", ""]
    if "measured" in document:
        lines += [f"- `{run['command']}`: {run['date']}, commit {run['commit']}" for run in document["measured"]] + [""]
    for name, seeds in document["networks"].items():
        dense = [found["dense"] for found in seeds.values()]
        base, size = mean(row["test"] for row in dense), dense[0]["bytes"]
        lines += [f"## {name}: {size:,} bytes in float32, test {_spread([r['test'] for r in dense])} %", ""]
        lines += ["| file | bytes | times smaller | test top-1 % | drop against the mean of the dense |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for label, rows in _rows(seeds):
            sizes, scores = [row["bytes"] for row in rows], [row["test"] for row in rows if "test" in row]
            drop = f"{base - mean(scores):+.2f}" if scores else "0.00"
            shown = _spread(scores) if scores else "as dense"
            lines.append(f"| {label} | {mean(sizes):,.0f} | {size / mean(sizes):.1f} | {shown} | {drop} |")
        asked = "; ".join(f"{ratio}x at a drop of at most {drop} points" for drop, ratio in TARGETS[name])
        lines += ["", f"Asked for: {asked}. Papers: {PAPERS[name]}.", ""]
    return "\n".join(lines)


def _rows(seeds: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    found = list(seeds.values())
    for packed in found[0]["dense"]["packed"]:
        yield packed, [{"bytes": one["dense"]["packed"][packed]} for one in found]
    for key in dict.fromkeys(k for one in found for k in one if k not in ("dense", "nncodec")):
        ours = f"smallest, asked for {key}" if key[:1].isdigit() else f"{key}, our coder"
        label = PUBLISHED if key == "deep-compression" else ours
        yield label, [one[key] for one in found if key in one]
    for qp in dict.fromkeys(q for one in found for q in one.get("nncodec", {})):
        yield f"NNCodec, {qp}", [one["nncodec"][qp] for one in found if "nncodec" in one]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "") + f" (n = {len(values)})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=list(RATIOS), default=list(RATIOS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--ratios", type=float, nargs="+", help="times smaller, instead of each network's own")
    add("--epochs", type=int, help="of the training into the file, instead of the recipe's")
    add("--qp", type=int, nargs="+", default=[-16, -20, -24], help="of NNCodec")
    add("--papers", action="store_true", help="also run the methods of the papers")
    add("--peers-python", help="the Python that has nncodec; without it these rows are left out")
    add("--work", type=Path, default=Path("out/size"))
    add("--out", type=Path, default=paths.RESULTS / "size.json")
    add("--table", action="store_true", help="only make the table again")
    options = parser.parse_args()
    if not options.table:
        with lock_folder(options.work):
            document: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
            networks: dict[str, Any] = document.get("networks", {})
            measured = with_run(document, run_conditions(options.seeds, torch.get_num_threads()))
            for name in options.models:
                for seed in options.seeds:
                    own = networks.setdefault(name, {}).setdefault(str(seed), {})
                    for part, facts in parts(Bench(options, name, seed)):
                        own[part] = facts
                        _write(options.out, networks, measured)
    text = render(json.loads(options.out.read_text()))
    write_table(options.out, text)
    print(text)
    return 0


def _write(path: Path, networks: dict[str, Any], measured: list[Any]) -> None:
    document = {
        "format": 1,
        "measured": measured,
        "command": "python -m benchmarks.size.compare",
        "conditions": "test split, mean ± standard deviation over seeds; sizes by getsize, graph and header included",
        "environment": environment(),
        "networks": networks,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1))


if __name__ == "__main__":
    sys.exit(main())
