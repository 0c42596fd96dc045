"""[33]: what is left of VGG-16 for CIFAR."""

import torch

from benchmarks.papers._row import Number, Numbers, Row
from gossamer.methods import catalogue
from gossamer.models import build
from gossamer.modules.cost import total_macs, total_params

# Half of the first convolution and of the 8th to the 13th.
WIDTHS = {"features.0": 32} | {f"features.{n}": 256 for n in (24, 27, 30, 34, 37, 40)}


def measure(seed: int) -> Numbers:
    """Parameters and multiply-adds before and after, in millions."""
    model, example = build("vgg16_small").eval(), torch.zeros(1, 3, 32, 32)
    cut = catalogue()["prune.channels"](widths=WIDTHS, criterion="l1", reconstruct=False)(model, example).model
    return {
        "parameters": total_params(model) / 1e6,
        "parameters, cut": total_params(cut) / 1e6,
        "multiply-adds": total_macs(model, (example,)) / 1e6,
        "multiply-adds, cut": total_macs(cut, (example,)) / 1e6,
    }


def number(name: str, paper: float, tolerance: float) -> Number:
    """As rounded in the paper's table."""
    return Number(name=name, paper=paper, where="table 1", tolerance=tolerance, side="about", unit="M")


ROW = Row(
    title="Filters of VGG-16 for CIFAR removed: pruned-A",
    paper="Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710",
    setting="half of the filters of the first and the 8th to 13th convolutions; 32 x 32 pixels",
    ours="the same cut by `prune.channels`, counted",
    minutes=0.2,
    measure=measure,
    numbers=(
        number("parameters", 15, 0.5),
        number("parameters, cut", 5.4, 0.05),
        number("multiply-adds", 313, 1),
        number("multiply-adds, cut", 206, 1),
    ),
    seeds=(0,),
    exact=True,
)
