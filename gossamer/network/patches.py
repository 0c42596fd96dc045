"""Integer attributes of modules that count channels, and so must follow a cut."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gossamer.network.labels import Slots
from gossamer.network.trace import inside
from gossamer.network.units import Mask
from gossamer.network.walk import Walk

DEPTH = 4  # containers in containers that are looked through
MOST = 256  # entries of each
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Patch:
    """An integer attribute that counts slots: it shrinks as they do. old: its value, a multiple or a part of their
    number."""

    module: str
    path: str
    old: int
    slots: Slots

    def value(self, mask: Mask) -> int | None:
        """The new value, None if it is no whole number."""
        new, rest = divmod(self.old * int(mask[self.slots].sum()), len(self.slots))
        return new if rest == 0 else None


def combinations(options: Mapping[tuple[str, str], list[Patch]]) -> Iterator[dict[tuple[str, str], Patch]]:
    """Each attribute alone, then several at once, not too many."""
    for key, patches in options.items():
        for patch in patches:
            yield {key: patch}
    if len(options) > 1:
        for chosen in itertools.islice(itertools.product(*options.values()), 16):
            yield dict(zip(options, chosen))


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Integer attributes that may be sizes, with their paths (see `edit.get_attribute`): also of the class, and in
    tuples, lists, dicts, dataclasses and plain configuration objects."""
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
    for name, item in inner[:MOST]:
        yield from _integers(name, item, depth - 1)


def norms_without_parameters(modules: Mapping[str, nn.Module], walk: Walk) -> dict[tuple[str, str], Patch]:
    """Their number of channels is no parameter's size; it is the one of what goes in."""
    found = {}
    for name, module in modules.items():
        if not isinstance(module, nn.modules.batchnorm._NormBase) or module.affine or module.track_running_stats:
            continue
        for op in inside(walk.trace, name)[:1]:
            for f, t in walk.values[op.args[0].index].layers.items():
                if t.size == t.shape[f] == module.num_features:
                    found[name, "num_features"] = Patch(name, "num_features", module.num_features, t.ravel())
    return found
