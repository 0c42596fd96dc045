"""The weights of a network by name, whether constrained or not."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrained_in, constrained_stacks
from gossamer.errors import NoEffect


def weights_of(
    model: nn.Module, layers: Iterable[str] = ("*",), ignore: Iterable[str] = (), *, every: bool = False
) -> dict[str, nn.Parameter]:
    """The raw weights of linear layers and convolutions, by name ("conv1.weight"), a shared weight once.

    layers, ignore: names or patterns (`body.*`) of layers. every: all other parameters of two or more dimensions too
    (of embeddings, recurrent layers, attention). `effective_weight` gives the constrained value.
    Raises NoEffect for a pattern that matches nothing, or if nothing is left.
    """
    stacks = constrained_stacks(model)
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        for key in (*module._parameters, *constrained_in(module)) if every else ("weight",) if plain else ():
            full = f"{name}.{key}".removeprefix(".")
            raw: Any = stacks[full].original if full in stacks else module._parameters.get(key)
            if raw is not None and raw.ndim > 1 and all(raw is not other for other in found.values()):
                found[full] = raw
    names = {key: key.rpartition(".")[0] for key in found}
    wanted, unwanted = _matching(names, layers, "layers"), _matching(names, ignore, "ignore")
    left = {key: raw for key, raw in found.items() if key in wanted and key not in unwanted}
    if not left:
        raise NoEffect(f"layers={list(layers)} without ignore={list(ignore)} leaves none of {sorted(names.values())}")
    return left


def _matching(names: Mapping[str, str], patterns: Iterable[str], field: str) -> set[str]:
    hits: set[str] = set()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        hit = {key for key, name in names.items() if fnmatch.fnmatchcase(name, pattern)}
        if not hit:
            raise NoEffect(f"{field}={pattern!r} matches none of the layers with weights: {sorted(names.values())}")
        hits |= hit
    return hits


@torch.no_grad()
def effective_weight(model: nn.Module, name: str) -> Tensor:
    """The value of a weight ("conv1.weight") under its constraints; the weight itself where it has none. Detached."""
    owner, _, key = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(owner), key)
    return value.detach()
