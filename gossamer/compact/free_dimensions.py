"""Which dimensions of a network's inputs are free in an exported file."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

from gossamer.errors import BadInput, unknown

Free = Mapping[int | str, Mapping[int, str]]
ANY, MAYBE = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO


@dataclass(frozen=True)
class Call:
    """How the exporter runs a network.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        shapes: free dimensions in the form that torch wants, None where none is free.
        names: of dimensions that the user named, by number of the tensor among all inputs and dimension.
        inputs: names of the tensors, where arguments have names.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    shapes: Any = None
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def fixed(self) -> "Call":
        """The same run with nothing free."""
        return Call(self.args, self.kwargs).again()

    def again(self) -> "Call":
        """The same run on tensors of its own: torch notes on a tensor which of its dimensions an export left free, and
        that note counts in every later export.
        """
        args, kwargs = tree_map_only(Tensor, lambda t: t.detach(), (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)


def free_dimensions(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: Free,
    *,
    dynamic_batch: bool,
    maybe: Mapping[int, Mapping[int, str]] | None = None,
) -> Call:
    """Find which dimensions are free.

    The arguments get at least two of everything along a free dimension, since torch takes 1 as fixed.

    Args:
        model: the network.
        args: positional arguments; one may be a nested structure, whose tensors are alike.
        kwargs: keyword arguments.
        free: names of free dimensions, by number or name of the argument and by dimension.
        dynamic_batch: the first dimension of every other tensor that shares it with the first one is free, too.
        maybe: dimensions, by number of the tensor, that are free as well where the network computes nothing fixed from
            them.

    Raises:
        BadInput: `free` names an argument or a dimension that there is not, or the arguments hold no sample.
    """
    given: dict[int | str, Any] = dict(enumerate(args))
    given |= {str(name): value for name, value in kwargs.items()}
    _check(free, given)
    first = next((t for t in _tensors(list(given.values())) if t.dim()), None)
    if first is not None and len(first) == 0:
        raise BadInput(
            f"the example inputs hold no sample (shape {tuple(first.shape)}): what is written is compared with the "
            "network on them; give one sample or more"
        )
    batch = len(first) if first is not None and dynamic_batch else None
    names: dict[tuple[int, int], str] = {}
    inputs: list[str] = []
    number, new, shapes = 0, dict[int | str, Any](), dict[int | str, Any]()
    for key, value in given.items():
        leaves, structure = tree_flatten(value)
        specs: list[Any] = []
        for i, leaf in enumerate(leaves):
            dims = {}
            if isinstance(leaf, Tensor):
                dims = dict(free[key]) if key in free else ({0: ""} if leaf.dim() and len(leaf) == batch else {})
                others = {d: name for d, name in (maybe or {}).get(number, {}).items() if d < leaf.dim()}
                called = {d: dims.get(d) or others.get(d, "") for d in (*others, *dims)}
                names |= {(number, d): name for d, name in called.items() if name}
                inputs.append(str(key) if leaf is value else f"{key}.{i}")
                number += 1
                for d in dims:
                    leaves[i] = torch.cat([leaves[i]] * 2, d) if leaf.shape[d] == 1 else leaves[i]
                dims = dict.fromkeys((d for d in others if leaf.shape[d] > 1), MAYBE) | dict.fromkeys(dims, ANY)
            specs.append(dims or None)
        new[key], shapes[key] = tree_unflatten(leaves, structure), _structured(specs, structure)
    args, kwargs = tuple(new[i] for i in range(len(args))), {str(k): new[k] for k in kwargs}
    named = tuple(inputs) if kwargs else ()
    if not any(isinstance(leaf, dict) for s in shapes.values() for leaf in _specs(s)):
        return Call(args, kwargs, inputs=named)
    by_parameter = _by_parameter(model, [shapes[i] for i in range(len(args))], {k: shapes[k] for k in kwargs})
    return Call(args, kwargs, by_parameter, names, named)


def _check(free: Free, given: Mapping[int | str, Any]) -> None:
    for key, dims in free.items():
        if key not in given:
            raise unknown("argument", str(key), map(str, given))
        for d in dims:
            for t in _tensors(given[key]):
                if not 0 <= d < t.dim():
                    raise BadInput(f"free: argument {key!r} has a tensor of {t.dim()} dimensions and no dimension {d}")


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _specs(shapes: Any) -> list[Any]:
    return tree_flatten(shapes, is_leaf=lambda s: isinstance(s, dict) and all(v in (ANY, MAYBE) for v in s.values()))[0]


def _structured(specs: list[Any], structure: Any) -> Any:
    """The free dimensions in the places of the tensors."""
    places = iter(specs)
    return tree_map(lambda _: next(places), tree_unflatten([0] * len(specs), structure))


def _by_parameter(model: nn.Module, positional: list[Any], named: dict[str, Any]) -> Any:
    """As the parameters of `forward` are: those of `*inputs` are one tuple, which must not be empty."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        at = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        rest = tuple(positional[at:])
        positional = [*positional[:at], rest] if rest else positional
    if not named:
        return tuple(positional)
    own = {p.name for p in parameters}
    shapes = {p.name: spec for p, spec in zip(parameters, positional)} | {k: v for k, v in named.items() if k in own}
    extra = {k: v for k, v in named.items() if k not in own}
    collector = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    return shapes | ({collector: extra} if extra and collector else {})
