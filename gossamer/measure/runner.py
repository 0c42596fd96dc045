"""What every runtime looks like from outside."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class Runner(ABC):
    """A deployed network: callable on torch tensors, so that it fits `task.metric`.

    runtime, version: what runs it. precision: "float32", "int8", "bfloat16". threads: of one call.
    """

    runtime: str
    version: str
    precision: str
    threads: int
    device: str = "cpu"
    # Where the tensors stand in what the network gives, as `places` says; None: one tensor, or a tuple.
    structure: Any = None

    @abstractmethod
    def prepare(self, inputs: tuple[Tensor, ...]) -> Any:
        """The inputs in the runtime's own form, so that `raw` converts nothing."""

    @abstractmethod
    def raw(self, prepared: Any) -> Any:
        """One run on prepared inputs; outputs in the runtime's own form. This is what is timed."""

    @abstractmethod
    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        """Outputs of `raw` as torch tensors."""

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives: a tensor, a tuple or a dict, as it is known; else a tensor, or a tuple of several."""
        outputs = self.outputs(self.raw(self.prepare(inputs)))
        if self.structure is not None:
            return put(outputs, self.structure)
        return outputs[0] if len(outputs) == 1 else outputs


def places(outputs: Any) -> Any:
    """Where the tensors stand in outputs, in the order of a graph's: `{"boxes": 0, "labels": 1}`; null is no tensor.
    None for what JSON cannot say, which is all but nested dicts by text, tuples and lists."""
    count = iter(range(len(tree_leaves(outputs))))
    found = tree_map(lambda leaf: next(count) if isinstance(leaf, Tensor) else None, outputs)
    return found if _plain(found) else None


def put(outputs: Sequence[Tensor], structure: Any) -> Any:
    """Tensors where `places` found them; lists become tuples."""
    if isinstance(structure, dict):
        return {name: put(outputs, inner) for name, inner in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(put(outputs, inner) for inner in structure)
    return None if structure is None else outputs[structure]


def _plain(found: Any) -> bool:
    if isinstance(found, dict):
        return all(isinstance(name, str) and _plain(inner) for name, inner in found.items())
    if isinstance(found, list | tuple):
        return all(_plain(inner) for inner in found)
    return found is None or isinstance(found, int)
