"""The papers' rows of compare.py: each of their methods on the same network, stored in our file.

Choi et al. 2017 (arXiv:1612.01543): pruned and retrained, then shared in one of four ways, then the centers trained.
Ullrich et al. 2017 (arXiv:1702.04008): soft weight-sharing. Chen et al. 2015 (arXiv:1504.04788): layers that hold a
part of their weights, and a dense network with as many weights; both from scratch, equally long.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.core.context import Context
from gossamer.jobs.recipe import Recipe, load_recipe
from gossamer.methods._base import Method
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.magnitude import Magnitude
from gossamer.methods.quantize.uniform import UniformQuantization
from gossamer.methods.share.ecsq import ECSQ
from gossamer.methods.share.hashed import HashedNet
from gossamer.methods.share.kmeans import KMeans
from gossamer.methods.share.soft import SoftWeightSharing
from gossamer.train import Training

DENSITY = 0.2  # of a residual network, as in Choi's ResNet-32
BITS_PER_WEIGHT = {"lenet300": 0.4, "lenet5": 0.4, "resnet20": 1.0}  # of all weights, zeros included
PARTS = (8, 64)
SCRATCH = Training(epochs=30, lr=0.1, keep="last")


def recipes(name: str, epochs: int | None = None) -> dict[str, Recipe]:
    """The rows of a network by what they are called. epochs: of every training, instead of each step's own."""
    pruned: tuple[Method, ...] = (
        Magnitude(sparsity=1 - DENSITY),
        RecoveryDistillation(epochs=epochs or 10, lr=0.01, alpha=1),
    )
    if name.startswith("lenet"):
        prune, *_ = load_recipe(Path(f"deep-compression-{name}")).steps
        pruned = (prune, pruned[1])
    centers = RecoveryDistillation(epochs=epochs or 5, lr=0.01, alpha=1)
    bits = BITS_PER_WEIGHT[name]
    shared: dict[str, tuple[Method, ...]] = {
        "Choi et al., k-means": (*pruned, KMeans(bits=4), centers),
        "Choi et al., k-means by the Hessian": (*pruned, KMeans(bits=4, importance="hessian"), centers),
        "Choi et al., uniform": (*pruned, ECSQ(bits_per_weight=bits, iterations=0, importance="hessian"), centers),
        "Choi et al., ECSQ": (*pruned, ECSQ(bits_per_weight=bits, importance="hessian"), centers),
        "soft weight-sharing": (SoftWeightSharing(epochs=epochs or 40),),
        "int8, one step a row": (UniformQuantization(bits=8),),
    }
    return {label: Recipe(name=slug(label), steps=steps, int8=False) for label, steps in shared.items()}


def with_budget(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with so many epochs in all, shared among its trainings as they were, and the original as teacher: what
    our training into a file has."""
    before = sum(step.epochs or 0 for step in recipe.steps if isinstance(step, RecoveryDistillation))
    steps: list[Method] = []
    left, old = epochs, before
    for step in recipe.steps:
        if isinstance(step, RecoveryDistillation):
            part = round(left * (step.epochs or 0) / old)
            left, old = left - part, old - (step.epochs or 0)
            step = replace(step, epochs=part, alpha=RecoveryDistillation.alpha)
        steps.append(step)
    return replace(recipe, name=f"{recipe.name}-{epochs}-epochs-taught", steps=tuple(steps))


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in label).split()).lower()


def hashed_pair(model: nn.Module, part: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """Fresh networks like LeNet-300-100: with every layer hashed into 1/part of its weights, and a dense one with as
    many weights in all."""
    torch.manual_seed(seed)
    virtual = HashedNet(share=1 / part, fresh=True)(model, None, Context(seed=seed)).model  # type: ignore[arg-type]  # needs no data
    stored = sum(p.numel() for [held] in constraints(virtual).values() for p in held.parameters())
    first, *_, last = (p for p in materialize(model).parameters() if p.ndim == 2)
    inputs, outputs = first.shape[1], last.shape[0]
    # h hidden units and a third of them: inputs h + h h / 3 + outputs h / 3 weights.
    width = next(h for h in range(3, 10_000) if inputs * h + h * (h // 3) + (h // 3) * outputs >= stored)
    dense = nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width // 3), nn.ReLU()),
        nn.Linear(width // 3, outputs),
    )
    return virtual, dense
