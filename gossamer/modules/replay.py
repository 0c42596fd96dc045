"""Weights into a network: of its own structure, or of one that was changed after it, which is replayed first."""

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gossamer.core.copies import copy_network, load_state, state_of, tensors_of
from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput, CorruptFile
from gossamer.graph.attributes import get_attribute, set_attribute
from gossamer.modules.structure import (
    Node,
    Plain,
    Structure,
    Unreplayable,
    difference,
    join_path,
    known_class,
)

MOST_MISFITS = 5
MOST_PLACES = 1 << 16  # that a kernel, padding or size of a stored module may span: a run allocates by it
COUNTS = {  # of channels: tensors have them as sizes
    *("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels"),
    *("num_groups", "normalized_shape", "num_embeddings", "embedding_dim", "num_parameters", "embed_dim"),
    *("kdim", "vdim", "in1_features", "in2_features", "taps"),
}


def structure_of(original: nn.Module, changed: nn.Module, example_inputs: tuple[Any, ...] | None) -> Structure | None:
    """What to store next to the weights of `changed`, so that they come back into a network like `original`; None where
    both have one structure.

    It is tried: replayed on a copy of the original, with the weights of `changed`, and run on the example inputs.
    Raises Unreplayable where that is not possible.
    """
    structure = difference(original, changed)
    if structure is None:
        return None
    state = state_of(changed)
    try:
        again = rehearsal(original)
        replay(structure, again, state)
        load_state(again, state, assign=True)
    except (BadInput, CorruptFile, RuntimeError) as error:
        raise Unreplayable(str(error)) from error
    if example_inputs is not None and not _compute_alike(changed, again, example_inputs):
        raise Unreplayable("the network that was rebuilt computes something else")
    return structure


def restore(model: nn.Module, tensors: Mapping[str, Tensor], structure: Structure | None, source: str) -> None:
    """Put stored tensors into the model, in place; first, where they are of a network that was made of one like it,
    give it that structure. A model that has the structure already takes the tensors as they are.

    Nothing is changed where they do not fit. source: names the file. Raises BadInput, CorruptFile.
    """
    if structure is not None and structure.fits(model):
        rehearsed = rehearsal(model)
        replay(structure, rehearsed, tensors)
        _refuse_misfits(rehearsed, tensors, source, structure)
        replay(structure, model, tensors)
    else:
        _refuse_misfits(model, tensors, source, structure)
    load_state(model, tensors)


def rehearsal(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all tensors with the model; a replay puts new ones, it writes into none."""
    return copy_network(model, {id(tensor): tensor for tensor in tensors_of(model)})


def replay(structure: Structure, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Give the model, in place, the structure of the changed network; its new tensors are not filled.

    stored: the tensors of the changed network; only what has their shapes is allocated. Raises CorruptFile where the
    structure contradicts the model or the tensors.
    """
    device = next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))
    _Replay(dict(model.named_modules()), stored, device).apply(structure.root, model, "")


class _Replay:
    """One replay. modules: of the model as it was, by name. replaced: new tensors by what they replace, so that tied
    weights stay tied."""

    def __init__(self, modules: Mapping[str, nn.Module], stored: Mapping[str, Tensor], device: torch.device) -> None:
        self.modules, self.stored, self.device = modules, stored, device
        self.replaced: dict[int, tuple[Tensor, Tensor]] = {}

    def apply(self, node: Node, module: nn.Module, path: str) -> None:
        """The changes of a module and of what is inside."""
        for key, value in node.attributes.items():
            _check_span(type(module), key, value)
            if node.made is not None:
                setattr(module, key, _tuples(value))
            else:
                _set_known(module, key, value, path)
        for name, shape in node.parameters.items():
            new = self._tensor(module._parameters.get(name), shape, join_path(path, name))
            module._parameters[name] = new if new is None or isinstance(new, nn.Parameter) else _parameter(new)
        for name, shape in node.buffers.items():
            module._buffers[name] = self._tensor(module._buffers.get(name), shape, join_path(path, name))
        for name, child in node.children.items():
            if child is None:
                module._modules[name] = None
            elif child is False:
                module._modules.pop(name, None)
            else:
                inner = self._child(child, module, name, join_path(path, name))
                module._modules[name] = inner
                self.apply(child, inner, join_path(path, name))
        if node.order is not None:
            if sorted(node.order) != sorted(module._modules):
                raise CorruptFile(f"its structure orders modules of {path or 'the network'} that are not there")
            for name in node.order:
                module._modules[name] = module._modules.pop(name)

    def _child(self, node: Node, parent: nn.Module, name: str, path: str) -> nn.Module:
        """The module that a node describes, before its changes: a new one, one from elsewhere, or the one there."""
        if node.made is not None:
            kind = known_class(node.made)
            if kind is None:
                raise CorruptFile(f"its structure puts a {node.made} at {path}, which is not allowed")
            module = kind.__new__(kind)
            nn.Module.__init__(module)  # no other constructor runs
            module.training = parent.training
            return module
        found = self.modules.get(node.moved) if node.moved is not None else parent._modules.get(name)
        if found is None:
            raise CorruptFile(f"its structure changes {node.moved or path}, which is not there")
        return found if node.moved is None else copy.deepcopy(found)  # it may stay where it was, too

    def _tensor(self, old: Tensor | None, shape: list[Any] | None, name: str) -> Tensor | None:
        """An empty tensor in the place of another one. What the file holds bounds what is allocated."""
        if shape is None:
            return None
        if old is not None and id(old) in self.replaced:
            return self.replaced[id(old)][1]
        named = isinstance(shape[0], str) if shape else False
        sizes, dtype = (shape[1:], getattr(torch, shape[0])) if named else (shape, torch.float32)
        if name not in self.stored or list(self.stored[name].shape) != sizes:
            raise CorruptFile(f"its structure gives {name} the shape {sizes}, which the stored tensor has not")
        new = torch.empty(sizes, dtype=dtype if old is None else old.dtype, device=self.device)
        if old is None:
            return new
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        self.replaced[id(old)] = (old, new)
        return new


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def _set_known(module: nn.Module, path: str, value: Plain, where: str) -> None:
    """Set an attribute of a module of the user's that exists and is of the same kind."""
    try:
        if path.split(".")[0] not in vars(module):
            raise AttributeError(path)
        old = get_attribute(module, path)
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise CorruptFile(f"its structure sets {join_path(where, path)}, which is not there") from error
    if _kind(old) is not _kind(value) and old is not None and value is not None:
        raise CorruptFile(f"its structure sets {join_path(where, path)} to {value!r}, where it is {old!r}")
    set_attribute(module, path, value)


def _kind(value: Any) -> type:
    if isinstance(value, list | tuple):
        return list
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _check_span(kind: type, key: str, value: Plain) -> None:
    """No stored number may make a run allocate without bounds: a kernel, a padding or a size spans so many places."""
    if key.split(".")[0] in COUNTS:
        return
    numbers = [abs(x) for x in _leaves(value) if isinstance(x, int | float) and not isinstance(x, bool)]
    dims = next((int(digit) for digit in "23" if kind.__name__.endswith(f"{digit}d")), 1)
    if math.prod(x + 1 for x in (numbers * dims if len(numbers) == 1 else numbers)) > MOST_PLACES:
        raise CorruptFile(f"its structure sets {key} of a {kind.__name__} to {value}, which is more than is read")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _tuples(value: Plain) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _refuse_misfits(model: nn.Module, tensors: Mapping[str, Tensor], source: str, structure: Structure | None) -> None:
    own = state_of(model)
    missing = [f"{name} is missing" for name in own if name not in tensors]
    strange = [f"{name} is not in the model" for name in tensors if name not in own]
    misfits = [one for pair in zip_longest(missing, strange) for one in pair if one]
    misfits += [
        f"{name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if not misfits:
        return
    more = f"; and {len(misfits) - MOST_MISFITS} more" if len(misfits) > MOST_MISFITS else ""
    advice = "build the model with the numbers of channels and classes that it was trained with"
    if structure is not None:
        advice = f"they are of a {structure.of} that was changed: give the {structure.of} as it was before"
    listed = "; ".join(misfits[:MOST_MISFITS])
    raise BadInput(f"the weights of {source} do not fit {type(model).__name__}: {listed}{more}; {advice}")


@torch.no_grad()
def _compute_alike(one: nn.Module, other: nn.Module, example_inputs: tuple[Any, ...]) -> bool:
    """Whether two networks give the same for the same inputs."""
    outputs = []
    for model in (one, other):
        with evaluating(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(
                [x for x in tree_leaves(model(*place(model, (example_inputs, None)))) if isinstance(x, Tensor)]
            )
    return len(outputs[0]) == len(outputs[1]) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(*outputs)
    )
