"""The user's data and metric."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from gossamer.core.batches import (
    FirstBatches,
    Loader,
    Loss,
    Model,
    batch_count,
    cross_entropy,
    inputs_and_target,
    kind_and_shape,
    one_batch,
    sample_count,
)
from gossamer.core.metric import Evaluation, Metric, evaluated, metric_of
from gossamer.core.metrics import Top1
from gossamer.core.named_inputs import by_position, input_names
from gossamer.core.placement import as_in_training
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput

CALIBRATION = 512  # samples of the training data, where a task has no calibration data of its own
EXAMPLES = 2  # samples of the example inputs that are taken from the data


@dataclass(frozen=True, kw_only=True, repr=False)
class Task(KnownArguments):
    """The user's data and metric; `Task.from_loaders` is the short way to one.

    Validation data decide, test data are only reported, calibration data need no labels.

    Attributes:
        name: of the data, in reports.
        train, validation, test, calibration: loaders: batches that can be gone through again, with a length. test None:
            results are those on validation data, which also decided, and reports say so.
        example_inputs: the positional inputs of the network, as a batch of few samples.
        loss: `loss(model, batch)` gives a scalar.
        metric: what networks are judged by. A function(model, loader) that gives one score in [0, 1] for every sample
            becomes a `PerSample` of its name.
        classes: names of the outputs. With `preprocessing` they are written into what is delivered.
        preprocessing: how images become inputs.
        input_names: of the inputs, where batches have them by name; the network must take them in this order.

    Example:
        >>> import torch
        >>> batches = [(torch.rand(8, 3), torch.randint(4, (8,)))]
        >>> x = (torch.rand(2, 3),)
        >>> task = Task(name="mine", train=batches, validation=batches, calibration=batches, example_inputs=x)
        >>> task.metric.name, task.final_split
        ('top-1', 'validation')
    """

    name: str
    train: Loader
    validation: Loader
    calibration: Loader
    example_inputs: tuple[Any, ...]
    test: Loader | None = None
    loss: Loss = cross_entropy
    metric: Metric = field(default_factory=Top1)
    classes: tuple[str, ...] = field(default=())
    preprocessing: Preprocessing | None = None
    input_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", metric_of(self.metric))

    @classmethod
    def from_loaders(
        cls,
        train: Loader,
        validation: Loader,
        test: Loader | None = None,
        *,
        metric: Metric | Callable[[Model, Iterable[Any]], Any] | None = None,
        loss: Loss | None = None,
        name: str = "data",
        calibration: Loader | None = None,
        example_inputs: Any = None,
        inputs: Sequence[str] | None = None,
    ) -> "Task":
        """A task from the loaders of a training.

        Args:
            train: batches (inputs, target); a `DataLoader` or a list. Several inputs are `((first, second), target)` or
                `(first, second, target)`. Mappings will do, too: tensors by name, the target under "labels", "label",
                "targets", "target" or "y".
            validation: the same; it must give the same samples in the same order every time.
            test: the same; None: results are those on validation data, and reports say so.
            metric: a `gossamer.Metric`, or a function(model, loader) that gives one score in [0, 1] for every sample;
                None: top-1 accuracy.
            loss: `loss(model, batch)` gives a scalar; None: the usual one of the metric, cross entropy of classes.
            name: of the data, in reports.
            calibration: batches, targets are not looked at; None: the first batches of `train` with 512 samples.
            example_inputs: a tensor or a tuple of tensors, the positional inputs of the network; None: of the first
                batch of `validation`, two samples.
            inputs: of mappings, the names in the order that the network takes; None: all but the target, as ordered.

        Returns:
            The task. Nothing is run yet: jobs check it with the network before they begin.

        Raises:
            BadInput: what was given is no loader, or its batches are none.

        Example:
            >>> import torch, gossamer
            >>> batches = [(torch.rand(8, 3), torch.randint(4, (8,)))]
            >>> task = gossamer.Task.from_loaders(batches, batches, metric=gossamer.measure.TopK(k=2))
            >>> task.example_inputs[0].shape, task.final_split
            (torch.Size([2, 3]), 'validation')
        """
        chosen = Top1() if metric is None else metric_of(metric)
        for what, loader in (("train", train), ("validation", validation), ("test", test)):
            if loader is not None or what != "test":
                _check_loader(loader, what)
        if calibration is not None:
            _check_loader(calibration, "calibration")
        names = input_names(next(iter(FirstBatches(validation, 1))), inputs)
        if names:
            train, validation = by_position(train, names), by_position(validation, names)
            test = None if test is None else by_position(test, names)
            calibration = None if calibration is None else by_position(calibration, names)
        if calibration is None:
            calibration = _some_of(train)
        return cls(
            name=name,
            train=train,
            validation=validation,
            test=test,
            calibration=calibration,
            example_inputs=_inputs(example_inputs, validation),
            loss=chosen.usual_loss() if loss is None else loss,
            metric=chosen,
            input_names=names,
        )

    @property
    def final_split(self) -> str:
        """The split that results are reported on: "test", or "validation" where there is none."""
        return "test" if self.test is not None else "validation"

    @property
    def final(self) -> Loader:
        """The data that results are reported on."""
        return self.test if self.test is not None else self.validation

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {self.metric.name})"

    def summary(self) -> str:
        """The splits with their numbers of batches and samples, the metric and the loss, one a line."""
        lines = [f"task {self.name}"]
        for split in ("train", "validation", "test", "calibration"):
            loader = getattr(self, split)
            many = f", {n:,} samples" if loader is not None and (n := sample_count(loader)) is not None else ""
            shown = f"{len(loader):,} batches{many}" if loader is not None else "none: results are on validation data"
            lines.append(f"  {split}: {shown}")
        shapes = ", ".join("x".join(map(str, getattr(x, "shape", ()))) for x in self.example_inputs)
        direction = "higher" if self.metric.higher_is_better else "lower"
        point = self.metric.text(self.metric.points)
        lines.append(f"  metric: {self.metric.name}, {direction} is better, one point is {point}")
        lines.append(f"  loss: {getattr(self.loss, '__name__', type(self.loss).__name__)}")
        return "\n".join([*lines, f"  example inputs: {shapes}"])


def _check_loader(loader: Any, what: str) -> None:
    """Refuse what is no loader, kindly."""
    if isinstance(loader, Dataset):
        raise BadInput(f"{what}: a data set is no loader; give DataLoader({what}, batch_size=64)")
    if isinstance(loader, Tensor | str | bytes) or not hasattr(loader, "__iter__"):
        raise BadInput(
            f"{what}: batches are expected, a DataLoader or a list of (inputs, target), not {kind_and_shape(loader)}"
        )
    batch_count(loader, what if one_batch(loader) else f"{what}: a {type(loader).__name__}")


def _some_of(train: Loader) -> FirstBatches:
    """The first batches with `CALIBRATION` samples."""
    inputs, _ = inputs_and_target(next(iter(FirstBatches(train, 1))))
    size = len(inputs[0]) if isinstance(inputs[0], Tensor) and inputs[0].ndim else 1
    return FirstBatches(train, math.ceil(CALIBRATION / max(size, 1)))


def _inputs(given: Any, validation: Loader) -> tuple[Any, ...]:
    """Example inputs as a tuple; of the first validation batch where none were given."""
    if given is not None:
        return tuple(given) if isinstance(given, tuple | list) else (given,)
    inputs, _ = inputs_and_target(next(iter(FirstBatches(validation, 1))))
    return tuple(tree_map_only(Tensor, lambda x: x[:EXAMPLES] if x.ndim else x, list(inputs)))


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
    raise BadInput(f"{who}: a task or example inputs are expected, not {kind_and_shape(given)}")


def description(task: Task) -> dict[str, Any]:
    """What whoever deploys a network has to know of the task, as JSON values: the preprocessing and the classes."""
    known = {} if task.preprocessing is None else asdict(task.preprocessing)
    return known | ({"classes": list(task.classes)} if task.classes else {})


def task_row(task: Task, validation: int) -> dict[str, Any]:
    """What the document of a job says of the task. validation: how many samples decided."""
    return {
        "name": task.name,
        "metric": task.metric.name,
        "unit": task.metric.unit,
        "point": task.metric.shown(task.metric.points),
        "higher_is_better": task.metric.higher_is_better,
        "split": task.final_split,
        "validation": validation,
        "preprocessing": description(task),
    }


def evaluation(task: Task, model: Model, loader: Iterable[Any]) -> Evaluation:
    """The evidence of every sample of a loader and its score. Raises BadInput where it is not of every sample."""
    return evaluated(task.metric, model, loader, sample_count(loader))


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
    if one_number(loss):
        return loss
    with as_in_training(model):
        other = task.loss(model, batch)
    return other if one_number(other) else loss


def one_number(loss: object) -> bool:
    return isinstance(loss, Tensor) and loss.numel() == 1


def refuse_outputs(output: Any, task: Task, network: str) -> None:
    """Refuse a classifier of other classes: its largest output of all is no answer where the data has fewer."""
    if not isinstance(task.metric, Top1) or not task.classes or not isinstance(output, Tensor) or output.ndim != 2:
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
