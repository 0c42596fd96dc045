"""The weights of a network by name, whether constrained or not."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrained_in, constrained_stacks
from gossamer.errors import NoEffect

TABLES = (nn.Embedding, nn.EmbeddingBag)


def weights_of(
    model: nn.Module,
    layers: Iterable[str] = ("*",),
    ignore: Iterable[str] = (),
    *,
    tables: bool = False,
    every: bool = False,
) -> dict[str, nn.Parameter]:
    """The raw weights of linear layers and convolutions, a shared weight once.

    `effective_weight` gives the values under constraints.

    Args:
        model: a network, constrained or not.
        layers: names or patterns (`body.*`) of layers.
        ignore: names or patterns of layers that are left out.
        tables: those of embeddings too, after the others: a table that a layer shares stands there by the layer's name.
        every: all other parameters of two or more dimensions too (of embeddings, recurrent layers, attention).

    Returns:
        The parameters by name ("conv1.weight").

    Raises:
        NoEffect: for a pattern that matches nothing, or if nothing is left.

    Example:
        >>> list(weights_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ignore=["2"]))
        ['0.weight']
    """
    stacks = constrained_stacks(model)
    found: dict[str, nn.Parameter] = {}
    modules = list(model.named_modules())
    plain = [entry for entry in modules if isinstance(entry[1], nn.Linear | nn.modules.conv._ConvNd)]
    if tables and not every:
        plain += [entry for entry in modules if isinstance(entry[1], TABLES)]
    for name, module in modules if every else plain:
        for key in (*module._parameters, *constrained_in(module)) if every else ("weight",):
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
    """The value of a weight under its constraints.

    Args:
        model: a network, constrained or not.
        name: of the weight ("conv1.weight").

    Returns:
        The effective value; the weight itself where it has no constraint. Detached.

    Example:
        >>> import torch
        >>> from gossamer.constraints import Mask, constrain
        >>> model = constrain(nn.Linear(2, 1), {"weight": Mask(torch.tensor([[True, False]]))})
        >>> bool(effective_weight(model, "weight")[0, 1] == 0)
        True
    """
    owner, _, key = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(owner), key)
    return value.detach()
