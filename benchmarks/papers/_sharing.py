"""Orderings of the papers on sharing; `orderings.py` runs them with the rest.

Each is a function of a seed that gives test top-1, in percent, for every variant at every setting, on Fashion-MNIST.
"""

import itertools
from functools import cache
from typing import Any

import torch
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.methods import catalogue
from gossamer.models import pretrained
from gossamer.train import Training, fit

Numbers = dict[str, dict[str, float]]
BETTER = "better of density and random"
# LeNet-300-100, densities of Deep Compression's table 2.
SPARSITIES = {"fc1": 0.92, "fc2": 0.91, "fc3": 0.74}


@cache
def task(seed: int = 0) -> Task:
    """Fashion-MNIST; the seed is that of the order of training samples, which the run's own seed does not change."""
    return load_task("fashion-mnist", seed=seed, augment=False)


@cache
def lenet() -> nn.Module:
    """The shipped LeNet-300-100."""
    return pretrained("lenet300", "fashion-mnist")


def top1(model: nn.Module) -> float:
    """Percent on the test split."""
    return 100 * task().metric.score(materialize(model).eval(), task().test)


def apply(method: str, model: nn.Module, seed: int, **options: Any) -> nn.Module:
    """A method by its name in a recipe."""
    return catalogue()[method](**options)(
        model, task(seed), Context(seed=seed, accelerator="cpu", original=lenet())
    ).model


@cache
def pruned(seed: int) -> nn.Module:
    """8 % of the weights left, three epochs of retraining."""
    return apply(
        "distill.recover", apply("prune.magnitude", lenet(), seed, sparsities=SPARSITIES), seed, epochs=3, lr=0.05
    )


def networks(seed: int) -> dict[str, nn.Module]:
    """What is shared: LeNet-300-100 with 8 % of its weights, and LeNet-5 with all, the same for all seeds."""
    return {"LeNet-300-100, 8 %": pruned(seed), "LeNet-5": pretrained("lenet5", "fashion-mnist")}


BOOKS = {"one codebook": "network", "one a layer": "layer"}


def order0(model: nn.Module) -> float:
    """Bits per weight under one codebook: entropy of the values of all layers, and 32 bits for each value but zero."""
    every = torch.cat([effective_weight(model, name).flatten() for name in weights_of(model)])
    values, users = every.unique(return_counts=True)
    return (float(-(users * (users / users.sum()).log2()).sum()) + 32 * int((values != 0).sum())) / len(every)


def initialization(seed: int) -> Numbers:
    """Starts of k-means on the pruned network, before and after one epoch of training the centers."""
    found: Numbers = {}
    for bits in (2, 3):
        for start in ("linear", "density", "random", "optimal"):
            shared = apply("share.kmeans", pruned(seed), seed, bits=bits, start=start, codebook="layer")
            trained = apply("distill.recover", shared, seed, epochs=1, lr=0.02)
            for when, model in (("clustered", shared), ("trained", trained)):
                found.setdefault(f"{bits} bits, {when}", {})[start] = top1(model)
    for values in found.values():
        values[BETTER] = max(values["density"], values["random"])
    return found


def importance(seed: int) -> Numbers:
    """What errors are weighed by in k-means, at fixed length, without training."""
    found: Numbers = {}
    for name, model in networks(seed).items():
        for (title, codebook), bits in itertools.product(BOOKS.items(), (2, 3)):
            found[f"{name}, {title}, {bits} bits"] = {
                how: top1(apply("share.kmeans", model, seed, bits=bits, importance=how, codebook=codebook))
                for how in ("hessian", "none")
            }
    return found


def uniform(seed: int) -> Numbers:
    """Uniform steps and ECSQ with as many bits, the codebook included, as k-means takes after coding; one codebook for
    all layers, without training."""
    found: Numbers = {}
    for name, model in networks(seed).items():
        for bits in (2, 3):
            plain = apply("share.kmeans", model, seed, bits=bits)
            budget = order0(plain)
            found[f"{name}, {bits} bits"] = {
                "ecsq": top1(apply("share.ecsq", model, seed, bits_per_weight=budget)),
                "uniform": top1(apply("share.ecsq", model, seed, bits_per_weight=budget, iterations=0)),
                "k-means": top1(plain),
            }
    return found


def mlp(hidden: int) -> nn.Module:
    """784-hidden-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def hashed(seed: int) -> Numbers:
    """784-1000-10 with a part of its weights stored, and dense 784-h-10 of as many parameters, from scratch."""
    found: Numbers = {}
    for part in (8, 64):
        torch.manual_seed(seed)
        virtual = apply("share.hashed", mlp(1000), seed, share=1 / part, fresh=True)
        stored = sum(p.numel() for [held] in constraints(virtual).values() for p in held.parameters())
        small = mlp(round(stored / 794))
        training = Training(epochs=2, lr=0.1, keep="last")
        found[f"1/{part}"] = {
            name: top1(fit(model, task(seed), training, Context(seed=seed, accelerator="cpu")).model)
            for name, model in (("hashed", virtual), ("dense", small))
        }
    return found
