"""What a loader gives, looked through before a job begins: a batch of every shape, and the range of the labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic as clock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from gossamer.core.batches import Loader, inputs_and_target
from gossamer.data.batches import Batches
from gossamer.errors import BadInput

SECONDS = 5.0  # after which no further batches are looked at; the first and the last one always are
MOST_SHAPES = 8  # that are kept of one loader

Shapes = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class NumberedBatch:
    """A batch and its number, from 0."""

    number: int
    batch: Any


@dataclass
class LoaderProbe:
    """The first batch of every shape; of many shapes the first, the last, the smallest, the largest and some others.
    low, high: the smallest and the largest label of a class, with a batch that holds it, where that was looked at."""

    by_shape: dict[Shapes, NumberedBatch] = field(default_factory=dict)
    low: tuple[int, NumberedBatch | None] | None = None
    high: tuple[int, NumberedBatch | None] | None = None

    def add(self, number: int, batch: Any) -> None:
        """Take in one batch."""
        found, (inputs, target) = NumberedBatch(number, batch), batch_parts(batch)
        self.by_shape.setdefault((*shapes(inputs), *dtypes(inputs)), found)
        if len(self.by_shape) > MOST_SHAPES:
            self._forget()
        self.note(target, found)

    def note(self, target: Any, found: NumberedBatch | None) -> None:
        """Take in labels, where they are whole numbers."""
        if not isinstance(target, Tensor) or not target.numel() or target.is_floating_point():
            return
        if target.dtype == torch.bool or target.is_complex():
            return
        low, high = (int(x) for x in target.aminmax())
        if self.low is None or low < self.low[0]:
            self.low = low, found
        if self.high is None or high > self.high[0]:
            self.high = high, found

    def batches(self) -> list[NumberedBatch]:
        """Those of every shape, and those with the smallest and the largest label."""
        ends = [end[1] for end in (self.low, self.high) if end is not None and end[1] is not None]
        return sorted(
            {one.number: one for one in (*self.by_shape.values(), *ends)}.values(), key=lambda one: one.number
        )

    def _forget(self) -> None:
        """Leave out the last that is neither the first, the last, the smallest nor the largest."""
        size = {
            shape: sum(torch.Size(one).numel() for one in shapes(found.batch)) for shape, found in self.by_shape.items()
        }
        kept = {next(iter(size)), max(size, key=lambda s: self.by_shape[s].number), min(size, key=lambda s: size[s])}
        kept.add(max(size, key=lambda s: size[s]))
        del self.by_shape[[shape for shape in self.by_shape if shape not in kept][-1]]


def batch_parts(batch: Any) -> tuple[Any, Any]:
    """Inputs and target; all of a batch that is built in the user's own way are inputs."""
    try:
        return inputs_and_target(batch)
    except BadInput:
        return batch, None


def shapes(inputs: Any) -> Shapes:
    """Those of all tensors."""
    return tuple(tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor))


def dtypes(inputs: Any) -> tuple[tuple[Any, ...], ...]:
    """Those of all tensors."""
    return tuple((x.dtype,) for x in tree_leaves(inputs) if isinstance(x, Tensor))


def probe_loader(loader: Loader) -> LoaderProbe:
    """Look at the first and the last batch and, as long as that takes no more than seconds, at all others. The loader's
    own random numbers stay as they are."""
    found = LoaderProbe()
    with _generators_kept(loader):
        end = clock() + SECONDS
        for count, (number, batch) in enumerate(_visited(loader)):
            found.add(number, batch)
            if count and clock() > end:
                break
    if isinstance(loader, Batches) and loader.labels is not None:
        found.note(loader.labels[loader.index], None)
    return found


def _visited(loader: Loader) -> Iterator[tuple[int, Any]]:
    """Batches with their numbers: the first and the last one first, where the loader can do that."""
    if isinstance(loader, list | tuple):
        yield from ((number, loader[number]) for number in _order(len(loader)))
    elif isinstance(loader, Batches):  # all but the last are alike
        yield from ((number, next(loader.start(number))) for number in sorted({0, len(loader) - 1}))
    elif type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        whole = loader.batch_sampler is None
        picks: Any = list(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
        order = _order(len(picks))
        chosen = [picks[number] for number in order]
        again: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_size=None if whole else 1,
            sampler=chosen if whole else None,
            batch_sampler=None if whole else chosen,
            collate_fn=loader.collate_fn,
            num_workers=min(loader.num_workers, 1),
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        yield from zip(order, again)
    else:
        yield from enumerate(loader)


def _order(count: int) -> list[int]:
    return [0, *([count - 1] if count > 1 else []), *range(1, count - 1)] if count else []


@contextmanager
def _generators_kept(loader: Any) -> Iterator[None]:
    """Leave a loader's own generators as they were found."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [g for holder in holders if isinstance(g := getattr(holder, "generator", None), torch.Generator)]
    states = [generator.get_state() for generator in found]
    try:
        yield
    finally:
        for generator, state in zip(found, states):
            generator.set_state(state)
