"""Rows of exact counts: parameters and multiply-adds of networks of the zoo, as their papers print them."""

import torch

from benchmarks.papers._row import Number, Numbers, Row
from gossamer.models import build
from gossamer.modules.cost import total_macs, total_params


def measure(name: str, side: int) -> Numbers:
    """Millions of both."""
    model = build(name, classes=1000 if side > 32 else 10).eval()
    example = (torch.zeros(1, 3, side, side),)
    return {"parameters": total_params(model) / 1e6, "multiply-adds": total_macs(model, example) / 1e6}


def row(network: str, side: int, title: str, paper: str, where: str, *, reason: str = "", **printed: float) -> Row:
    """A row of a network. printed: parameters and multiply_adds of the paper, in millions, as rounded there."""
    numbers = [
        Number(name=name.replace("_", "-"), paper=value, where=where, tolerance=rounding(value), side="about", unit="M")
        for name, value in printed.items()
    ]
    return Row(
        title=f"Size of {title}",
        paper=paper,
        setting=f"{side} x {side} pixels",
        ours=f"`{network}`, counted; within the paper's rounding",
        minutes=0.1,
        measure=lambda seed: measure(network, side),
        numbers=tuple(numbers),
        seeds=(0,),
        exact=True,
        reason=reason,
    )


def rounding(number: float) -> float:
    """Half of the last digit that is printed."""
    digits = len(f"{number:g}".partition(".")[2])
    return 0.5 * 10.0**-digits
