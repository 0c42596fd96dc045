"""Integer attributes of modules that count channels, and so must follow a pruning."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from gossamer.graph.attributes import get_attribute
from gossamer.graph.channel_index import Indices
from gossamer.graph.coupling import Mask
from gossamer.graph.propagation import Propagation
from gossamer.graph.shapes import counted_indices
from gossamer.graph.tracer import Op

LONGEST = 16  # combinations of attributes that are tried
DEPTH = 4  # containers in containers that are looked through
ENTRIES = 256  # of each container
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Patch:
    """An integer attribute that counts channel indices: it shrinks as they do.

    Args:
        module: name of the module.
        path: the attribute; `sizes.1` is the second element of `sizes`.
        old: its value, a multiple or a part of the number of indices.
        indices: the channel indices that it counts.
    """

    module: str
    path: str
    old: int
    indices: Indices

    def value(self, mask: Mask) -> int | None:
        """The new value, None if it is no whole number."""
        # new / old = kept indices / all indices; `old` may be a multiple of the indices (4 C) or a part (C / heads).
        new, rest = divmod(self.old * int(mask[self.indices].sum()), len(self.indices))
        return new if rest == 0 else None


Patches = dict[tuple[str, str], Patch]


def patched_attributes(patches: Patches, mask: Mask) -> dict[str, dict[str, int]]:
    """New values by module name and attribute, where they differ."""
    found: dict[str, dict[str, int]] = {}
    for (module, path), patch in patches.items():
        value = patch.value(mask)
        if value is not None and value != patch.old:
            found.setdefault(module, {})[path] = value
    return found


def norms_without_parameters(propagation: Propagation, modules: Mapping[str, nn.Module]) -> Patches:
    """Patches for batch norms that have no tensors: their width is that of what goes in, not a parameter's."""
    patches: Patches = {}
    for name, module in modules.items():
        if not isinstance(module, nn.modules.batchnorm._NormBase) or module.affine or module.track_running_stats:
            continue
        for op in propagation.trace.inside(name)[:1]:
            for axis, indices in propagation.values[op.args[0].index].axes.items():
                if indices.size == indices.shape[axis] == module.num_features:
                    patch = Patch(name, "num_features", module.num_features, indices.ravel())
                    patches[name, "num_features"] = patch
    return patches


def shrinking_sizes(propagation: Propagation, ops: Sequence[Op], mask: Mask) -> frozenset[int]:
    """Sizes of the dimensions of these operations' tensors that shrink."""
    return frozenset(len(line) for op in ops for line in counted_indices(propagation, op) if not mask[line].all())


def candidates(
    propagation: Propagation,
    op: Op,
    name: str,
    module: nn.Module,
    known: Patches,
    mask: Mask,
    *,
    exact: bool,
    likely: frozenset[int] = frozenset(),
) -> Iterator[Patches]:
    """Attributes of a module that may count a dimension of the operation.

    Args:
        propagation: the run.
        op: the operation that fails.
        name: name of the module.
        module: the module.
        known: patches that are already made.
        mask: the channel indices that stay.
        exact: attributes that equal the size of a dimension; else multiples and parts of it.
        likely: values that come first: a head's width shrinks in the operations around, and their number does not.
    """
    kinds = [[line for line in lines if not mask[line].all()] for lines in _lines(propagation, op, name)]
    lines = next((shrinking for shrinking in kinds if shrinking), [])
    found: dict[tuple[str, str], list[Patch]] = {}
    for path, old in sorted(channel_integers(module), key=lambda item: item[1] not in likely):
        if (name, path) in known:
            continue
        # The same integer may count several dimensions; each that gives another new value is tried.
        for line in lines:
            patch, size = Patch(name, path, old, line), len(line)
            new = patch.value(mask)
            fits = old == size if exact else old != size and (old % size == 0 or size % old == 0)
            options = found.get((name, path), [])
            # Two lines that give the same new value are one option.
            if fits and new is not None and new != old and all(p.value(mask) != new for p in options):
                found.setdefault((name, path), []).append(patch)
    yield from combinations(found)


def of_siblings(
    propagation: Propagation, op: Op, name: str, patches: Patches, modules: Mapping[str, nn.Module], known: Patches
) -> Patches:
    """The same patches for modules of the same class, at the same place of their forward.

    Args:
        propagation: the run.
        op: the operation that failed.
        name: name of the module that was patched.
        patches: the patches that helped.
        modules: all modules by name.
        known: patches that are already made.
    """
    result: Patches = {}
    inside = propagation.trace.inside(name)
    position = inside.index(op) if op in inside else None
    counted, own = _lines(propagation, None if position is None else op, name)
    for other_name, other in modules.items():
        if type(other) is not type(modules[name]) or other_name == name:
            continue
        ops = propagation.trace.inside(other_name)
        # The same class may take another branch in its forward: only an equal sequence of operations is trusted.
        if len(ops) != len(inside) or (position is not None and ops[position].name != op.name):
            continue
        theirs = _lines(propagation, None if position is None else ops[position], other_name)
        for (_, path), patch in patches.items():
            for mine, equal in zip((counted, own), theirs):
                i = _place(patch.indices, mine)
                if i is None or len(equal) != len(mine):
                    continue
                old = get_attribute(other, path)
                # It must stand in the same proportion to what it counts, here and there.
                if (other_name, path) not in known and old * len(mine[i]) == patch.old * len(equal[i]):
                    result[other_name, path] = Patch(other_name, path, old, equal[i])
                break
    return result


def _lines(propagation: Propagation, op: Op | None, module: str) -> tuple[list[Indices], list[Indices]]:
    """What an integer of a module may count: dimensions of the operation, or of the module's own tensors.

    The second counts where the operation has none: a forward that checks its sizes fails before it computes.
    """
    own = [value for name, value in propagation.graph.parameters.items() if name.rpartition(".")[0] == module]
    counted = [] if op is None else counted_indices(propagation, op)
    return counted, [indices.ravel() for value in own for _, indices in sorted(value.axes.items())]


def _place(line: Indices, lines: list[Indices]) -> int | None:
    return next((i for i, other in enumerate(lines) if other is line or np.array_equal(other, line)), None)


def combinations(options: Mapping[tuple[str, str], list[Patch]]) -> Iterator[Patches]:
    """Each attribute alone, then one option of every attribute at once, the first LONGEST of these."""
    for key, patches in options.items():
        for patch in patches:
            yield {key: patch}
    # Two attributes may only work together (`in_dim` and `out_dim`); all products would be exponentially many.
    if len(options) > 1:
        for chosen in itertools.islice(itertools.product(*options.values()), LONGEST):
            yield dict(zip(options, chosen))


def channel_integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Integer attributes that may be sizes, with their paths (see `get_attribute`).

    Also those of the class, and in tuples, lists, dicts, dataclasses and plain configuration objects.
    """
    classes = [c for c in type(module).__mro__ if issubclass(c, nn.Module) and not c.__module__.startswith("torch.")]
    found = {key: value for c in reversed(classes) for key, value in vars(c).items() if type(value) is int}
    for key, value in (found | vars(module)).items():
        if key not in OF_EVERY_MODULE and not key.startswith("__"):
            yield from _integers(key, value, DEPTH)


def _integers(path: str, value: Any, depth: int) -> Iterator[tuple[str, int]]:
    if isinstance(value, int):
        if not isinstance(value, bool) and value > 1:
            yield path, value
        return
    if depth == 0 or isinstance(value, str | Tensor | nn.Module | type) or callable(value):
        return
    inner: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        inner = [(f"{path}[{json.dumps(k)}]", v) for k, v in value.items() if isinstance(k, str | int)]
    elif isinstance(value, list | tuple):
        inner = [(f"{path}.{i}", v) for i, v in enumerate(value)]
    elif dataclasses.is_dataclass(value):
        inner = [(f"{path}.{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    elif hasattr(value, "__dict__"):
        inner = [(f"{path}.{k}", v) for k, v in vars(value).items() if not k.startswith("__")]
    for name, item in inner[:ENTRIES]:
        yield from _integers(name, item, depth - 1)
