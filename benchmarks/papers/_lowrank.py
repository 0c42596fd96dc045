"""Low-rank forms of LeNet-5's second convolution: lost before and after an epoch of training, and MACs."""

from collections.abc import Mapping
from typing import Any

from benchmarks.papers._mnist import apply, error, lenet, task
from benchmarks.papers._row import Numbers, Row
from gossamer.modules.cost import total_macs

# 50 filters of 5 x 5 on 20 maps give 8 x 8 values.
CONV2 = 50 * 20 * 25 * 64


def measure(seed: int, ways: Mapping[str, tuple[str, dict[str, Any]]]) -> Numbers:
    """Points lost by each way before and after one epoch, and times fewer MACs of the layer."""
    data, dense = task(seed), lenet("lenet5", seed)
    before, whole = error(dense, data), total_macs(dense, data.example_inputs)
    found = {"error of the dense network": before}
    for name, (method, options) in ways.items():
        factored = apply(method, dense, seed, layers=("conv2",), **options)
        layer = CONV2 - (whole - total_macs(factored, data.example_inputs))
        found[f"times fewer MACs, {name}"] = CONV2 / layer
        found[f"lost, {name}"] = error(factored, data) - before
        tuned = apply("distill.recover", factored, seed, epochs=1, lr=0.005, alpha=1.0)
        found[f"lost, {name}, tuned"] = error(tuned, data) - before
    return found


def row(
    title: str, paper: str, setting: str, ours: str, ways: Mapping[str, tuple[str, dict[str, Any]]], **more: Any
) -> Row:
    """A row of `ways`."""
    return Row(
        title=title,
        paper=paper,
        setting=setting,
        ours=f"the second convolution of LeNet-5 on MNIST, which has 52 % of its MACs: {ours}; one epoch of training",
        minutes=2 + len(ways),
        measure=lambda seed: measure(seed, ways),
        **more,
    )
