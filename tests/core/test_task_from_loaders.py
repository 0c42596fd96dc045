"""`Task.from_loaders`: what it fills in, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gossamer
from gossamer.core.batches import FirstBatches, cross_entropy
from gossamer.core.metric import Metric, PerSample
from gossamer.core.metrics import RMSE, MeanIoU, Top1, squared_error
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.task import check

X = torch.arange(600.0).reshape(200, 3)
Y = torch.arange(200) % 3
DATA = TensorDataset(X, Y)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(DATA, batch_size=20, **options)


def test_two_loaders_are_enough() -> None:
    task = Task.from_loaders(loader(shuffle=True), loader())
    check(task, nn.Linear(3, 3))
    assert task.test is None and task.final_split == "validation" and task.final is task.validation
    assert torch.equal(task.example_inputs[0], X[:2]) and isinstance(task.metric, Top1) and task.loss is cross_entropy
    assert len(task.calibration) == 10 and len(Task.from_loaders(4 * list(loader()), loader()).calibration) == 26


def test_what_is_given_is_taken() -> None:
    test, seen = loader(), [X[:5]]
    loss = lambda model, batch: model(batch[0]).mean()  # noqa: E731
    task = Task.from_loaders(
        loader(), loader(), test, metric=RMSE(unit="m"), loss=loss, name="mine", calibration=seen, example_inputs=X[:1]
    )
    assert (task.test, task.calibration, task.loss, task.name, task.final_split) == (test, seen, loss, "mine", "test")
    assert task.example_inputs[0].shape == (1, 3)
    assert Task.from_loaders(loader(), loader(), example_inputs=(X[:1], X[:2])).example_inputs[1].shape == (2, 3)


@pytest.mark.parametrize(("metric", "loss"), [(RMSE(), squared_error), (Top1(), cross_entropy)])
def test_the_loss_is_the_usual_one_of_the_metric(metric: Metric, loss: Any) -> None:
    assert Task.from_loaders(loader(), loader(), metric=metric).loss is loss
    assert Task.from_loaders(loader(), loader(), metric=MeanIoU(ignore=7)).loss.keywords == {"ignore": 7}  # type: ignore[attr-defined]


def test_a_function_of_scores_is_a_metric_here_and_in_the_constructor() -> None:
    def ones(model: Any, data: Any) -> torch.Tensor:
        return torch.ones(1)

    short = Task.from_loaders(loader(), loader(), metric=ones)
    assert isinstance(short.metric, PerSample) and short.metric.name == "ones"
    fields = {"name": "x", "train": [], "validation": [], "calibration": [], "example_inputs": ()}
    assert Task(**fields, metric=ones).metric == short.metric  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DATA, loader()), r"train: a data set is no loader; give DataLoader\(train, batch_size=64\)"),
        ((loader(), DATA), "validation: a data set"),
        ((loader(), loader(), X), r"test: batches are expected, .* not a tensor of shape \(200, 3\)"),
        ((loader(), "data/"), "validation: batches are expected, .* not a str"),
        ((loader(), 3), "validation: batches are expected, .* not a int"),
        (((X, Y), loader()), r"train is one batch, not a loader; give a list of batches, \[\(x, y\)\]"),
        ((loader(), [X, Y]), "validation is one batch"),
        ((loader(), (X.numpy(), Y.numpy())), "validation is one batch"),
        ((loader(), []), "validation: a list has no batches"),
        (((batch for batch in loader()), loader()), "train: a generator can be gone through only once"),
        (([{"image": X}], loader()), "a batch must be"),
    ],
)
def test_what_is_no_loader_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Task.from_loaders(*arguments)


def test_batches_of_inputs_alone_are_a_loader() -> None:
    assert len(Task.from_loaders(loader(), loader(), calibration=[X[:8], X[8:12]]).calibration) == 2


def test_metrics_that_are_none_are_refused() -> None:
    with pytest.raises(BadInput, match="metric: a gossamer"):
        Task.from_loaders(loader(), loader(), metric="top1")  # type: ignore[arg-type]


def test_first_batches_of_a_shuffled_loader_are_always_the_same_and_move_no_random_numbers() -> None:
    first = FirstBatches(loader(shuffle=True), 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = []
    for batch in first:
        assert torch.equal(torch.get_rng_state(), before)
        one.append(batch[0])
    torch.manual_seed(6)
    other = [x for x, _ in first]
    assert len(one) == len(first) == 3 and all(map(torch.equal, one, other))
    assert not torch.equal(one[0], X[:20])


def test_tasks_say_what_they_are() -> None:
    task = gossamer.Task.from_loaders(loader(), loader(), metric=RMSE(unit="m", points=0.5), name="depth")
    assert repr(task) == "Task('depth', RMSE)"
    said = task.summary()
    assert "validation: 10 batches, 200 samples" in said and "test: none: results are on validation data" in said
    assert "RMSE, lower is better, one point is 0.5000 m" in said and "loss: squared_error" in said
