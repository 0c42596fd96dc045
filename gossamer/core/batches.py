"""Batches of the user's loaders: how many there are, what is in them, and the loss of classifiers on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from gossamer.core.outputs import first_tensor
from gossamer.errors import BadInput


class Loader(Protocol):
    """Batches that can be gone through again and again: a `DataLoader`, gossamer's `Batches`, or a list."""

    def __iter__(self) -> Any: ...

    def __len__(self) -> int: ...


Model = Callable[..., Any]
Loss = Callable[[Model, Any], Tensor]

SUM_ERROR, SUM_ROUNDING = 0.01, 1e-4  # of probabilities in half precision, in float32
MANY = 8  # predictions
NO_LABEL, NO_PIXEL = -100, 255  # what torch's losses and Pascal VOC leave out


def batch_count(loader: Loader, what: str) -> int:
    """The number of batches, at least one, of what can be gone through again."""
    if one_batch(loader):
        raise BadInput(f"{what} is one batch, not a loader; give a list of batches, [(x, y)], or a DataLoader")
    if hasattr(loader, "__next__"):
        raise BadInput(f"{what} can be gone through only once; give the loader itself, or a list of batches")
    try:
        batches = len(loader)
    except TypeError as error:
        raise BadInput(f"{what} has no length; give it a `__len__`, the number of batches of an epoch") from error
    if not batches:
        raise BadInput(f"{what} has no batches; give it at least one")
    return batches


def one_batch(given: Any) -> bool:
    """Whether what stands for a loader is one batch `(x, y)`: tensors of another shape or kind side by side, while the
    batches of a loader of inputs alone are alike."""
    if not isinstance(given, tuple | list) or not all(isinstance(x, Tensor | np.ndarray) for x in given):
        return False
    return len({(tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")) for x in given}) > 1


def inputs_and_target(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The positional inputs and the target of a batch: `(x, y)`, `((x1, x2), y)`, `(x1, x2, y)`, or inputs alone
    (target None), which are `x` or, as a `TensorDataset` gives them, `(x,)`."""
    if isinstance(batch, Tensor):
        return (batch,), None
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return inputs_and_target(batch[0])
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), target
    if isinstance(batch, tuple | list) and batch:
        return tuple(batch[:-1]), batch[-1]
    named = "; batches that are mappings: Task.from_loaders" if isinstance(batch, Mapping) else ""
    raise BadInput(f"a batch must be (inputs, target) or one tensor of inputs, got {type(batch).__name__}{named}")


def as_inputs(given: Any, who: str) -> tuple[Tensor, ...]:
    """The positional inputs of a network: a tensor is one, a tuple or a list are several. who: takes them.

    Raises BadInput for anything else.
    """
    inputs = (given,) if isinstance(given, Tensor) else given
    if isinstance(inputs, tuple | list) and inputs and all(isinstance(x, Tensor) for x in inputs):
        return tuple(inputs)
    several = isinstance(inputs, tuple | list)
    other = next((x for x in inputs if not isinstance(x, Tensor)), ()) if several else given
    among = f"a {type(inputs).__name__} with " if several and len(inputs) else ""
    fix = "; torch.from_numpy makes a tensor of it" if isinstance(other, np.ndarray) else ""
    shown = "none at all" if several and not inputs else kind_and_shape(other)
    raise BadInput(f"{who}: the inputs must be a tensor or a tuple of tensors, not {among}{shown}{fix}")


def inputs_and_labels(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The inputs and the target of a batch that must have one."""
    inputs, target = inputs_and_target(batch)
    if target is None:
        raise BadInput("the batches have inputs alone; training and measuring need (inputs, target)")
    return inputs, target


def sample_count(loader: Iterable[Any]) -> int | None:
    """How many samples a loader gives; None where it does not tell without being gone through."""
    if isinstance(loader, DataLoader):
        whole = type(loader.batch_sampler) is BatchSampler and not loader.drop_last
        return len(loader.sampler) if whole and isinstance(loader.sampler, Sized) else None
    if isinstance(loader, list | tuple):
        firsts = [inputs_and_target(batch)[0][0] for batch in loader]
        return sum(map(len, firsts)) if all(isinstance(x, Tensor) and x.ndim for x in firsts) else None
    known = getattr(loader, "samples", None)
    return known if isinstance(known, int) else None


def unaugmented(loader: Loader) -> Loader | None:
    """The loader with its samples as they are, in every pass the same; None where it does not offer that."""
    offered = getattr(loader, "unaugmented", None)
    found: Loader | None = offered() if callable(offered) else None
    return found


class FirstBatches:
    """The first batches of a loader, the same ones every time, also of a loader that shuffles.

    torch's random numbers are the loader's own while it is asked for a batch: nobody else's are moved by it.

    Args:
        loader: whose batches they are.
        count: how many, at most.
    """

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return min(self.count, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        state = torch.Generator().manual_seed(0).get_state()
        batches: Iterator[Any] | None = None
        for _ in range(len(self)):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batches = iter(self.loader) if batches is None else batches
                batch = next(batches)
                state = torch.get_rng_state()
            yield batch


def as_logits(outputs: Tensor) -> Tensor:
    """Logits (N, classes, ...) of what a classifier gives: of probabilities, which networks with a softmax at their end
    give, the logarithm. These sum to 1 in every sample, which numbers of another kind do not in several."""
    if outputs.dim() < 2 or outputs.shape[1] < 2 or len(outputs) < 2 or not outputs.is_floating_point():
        return outputs
    given = outputs.detach().float()
    # Under autocast, probabilities of half precision may come in float32: where samples are many, it is no chance.
    many = outputs.element_size() < 4 or given.numel() >= MANY * given.shape[1]
    rounding = SUM_ERROR if many else SUM_ROUNDING
    if given.min() < 0 or (given.sum(1) - 1).abs().max() > rounding:
        return outputs
    return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()


def cross_entropy(model: Model, batch: Any) -> Tensor:
    """Mean cross entropy of the first output, logits or probabilities, in nats."""
    inputs, target = inputs_and_labels(batch)
    logits = as_logits(first_tensor(model(*inputs)))
    target = class_labels(logits, target)
    try:
        return F.cross_entropy(logits, target)
    except IndexError:  # torch says only which number it is
        refuse_labels(logits, target)
        raise


def class_labels(logits: Tensor, target: Any) -> Tensor:
    """Class numbers as losses and metrics take them, int64, whatever integers the data have; a column (N, 1) is flat.
    Probabilities of classes, of the shape of the logits, stay what they are.

    Raises BadInput for what is neither.
    """
    if not isinstance(target, Tensor):
        raise BadInput(f"labels are class numbers, a tensor of integers of shape (N,), not a {type(target).__name__}")
    if target.shape == logits.shape and logits.ndim > 1:
        return _probabilities(target)
    if target.is_floating_point():
        raise BadInput(
            f"labels are {kind_and_shape(target)} of {str(target.dtype).removeprefix('torch.')}: class numbers are "
            "integers, probabilities have the shape of the outputs; give a loss and a metric of your own for others"
        )
    flat = target[:, 0] if target.ndim == 2 == logits.ndim and target.shape[1] == 1 else target
    return flat.long()


def _probabilities(target_NC: Tensor) -> Tensor:
    """Labels of the shape of the outputs: probabilities of the classes, or class numbers where one is 1, others 0."""
    values = target_NC.float()
    if (values < 0).any() or ((values.sum(1) - 1).abs() > SUM_ERROR).any():
        raise BadInput(
            "labels of the shape of the outputs must be probabilities, which sum to 1; for several labels a sample "
            "give metric=MultiLabelF1(), for numbers metric=MAE() of gossamer.measure"
        )
    return target_NC if target_NC.is_floating_point() else target_NC.argmax(1)


def refuse_labels(logits_NC: Tensor, target: Tensor) -> None:
    """Raise BadInput for labels that the network has no output for."""
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= logits_NC.shape[1]:
        labels = f"labels from {low} to {high}"
        outputs = f"{logits_NC.shape[1]} outputs"
        fix = "; for labels that do not count give metric=MeanIoU() (255) or Perplexity() (-100)"
        hint = fix if low == NO_LABEL or high == NO_PIXEL else ""
        raise BadInput(f"{labels} where the network has {outputs}; they count from 0{hint}")


def kind_and_shape(value: object) -> str:
    """What a wrong value is, for a message."""
    kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
    shape = getattr(value, "shape", None)
    return f"a {kind} of shape {tuple(shape)}" if shape is not None else f"a {kind}"
