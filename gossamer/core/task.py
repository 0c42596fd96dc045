"""The user's data and measure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import BatchSampler, DataLoader

from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, GossamerError, own_error


class Loader(Protocol):
    """Batches that can be gone through again and again: a `DataLoader`, gossamer's `Batches`, or a list."""

    def __iter__(self) -> Any: ...

    def __len__(self) -> int: ...


Model = Callable[..., Any]
BYTE_RANGE = (0.0, 255.0)
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
ROUNDING = 1e-6  # scores may be beyond 0 and 1 by so much


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to an image before the network sees it: by gossamer, and by whoever deploys the network.

    The shorter side is scaled to `size / crop` pixels and the middle of `size` x `size` is cut out; crop None: the
    whole image is scaled to `size` x `size`. channels: 3 for RGB, 1 for grey. Values of `range` become 0 to 1, then
    (x - mean) / std; one number a channel. background: what shows through where an image is transparent.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = 1.0
    interpolation: str = "bilinear"
    range: tuple[float, float] = BYTE_RANGE
    background: str = "white"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed with."""
        try:
            one_each = len(self.mean) == len(self.std) == self.channels and self.channels in (1, 3)
            sound = self.size >= 1 and (self.crop is None or self.crop > 0) and self.range[0] < self.range[1]
            numbers = (self.size, *self.mean, *self.std, *self.range, self.crop or 1.0)
            sound = sound and min(self.std) > 0 and all(math.isfinite(number) for number in numbers)
        except (TypeError, ValueError, IndexError):
            sound = one_each = False
        if not sound or not one_each or self.interpolation not in INTERPOLATIONS:
            raise BadInput(
                f"{self} is no preprocessing: needs a size, 1 or 3 channels with mean and std > 0 each, crop > 0, a "
                f"range from low to high, and an interpolation of {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Preprocessing":
        """From JSON values, such as `description` gives; BadInput where they are none."""
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {key: _frozen(raw[key]) for key in names if key in raw}
        try:
            return cls(**values)
        except TypeError as error:
            raise BadInput(f"it does not say how images become inputs: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def count(loader: Loader, what: str) -> int:
    """The number of batches, at least one."""
    try:
        batches = len(loader)
    except TypeError as error:
        raise BadInput(f"{what} has no length; give it a `__len__`, the number of batches of an epoch") from error
    if not batches:
        raise BadInput(f"{what} has no batches; give it at least one")
    return batches


def split(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The positional inputs and the target of a batch: `(x, y)`, `((x1, x2), y)`, or inputs alone (target None), which
    are `x` or, as a `TensorDataset` gives them, `(x,)`."""
    if isinstance(batch, Tensor):
        return (batch,), None
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return split(batch[0])
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), target
    many = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise BadInput(f"a batch must be (inputs, target) or one tensor of inputs, got {type(batch).__name__}{many}")


def labelled(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """The inputs and the target of a batch that must have one."""
    inputs, target = split(batch)
    if target is None:
        raise BadInput("the batches have inputs alone; training and measuring need (inputs, target)")
    return inputs, target


def cross_entropy(model: Model, batch: Any) -> Tensor:
    """Mean cross entropy of the logits, in nats."""
    inputs, target = labelled(batch)
    logits = model(*inputs)
    try:
        return F.cross_entropy(logits, target)
    except IndexError:  # torch says only which number it is
        _refuse_labels(logits, target)
        raise


def _refuse_labels(logits_NC: Tensor, target: Tensor) -> None:
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= logits_NC.shape[1]:
        labels = f"labels from {low} to {high}"
        raise BadInput(f"{labels} where the network has {logits_NC.shape[1]} outputs; they count from 0")


@torch.no_grad()
def top1_correct(model: Model, loader: Iterable[Any]) -> Tensor:
    """1.0 for every sample whose largest logit is at its label, else 0.0; shape (samples,)."""
    correct = []
    for batch in loader:
        inputs, target = labelled(batch)
        logits = model(*inputs)
        _refuse_labels(logits, target)
        correct.append((logits.argmax(1).cpu() == target.cpu()).float())
    return torch.cat(correct)


@dataclass(frozen=True, kw_only=True)
class Task(KnownArguments):
    """The user's data and measure. Validation decides, test is only reported, calibration needs no labels.

    `loss(model, batch)` gives a scalar. `metric(model, loader)` gives one score in [0, 1] for every sample, in the
    order of the loader, so that two networks can be compared sample by sample: a tensor, an array or a list. Its mean
    times 100 is what is called top-1 (percent) below. `metric` gets a plain callable: a module in eval mode, or an
    exported network. classes: names of the outputs; preprocessing: how images become inputs. Both are written into what
    is delivered.
    """

    name: str
    train: Loader
    validation: Loader
    test: Loader
    calibration: Loader
    example_inputs: tuple[Any, ...]
    loss: Callable[[Model, Any], Tensor] = cross_entropy
    metric: Callable[[Model, Iterable[Any]], Tensor] = top1_correct
    measure: str = "top1"
    classes: tuple[str, ...] = field(default=())
    preprocessing: Preprocessing | None = None


class PartialTask:
    """Stands for a task of which only the example inputs are there, or nothing; what is missing is asked for by name.

    Args:
        who: that needs it, for the message.
        example_inputs: of the network; None: there are none either.
    """

    NEEDED: ClassVar[Mapping[str, str]] = {
        "train": "training data",
        "loss": "training data",
        "validation": "validation data",
        "calibration": "sample inputs",
        "metric": "a metric",
        "test": "test data",
    }

    def __init__(self, who: str, example_inputs: tuple[Any, ...] | None = None) -> None:
        self.who = who
        if example_inputs is not None:
            self.example_inputs = example_inputs

    def __getattr__(self, name: str) -> Any:
        if name == "example_inputs":
            raise BadInput(f"{self.who} runs the network: give example inputs or a task, method(model, inputs)")
        if name in self.NEEDED:
            raise BadInput(f"{self.who} needs {self.NEEDED[name]}: give a task, method(model, task)")
        raise AttributeError(name)


def task_of(given: Any, who: str) -> Task:
    """A task, example inputs (a tensor, a tuple or a list), or None, as a task. who: that it is for."""
    if isinstance(given, Task | PartialTask):
        return cast(Task, given)
    if given is None:
        return cast(Task, PartialTask(who))
    if isinstance(given, Tensor):
        return cast(Task, PartialTask(who, (given,)))
    if isinstance(given, tuple | list) and given:
        return cast(Task, PartialTask(who, tuple(given)))
    raise BadInput(f"{who}: a task or example inputs are expected, not {_described(given)}")


def description(task: Task) -> dict[str, Any]:
    """What whoever deploys a network has to know of the task, as JSON values: the preprocessing and the classes."""
    known = {} if task.preprocessing is None else asdict(task.preprocessing)
    return known | ({"classes": list(task.classes)} if task.classes else {})


def task_row(task: Task, validation: int) -> dict[str, Any]:
    """What the document of a job says of the task. validation: how many samples decided."""
    return {
        "name": task.name,
        "measure": task.measure,
        "validation": validation,
        "preprocessing": description(task),
    }


def scores(task: Task, model: Model, loader: Iterable[Any]) -> Tensor:
    """The task's score of every sample of a loader, shape (n,), on the CPU.

    The measure may give a tensor, an array or a list. Raises BadInput where it is not one number in [0, 1] for every
    sample, as far as the loader tells how many there are.
    """
    rule = f"the measure of {task.name} must give one score a sample"
    found = task.metric(model, loader)
    try:
        values = torch.as_tensor(found).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{rule}, it gives {_described(found)}") from error
    values = values if values.is_floating_point() else values.float()
    if values.ndim != 1:
        raise BadInput(f"{rule}, it gives {_described(found)}")
    expected = samples(loader)
    if expected is not None and len(values) != expected:
        raise BadInput(f"{rule}, it gives {len(values)} scores for {expected} samples")
    wrong = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))  # NaN is wrong, too
    if wrong.any():
        first = int(wrong.nonzero()[0])
        others = f" ({int(wrong.sum())} of {len(values)} are outside)" if wrong.sum() > 1 else ""
        shown = f"{float(values[first]):g}{others}"
        raise BadInput(f"{rule} in [0, 1], that of sample {first} is {shown}; scale them, 1 the best")
    return values.clamp(0, 1)


def samples(loader: Iterable[Any]) -> int | None:
    """How many samples a loader gives; None where it does not tell without being gone through."""
    if isinstance(loader, DataLoader):
        whole = type(loader.batch_sampler) is BatchSampler and not loader.drop_last
        return len(loader.sampler) if whole and isinstance(loader.sampler, Sized) else None
    if isinstance(loader, list | tuple):
        firsts = [split(batch)[0][0] for batch in loader]
        return sum(map(len, firsts)) if all(isinstance(x, Tensor) and x.ndim for x in firsts) else None
    known = getattr(loader, "samples", None)
    return known if isinstance(known, int) else None


def loss_of(task: Task, model: Model, batch: Any) -> Tensor:
    """The task's loss of a batch by a network that is not being trained: in eval mode, and where that gives none, as
    with detectors, in train mode. Outputs in the place of a network are what they are."""
    if not isinstance(model, nn.Module):
        return task.loss(model, batch)
    try:
        loss = task.loss(model.eval(), batch)
    except Exception as error:
        with as_in_training(model):
            try:
                return task.loss(model, batch)
            except Exception:
                raise error from None  # of the mode that networks usually have a loss in
    if _one_number(loss):
        return loss
    with as_in_training(model):
        other = task.loss(model, batch)
    return other if _one_number(other) else loss


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Within, a network is in train mode, but for what would change its statistics or draw random numbers."""
    before = {module: module.training for module in model.modules()}
    try:
        train_mode(model)
        yield
    finally:
        for module, training in before.items():
            module.training = training


def train_mode(model: nn.Module) -> None:
    """Train mode, but for norms and dropout."""
    for module in model.modules():
        module.training = not isinstance(module, _STAY_IN_EVAL)


_STAY_IN_EVAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def _one_number(loss: object) -> bool:
    return isinstance(loss, Tensor) and loss.numel() == 1


def refuse_outputs(output: Any, task: Task, network: str) -> None:
    """Refuse a classifier of other classes: its largest output of all is no answer where the data has fewer."""
    if task.metric is not top1_correct or not task.classes or not isinstance(output, Tensor) or output.ndim != 2:
        return
    if output.shape[1] != (classes := len(task.classes)):
        more = (
            "; name the classes of the data as the network does where its library knows names, or train a new last "
            "layer: gossamer train MODEL --weights FILE"
        )
        raise BadInput(
            f"{network} gives {output.shape[1]} outputs, but the data has {classes} classes"
            f"{more if output.shape[1] > classes else ''}"
        )


@torch.no_grad()
def check(task: Task, model: nn.Module) -> None:
    """Run network, loss and measure on the first batches, so that what does not fit shows before the work begins.

    Of the test set only the length is asked for. Raises BadInput with the error of what failed.
    """
    name = task.name
    for split_name in ("train", "validation", "test", "calibration"):
        count(getattr(task, split_name), f"the {split_name} data of {name}")
    with torch.random.fork_rng(devices=[]):
        shapes = [tuple(getattr(x, "shape", ())) for x in task.example_inputs]
        what = f"the network does not accept the inputs of {name} (shapes {shapes})"
        refuse_outputs(_attempt(what, lambda: model(*task.example_inputs)), task, "the network")
        batch = _first_batch(task, "train", model)
        loss = _attempt(f"the loss of {name}", lambda: loss_of(task, model, batch))
        if not _one_number(loss):
            raise BadInput(f"the loss of {name} must be a tensor with one number, it is {_described(loss)}")
        held_out = _first_batch(task, "validation", model)
        _attempt(f"the measure of {name}", lambda: scores(task, model, [held_out]))
        if not _same(held_out, _first_batch(task, "validation", model)):
            raise BadInput(
                f"the validation data of {name} is another one each time: networks are compared sample by sample; "
                "turn its shuffling and its random augmentation off"
            )
        seen = _first_batch(task, "calibration", model)
        _attempt(f"the calibration data of {name}", lambda: model(*split(seen)[0]))


def _attempt(what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except GossamerError as error:
        raise BadInput(f"{what}: {error}") from error
    except Exception as error:
        raise BadInput(f"{what}: {own_error(error)}") from error


def _first_batch(task: Task, name: str, model: nn.Module) -> Any:
    """The first batch of a loader, where the model is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def placed(x: Tensor) -> Tensor:
        if x.isnan().any():
            raise BadInput("the first batch holds NaN")
        return x.to(device)

    what = f"the {name} data of {task.name}"
    return _attempt(what, lambda: tree_map_only(Tensor, placed, next(iter(getattr(task, name)))))


def _same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _described(value: object) -> str:
    kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
    shape = getattr(value, "shape", None)
    return f"a {kind} of shape {tuple(shape)}" if shape is not None else f"a {kind}"
