"""Architectures of about equal size, trained alike: error, parameters, multiply-adds, latency, time to train.

ResNet-20, the same with stochastic depth, FractalNet-20 and DenseNet-BC of 0.26 to 0.27 M parameters (the survey's
Table 1, as far as two cores carry it). Same data, epochs, schedule and seeds. The latencies of all, in float32, and the
times of a few training steps are interleaved in one process: trainings may share the machine with others. Finished
networks are kept in the work folder: killed and started again, the benchmark goes on.

    python -m benchmarks.training.architectures --epochs 20 --seeds 0 1 2
    python -m benchmarks.training.architectures --table
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.common import paths
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.folder import lock_folder
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.measure import evaluate, latency
from gossamer.models.densenet import densenet_cifar
from gossamer.models.fractalnet import FractalNet
from gossamer.models.resnet import ResNet
from gossamer.models.stochastic import StochasticResNet
from gossamer.models.weights import read_weights, save_weights
from gossamer.modules.cost import total_macs, total_params
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.search.cost_model import first_samples
from gossamer.train import Training, fit

RESULTS = paths.RESULTS / "architectures.json"
# By name: the factory, and what it is.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "ResNet-20": (partial(ResNet, 3, option="A"), "three stages of 16, 32, 64 channels"),
    "stochastic depth": (partial(StochasticResNet, 3), "the same; the last block survives with probability 0.5"),
    "FractalNet-20": (
        partial(FractalNet, 3, (8, 16, 32, 40, 40), dropout=0.0),
        "five blocks of three columns; drop-path 0.15; no dropout, which is for hundreds of epochs",
    ),
    "DenseNet-BC": (partial(densenet_cifar, 52, 12, compact=True), "depth 52, growth rate 12"),
}
STEPS, ROUNDS = 12, 3  # of training, timed
RUNTIMES = ("onnxruntime", "openvino")


def build(name: str, task: Task, seed: int) -> nn.Module:
    """Fresh weights from the seed."""
    torch.manual_seed(seed)
    return NETWORKS[name][0](in_channels=task.example_inputs[0].shape[1], classes=len(task.classes))


def training(options: argparse.Namespace) -> Training:
    """The same for all."""
    return Training(epochs=options.epochs, lr=0.1, weight_decay=5e-4, schedule="one_cycle", warmup=0.3)


def train(name: str, task: Task, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One network of one seed: from its file where it is there, else trained."""
    stem = folder / f"{name.replace(' ', '-')}-seed{seed}"
    facts = stem.with_suffix(".json")
    if facts.exists():
        return dict(json.loads(facts.read_text()))
    model = build(name, task, seed)
    checkpoint = stem.with_suffix(".ckpt")
    fitted = fit(
        model, task, training(options), Context(seed=seed), checkpoint=checkpoint, label=f"{name}, seed {seed}"
    )
    scores = evaluate(open_runner("torch", fitted.model, threads=options.threads), task, "test")
    save_weights(fitted.model, stem.with_suffix(".safetensors"), {"network": name})
    error = 100 - scores.shown
    found = {"network": name, "seed": seed, "error": error, "backed_off": fitted.backed_off}
    write_text(facts, json.dumps(found, indent=1))
    checkpoint.unlink(missing_ok=True)
    return found


def latencies(task: Task, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds of one batch by network, and by runtime."""
    paths = {}
    for name in NETWORKS:
        stem = folder / f"{name.replace(' ', '-')}-seed{options.seeds[0]}"
        model = build(name, task, 0)
        model.load_state_dict(read_weights(stem.with_suffix(".safetensors")))
        paths[name] = export_onnx(model, task.example_inputs, stem.with_suffix(".onnx"))
    inputs = first_samples(task.validation, options.batch)
    found: dict[str, dict[str, float]] = {name: {} for name in NETWORKS}
    for runtime in options.runtimes:
        runners = {name: open_runner(runtime, path, threads=options.threads) for name, path in paths.items()}
        for name, time in latency(runners, inputs, repeats=options.repeats, warmup=10).items():
            found[name][runtime] = time.median_ms
    return found


def epoch_seconds(task: Task, options: argparse.Namespace) -> dict[str, float]:
    """Seconds that all steps of an epoch take, by network: a few steps of each in turn, the median of the rounds."""
    batches = [batch for batch, _ in zip(task.train, range(STEPS))]
    short = replace(task, train=batches, validation=batches[:1])
    once = Training(epochs=1, lr=1e-3, keep="last")
    spent: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for _ in range(ROUNDS + 1):
        for name, times in spent.items():
            times.append(fit(build(name, task, 0), short, once, Context(seed=0)).history[-1].seconds)
    # The first round warms up; validation, one batch without gradients, counts as a third of a step.
    steps = STEPS + 1 / 3
    return {name: median(times[1:]) / steps * len(task.train) for name, times in spent.items()}


def execute(options: argparse.Namespace) -> dict[str, Any]:
    """All networks of all seeds, then their latencies; the document."""
    options.work.mkdir(parents=True, exist_ok=True)
    with lock_folder(options.work):
        task = load_task(options.data)
        rows = [train(name, task, seed, options, options.work) for seed in options.seeds for name in NETWORKS]
        load = os.getloadavg()[0]
        times, epochs = latencies(task, options, options.work), epoch_seconds(task, options)
    networks = []
    for name, (_, what) in NETWORKS.items():
        model = build(name, task, 0).eval()
        networks.append(
            {
                "network": name,
                "what": what,
                "params": total_params(model),
                "macs": total_macs(model, task.example_inputs),
                "latency_ms": times[name],
                "epoch_seconds": epochs[name],
                "runs": [row for row in rows if row["network"] == name],
            }
        )
    names = ("data", "epochs", "seeds", "batch", "threads", "repeats")
    return {
        "format": 1,
        "conditions": {name: getattr(options, name) for name in names}
        | {"training": training(options).options(), "load": load},
        "environment": environment(),
        "networks": networks,
    }


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def render(document: dict[str, Any]) -> str:
    """The table in Markdown."""
    at, machine = document["conditions"], document["environment"]
    runtimes = list(document["networks"][0]["latency_ms"])
    columns = ["network", "parameters", "MACs (M)", "test error, %", *(f"{r}, ms" for r in runtimes), "epoch, s"]
    lines = [
        "# Architectures of about equal size",
        "",
        f"{at['data']}, {at['epochs']} epochs each, seeds {', '.join(map(str, at['seeds']))}: mean ± standard "
        f"deviation. Latency: median of {at['repeats']} interleaved runs, float32, batch {at['batch']}, "
        f"{at['threads']} threads, {machine.get('processor', '')}. Epoch: its steps, by a few "
        "of every network in turn, without validation.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in document["networks"]:
        cells = [f"{row['network']} ({row['what']})", f"{row['params']:,}", f"{row['macs'] / 1e6:.1f}"]
        cells.append(spread([run["error"] for run in row["runs"]], 2))
        cells += [f"{row['latency_ms'][runtime]:.2f}" for runtime in runtimes]
        cells.append(f"{row['epoch_seconds']:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="fashion-mnist")
    add("--epochs", type=int, default=20)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    add("--batch", type=int, default=64)
    add("--threads", type=int, default=2)
    add("--repeats", type=int, default=60, help="timed runs of every network on every runtime")
    add("--work", type=Path, default=Path("out/architectures"), help="where finished networks are kept")
    add("--out", type=Path, default=RESULTS, help="the JSON; the table lies beside it")
    add("--table", action="store_true", help="only make the table again from the JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if not options.table:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps(execute(options), indent=1))
    text = render(json.loads(options.out.read_text()))
    write_table(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
