"""Accuracy and latency of every deployed network of one seed, kept in the seed's folder."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import _by_hand
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.measure import Evaluation, Runner, Top1, evaluate, latency, paired_drop, wilson
from gossamer.modules.cost import layer_costs
from gossamer.runtime.pt2.file import load_pt2
from gossamer.runtime.runners import open_runner

SPLITS = ("test", "validation")
BY_DENSE, BY_HAND, BY_GOSSAMER = "dense", "hand", "gossamer"
INT8_ALONE = "gossamer-int8"
# Without a wish, OpenVINO computes what is not int8 in bfloat16 where the processor can.
RUNTIMES = {
    "float": (("torch", "float32"), ("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "default")),
    "int8": (("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "default")),
    "nncf": (("openvino", "int8"), ("openvino", "default")),
}


@dataclass(frozen=True)
class Cell:
    """One file on one runtime. by: who made it."""

    by: str
    network: str
    deployment: str
    runtime: str
    precision: str
    path: Path

    @property
    def key(self) -> str:
        return " | ".join((self.by, self.network, self.deployment, self.runtime, self.precision))

    def open(self, threads: int) -> Runner:
        source = load_pt2(self.path) if self.runtime == "torch" else self.path
        return open_runner(self.runtime, source, threads=threads, precision=self.precision)

    def bytes(self) -> int:
        """Of the file, and of the weights beside it where the format has two files."""
        beside = self.path.with_suffix(".bin")
        return self.path.stat().st_size + (
            beside.stat().st_size if self.path.suffix == ".xml" and beside.exists() else 0
        )

    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def find_cells(seed_folder: Path) -> list[Cell]:
    """All finished networks of a seed: dense, by hand, by gossamer."""
    cells: list[Cell] = []
    for folder in sorted((seed_folder / "hand").glob("*/")):
        if not (folder / _by_hand.FACTS).exists():
            continue
        name = json.loads((folder / _by_hand.FACTS).read_text())["network"]
        by = BY_DENSE if name == _by_hand.DENSE else BY_HAND
        cells += _cells(by, name, "float32", "float", folder / _by_hand.FLOAT, folder / _by_hand.TORCH)
        cells += _cells(BY_HAND, name, "ONNX Runtime int8", "int8", folder / _by_hand.ORT_INT8)
        cells += _cells(BY_HAND, name, "NNCF int8", "nncf", folder / _by_hand.NNCF_INT8)
    for folder in sorted((seed_folder / "gossamer").glob("*/")):
        if not (folder / "job.json").exists():
            continue
        if folder.name == INT8_ALONE:
            cells += _cells(BY_GOSSAMER, _by_hand.DENSE, "gossamer int8", "int8", folder / "model.int8.onnx")
            continue
        files = folder / "result"
        cells += _cells(BY_GOSSAMER, folder.name, "float32", "float", files / "model.onnx", files / "model.pt2")
        if (files / "model.int8.onnx").exists():
            cells += _cells(BY_GOSSAMER, folder.name, "gossamer int8", "int8", files / "model.int8.onnx")
    return cells


def _cells(
    by: str, network: str, deployment: str, kind: str, path: Path, torch_path: Path | None = None
) -> Iterator[Cell]:
    for runtime, precision in RUNTIMES[kind]:
        # bfloat16 is a choice that a user of the dense network makes by hand, often without knowing.
        who = BY_HAND if by == BY_DENSE and precision == "default" else by
        source = torch_path if runtime == "torch" and torch_path is not None else path
        yield Cell(who, network, deployment, runtime, precision, source)


def measure_accuracy(cells: list[Cell], task: Task, file: Path, threads: int, say: Callable[[str], None]) -> None:
    """Scores of every sample of both splits, for the cells that the file does not hold yet."""
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for cell in cells:
        digest = cell.digest()
        if known.get(cell.key, {}).get("digest") == digest:
            continue
        runner = cell.open(threads)
        scores = {split: evaluate(runner, task, split) for split in SPLITS}
        known[cell.key] = {"digest": digest} | {split: _packed(row.evidence["score"]) for split, row in scores.items()}
        write_text(file, json.dumps(known))
        say(f"accuracy: {cell.key}: test {scores['test']}")


def _packed(scores: Tensor) -> dict[str, Any]:
    return {"n": len(scores), "bits": np.packbits(scores.numpy() > 0).tobytes().hex()}


def _unpacked(row: dict[str, Any]) -> Tensor:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["bits"]), np.uint8), count=row["n"])
    return torch.from_numpy(bits).float()


def measure_latency(
    cells: list[Cell], inputs: tuple[Tensor, ...], file: Path, *, threads: int, repeats: int, say: Callable[[str], None]
) -> None:
    """All cells interleaved in this process; again whenever one of them is new."""
    conditions = {
        "cells": {cell.key: cell.digest() for cell in cells},
        "threads": threads,
        "batch": len(inputs[0]),
        "repeats": repeats,
    }
    if file.exists() and json.loads(file.read_text())["conditions"] == conditions:
        return
    say(f"latency: {len(cells)} cells, {repeats} interleaved runs each")
    before = os.getloadavg()[0]
    runners = {cell.key: cell.open(threads) for cell in cells}
    times = latency(runners, inputs, repeats=repeats)
    rows = {key: asdict(row) for key, row in times.items()}
    write_text(file, json.dumps({"conditions": conditions, "load_before": before, "times": rows}, indent=1))


def rows(cells: list[Cell], seed: int, folder: Path, task: Task) -> list[dict[str, Any]]:
    """One plain row for every cell that has been measured."""
    scores = json.loads((folder / "accuracy.json").read_text())
    times = json.loads((folder / "latency.json").read_text())["times"]
    dense = {cell.runtime: cell.key for cell in cells if cell.by == BY_DENSE}
    costs: dict[str, dict[str, int]] = {}
    found = []
    for cell in (cell for cell in cells if cell.key in times and cell.key in scores):
        if cell.runtime == "torch":
            costs[cell.network] = _costs(cell.path, task)
        row: dict[str, Any] = {"seed": seed, "file_bytes": cell.bytes()}
        row |= {name: getattr(cell, name) for name in ("by", "network", "deployment", "runtime", "precision")}
        time = times[cell.key]
        names = ("median_ms", "q1_ms", "q3_ms", "min_ms", "runs")
        row["latency"] = {name: time[name] for name in names} | {"computes_in": time["dtype"]}
        row["speedup"] = times[dense[cell.runtime]]["median_ms"] / time["median_ms"]
        for split in SPLITS:
            own, reference = (_unpacked(scores[key][split]) for key in (cell.key, dense[cell.runtime]))
            low, high = wilson(own)
            row[split] = {
                "top1": 100 * float(own.double().mean()),
                "low": low,
                "high": high,
                "n": len(own),
                "drop": asdict(paired_drop(*(Evaluation(Top1(), {"score": one}) for one in (reference, own)))),
            }
        found.append(row)
    return [row | costs[row["network"]] for row in found]


def _costs(path: Path, task: Task) -> dict[str, int]:
    model = load_pt2(path)
    macs = sum(layer.macs for layer in layer_costs(model, task.example_inputs))
    return {"macs": macs, "params": sum(p.numel() for p in model.parameters())}
