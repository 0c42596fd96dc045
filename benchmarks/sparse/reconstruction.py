"""Channels cut without training, at equal widths: by size, by gradients, and by what the next layers can do without.

    python -m benchmarks.sparse.reconstruction --networks resnet20 vgg16_small

All but "3c" cut the same numbers of channels, the same share of every group, for the multiply-adds that are asked for.
"3c" cuts fewer and factors convolutions. All fit the weights behind by least squares on a few batches of training
images without labels. "taylor" alone sees labels.
Accuracy is of Fashion-MNIST's test images, after the cut and after the batch norms are estimated anew.
"""

import argparse
import json
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data.load import load_task
from gossamer.methods._base import Method
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.lasso import LassoChannels
from gossamer.methods.prune.osscar import Osscar
from gossamer.methods.prune.thinet import ThiNet
from gossamer.methods.prune.three_c import ThreeC
from gossamer.models.shipped import checkpoints, pretrained
from gossamer.models.weights import load_weights
from gossamer.models.zoo import build_for
from gossamer.modules.cost import total_macs
from gossamer.modules.element_groups import channel_groups
from gossamer.train import recalibrate

DATA = "fashion-mnist"


def network(name: str, task: Task, weights: Path | None) -> nn.Module:
    """The shipped network, or one with the weights of a file."""
    if name in {one.name for one in checkpoints() if one.data == DATA}:
        return pretrained(name, DATA)
    if weights is None:
        raise SystemExit(
            f"no weights of {name} are shipped: give --weights, from `gossamer train {name} --data {DATA}`"
        )
    return load_weights(build_for(name, task), weights).eval()


def variants(model: nn.Module, task: Task, speedup: float) -> dict[str, Method]:
    """Method by name; those by scores get the widths that the reconstruction methods take."""
    groups = channel_groups(model, task.example_inputs)
    widths = ThiNet(speedup=speedup).kept_counts(model, groups, task)
    scored: dict[str, Method] = {
        criterion: ChannelPruning(widths=widths, criterion=criterion)  # type: ignore[arg-type]
        for criterion in ("random", "l1", "taylor")
    }
    reconstructed = {"thinet": ThiNet, "lasso": LassoChannels, "osscar": Osscar}
    made: dict[str, Method] = {name: kind(speedup=speedup) for name, kind in reconstructed.items()}
    made["3c"] = ThreeC(speedup=speedup)  # other widths: ranks bring a part of the speedup
    plain: dict[str, Method] = {"osscar, shortcuts as they are": Osscar(speedup=speedup, residual=False)}
    return scored | made | plain


def measure(model: nn.Module, method: Method, task: Task, seed: int) -> dict[str, float]:
    """What one cut costs and keeps."""
    began = time.monotonic()
    smaller = method(model, task, Context(seed=seed)).model
    seconds, score = time.monotonic() - began, accuracy(smaller, task)
    again = deepcopy(smaller)
    recalibrate(again, task.calibration)
    return {
        "seconds": seconds,
        "macs": total_macs(smaller, task.example_inputs),
        "params": sum(p.numel() for p in smaller.parameters()),
        "test": score,
        "test with new statistics": accuracy(again, task),
    }


def accuracy(model: nn.Module, task: Task) -> float:
    """Percent of the test images."""
    with torch.no_grad():
        return 100 * task.metric.score(model.eval(), task.test)


def execute(options: argparse.Namespace) -> Mapping[str, Any]:
    """All points; those in the file are kept."""
    out: Path = options.out
    document: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"points": {}}
    document["measured"] = with_run(document, run_conditions(options.seeds, options.threads))
    for seed in options.seeds:
        task = load_task(DATA, seed=seed)
        for name in options.networks:
            model = network(name, task, options.weights)
            whole = f"{name}: whole"
            if whole not in document["points"]:
                document["points"][whole] = {
                    "test": accuracy(model, task),
                    "macs": total_macs(model, task.example_inputs),
                }
            for label, method in variants(model, task, options.speedup).items():
                key = f"{name}, {options.speedup:g}x, seed {seed}: {label}"
                if key in document["points"]:
                    continue
                document["points"][key] = measure(model, method, task, seed)
                print(key, document["points"][key], flush=True)
                write_text(out, json.dumps(document, indent=1))
    return document


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--weights", type=Path, help="of a network that is not shipped")
    parser.add_argument("--speedup", type=float, default=2.0, help="multiply-adds before over after")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=paths.RESULTS / "reconstruction.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    execute(options)


if __name__ == "__main__":
    main()
