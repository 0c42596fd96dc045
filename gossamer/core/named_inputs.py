"""Batches that are mappings, as data sets of Hugging Face give them: inputs by name, and the labels among them."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gossamer.core.batches import Loader, sample_count
from gossamer.errors import BadInput

TARGETS = ("labels", "label", "targets", "target", "y")


def by_position(loader: Loader, names: Sequence[str]) -> Loader:
    """A loader of mappings as one of (inputs, target).

    Args:
        loader: whose batches are mappings from names to tensors.
        names: of the inputs, in the order in which the network takes them.

    Returns:
        The same batches as `((first, second, ...), target)`. The target is what stands under one of `TARGETS`; None
        where there is nothing.
    """
    if isinstance(loader, list | tuple):
        return [_batch(batch, names) for batch in loader]
    return _ByPosition(loader, names)


def input_names(batch: Any, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the inputs of a batch.

    Args:
        batch: of any kind.
        wanted: the user's choice and order; None: all tensors of the batch but the target, in its order.

    Returns:
        The names; none where batches are no mappings.

    Raises:
        BadInput: names were chosen that are not there, or there are no inputs.
    """
    if not isinstance(batch, Mapping):
        if wanted is not None:
            raise BadInput(f"inputs={tuple(wanted)} names the inputs of batches that are mappings, these are tuples")
        return ()
    found = tuple(name for name, value in batch.items() if isinstance(value, Tensor) and name not in TARGETS)
    names = found if wanted is None else tuple(wanted)
    if missing := [name for name in names if name not in batch]:
        raise BadInput(f"inputs={names}: there is no {missing[0]!r} in the batches, they have {', '.join(batch)}")
    if not names:
        raise BadInput(f"the batches have no tensors but the target among {', '.join(map(str, batch))}")
    return names


def refuse_other_order(names: Sequence[str], model: nn.Module) -> None:
    """Refuse inputs by position that the network takes by these names, but in another order."""
    taken = [
        name
        for name, known in inspect.signature(model.forward).parameters.items()
        if known.kind in (known.POSITIONAL_ONLY, known.POSITIONAL_OR_KEYWORD)
    ]
    wrong = [name for name, own in zip(names, taken) if name != own and name in taken]
    if wrong or any(name in taken[len(names) :] for name in names):
        right = tuple(name for name in taken if name in names)
        fix = f"Task.from_loaders(..., inputs={right})"
        if right != tuple(taken[: len(right)]):
            fix = f"give a network whose forward takes ({', '.join(names)}) and calls this one by name"
        raise BadInput(
            f"the batches name inputs in the order {', '.join(names)}; the network takes {', '.join(taken[:6])}: {fix}"
        )


def _batch(batch: Any, names: Sequence[str]) -> Any:
    if not isinstance(batch, Mapping):
        raise BadInput(f"the first batch is a mapping, another one is a {type(batch).__name__}")
    if missing := [name for name in names if name not in batch]:
        raise BadInput(f"a batch has no {missing[0]!r}, the first one had")
    target = next((batch[name] for name in TARGETS if name in batch), None)
    return tuple(batch[name] for name in names), target


class _ByPosition:
    """What a loader offers besides its batches (samplers, epochs, generators) is still there."""

    def __init__(self, loader: Loader, names: Sequence[str]) -> None:
        self.loader, self.names = loader, names

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (_batch(batch, self.names) for batch in self.loader)

    @property
    def samples(self) -> int | None:
        """How many there are; None where the loader does not tell."""
        return sample_count(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name in ("loader", "names"):
            raise AttributeError(name)  # while it is unpickled in a worker
        known = getattr(self.loader, name)
        if name == "start":
            return lambda first: (_batch(batch, self.names) for batch in known(first))
        if name == "unaugmented":
            return lambda: None if (other := known()) is None else _ByPosition(other, self.names)
        return known
