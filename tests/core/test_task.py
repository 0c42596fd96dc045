"""What of a user's task cannot be used is said before the work begins, with the user's own error."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from train_toy import net, task

from gossamer.core.batches import cross_entropy, inputs_and_target, sample_count
from gossamer.core.goal import Goal
from gossamer.core.metric import Metric
from gossamer.core.metrics import Top1
from gossamer.core.task import evaluation
from gossamer.errors import BadInput
from gossamer.task import check

X, Y = torch.zeros(4, 2, 6, 6), torch.tensor([0, 1, 2, 3])
BOTH = torch.tensor([[1, 1, 0, 0]]).repeat(4, 1)
PAIRS = TensorDataset(X, Y)
NAN = X.clone().index_fill_(0, torch.tensor([2]), float("nan"))


def test_a_task_that_can_be_used_passes_and_its_test_set_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    shuffled = torch.utils.data.DataLoader(task().train, batch_size=None, shuffle=True)
    check(task(train=shuffled, test=Untouched()), net().eval())
    assert torch.equal(torch.random.get_rng_state(), state)


class Untouched:
    """Data that may be counted, but not looked at."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        raise AssertionError("the test data were touched")


MANY = torch.utils.data.TensorDataset(torch.rand(400, *X.shape[1:]), Y.repeat(400)[:400])
SHUFFLED = torch.utils.data.DataLoader(MANY, batch_size=4, shuffle=True)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[0], Y[0])])


def raising(*_: Any) -> Tensor:
    raise KeyError("the moon is full")


def noisy(model: Any, loader: Any) -> Tensor:
    return torch.rand(sum(len(x) for x, _ in loader))


class Counting(Metric):
    """Its value is another one each time."""

    name, unit, points = "calls", "", 1.0

    def __init__(self) -> None:
        self.calls = 0

    def evidence(self, model: Any, loader: Any) -> dict[str, Tensor]:
        return {"outputs": torch.cat([model(x) for x, _ in loader])}

    def value(self, evidence: Any) -> float:
        self.calls += 1
        return self.calls


class NoNumber(Metric):
    """As a correlation of outputs that are all alike."""

    name, unit, points = "correlation", "", 0.01

    def evidence(self, model: Any, loader: Any) -> dict[str, Tensor]:
        return {"outputs": torch.cat([model(x) for x, _ in loader]) * math.nan}

    def value(self, evidence: Any) -> float:
        return float(evidence["outputs"].mean())


def test_a_metric_that_has_no_value_on_the_first_batch_may_have_one_on_all() -> None:
    check(task(metric=NoNumber(), test=Untouched()), net().eval())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"example_inputs": (torch.zeros(1, 3, 6, 6),)},
            r"does not accept the inputs of quadrants .*3, 6, 6.*RuntimeErr",
        ),
        ({"train": [(NAN, Y)]}, "the train data of quadrants: the first batch holds NaN"),
        ({"validation": [(NAN, Y)]}, "the validation data of quadrants: the first batch holds NaN"),
        ({"train": [(X, Y + 1)]}, "labels from 1 to 4 where the network has 4 outputs; they count from 0"),
        ({"train": [(X, Y - 1)]}, "labels from -1 to 2"),
        ({"train": [(X, Y.float())]}, "the loss of quadrants: labels are a tensor of shape .4,. of float32"),
        ({"train": [{"image": X, "label": Y}]}, "the loss of quadrants: a batch must be .* got dict"),
        ({"validation": [X]}, "the metric of quadrants: the batches have inputs alone"),
        ({"validation": [(X, Y + 5)]}, "the metric of quadrants: labels from 5 to 8 where the network has 4 outputs"),
        *(({name: []}, f"the {name} data of quadrants has no batches") for name in ("train", "validation", "test")),
        (
            {"calibration": iter([X])},
            "the calibration data of quadrants can be gone through only once; give",
        ),
        ({"train": iter(DataLoader(PAIRS))}, "the train data of quadrants can be gone through only once; give"),
        ({"train": DataLoader(Endless())}, "the train data of quadrants has no length"),
        (
            {"train": [(X, BOTH.float())]},
            r"must be probabilities, which sum to 1; for several .*MultiLabelF1\(\), for",
        ),
        ({"train": [(X, BOTH)]}, r"must be probabilities, which sum to 1; for several .*MultiLabelF1\(\), for"),
        ({"validation": [(X, Y.where(Y > 0, 255))]}, r"do not count give metric=MeanIoU\(\) \(255\)"),
        ({"validation": [(X, Y.where(Y > 0, -100))]}, r"do not count give .* Perplexity\(\) \(-100\)"),
        ({"loss": nn.CrossEntropyLoss()}, r"give lambda model, batch: CrossEntropyLoss\(\)\(model\(batch\[0\]\), ba"),
        ({"loss": lambda m, b: cross_entropy(m, b).detach()}, "does not depend on the weights: leave out detach"),
        ({"loss": lambda m, b: cross_entropy(m, b) * math.inf}, "the loss of quadrants is inf on the first batch"),
        ({"calibration": [{"image": X}]}, "the calibration data of quadrants: a batch must be"),
        ({"loss": raising}, r"the loss of quadrants: KeyError: 'the moon is full' \(.*test_task.py:"),
        ({"loss": lambda model, batch: model(batch[0])}, r"one number, it is a tensor of shape \(4, 4\)"),
        ({"loss": lambda model, batch: 1.0}, "one number, it is a float"),
        ({"metric": raising}, "the metric of quadrants: .*KeyError"),
        (
            {"train": (X, Y)},
            r"the train data of quadrants is one batch, not a loader; .* \[\(x, y\)\], or a DataL",
        ),
        ({"metric": noisy}, r"the metric of quadrants gives 0\.\d+ after 0\.\d+ for the same outputs: it must draw no"),
        (
            {"metric": Counting()},
            "the metric of quadrants gives 2 after 1 for the same outputs: .* keep nothing",
        ),
        (
            {"metric": lambda model, loader: torch.tensor(0.5)},
            r"it gives a tensor of .* write a gossamer\.Metric",
        ),
        ({"validation": SHUFFLED}, "the validation data of quadrants is another one each time.* turn its shuffling"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_own_error(changes: dict[str, Any], message: str) -> None:
    whole = task(train=[(X, Y)], validation=[(X, Y)], test=Untouched(), calibration=[X])
    with pytest.raises(BadInput, match=message):
        check(replace(whole, **changes), net().eval())


def test_labels_out_of_range_are_told_from_other_errors_of_the_network() -> None:
    def broken(x: Tensor) -> Tensor:
        return [x][1]

    with pytest.raises(IndexError, match="list index"):
        cross_entropy(broken, (X, Y))


def test_labels_with_one_in_the_place_of_the_class_are_class_numbers() -> None:
    one_hot = torch.nn.functional.one_hot(Y, 4)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    expected = cross_entropy(nn.Identity(), (logits, Y))
    assert torch.equal(cross_entropy(nn.Identity(), (logits, one_hot)), expected)
    torch.testing.assert_close(cross_entropy(nn.Identity(), (logits, one_hot.float())), expected)


def scored(found: Any) -> Tensor:
    """What comes of a measure that gives this for four samples."""
    measured = evaluation(task(metric=lambda model, loader: found), net(), [(X, Y)])
    return measured.per_sample


@pytest.mark.parametrize(
    "found",
    [
        np.array([0, 1, 1, 0]),
        np.array([0.0, 1.0, 1.0, 0.0], dtype=np.float32),
        np.array([False, True, True, False]),
        [0, 1.0, True, 0],
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([0.0, 1 + 1e-7, 1, -1e-8], dtype=torch.float64),
        torch.tensor([False, True, True, False]),
    ],
)
def test_scores_may_be_an_array_a_list_or_a_tensor(found: Any) -> None:
    assert scored(found).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (np.float64(0.5), r"a sample, it gives a float64 of shape \(\)"),
        (0.5, "a sample, it gives a float; for a number of the whole set write"),
        ("good", "a sample, it gives a str"),
        (np.zeros((4, 1)), r"a sample, it gives a ndarray of shape \(4, 1\)"),
        ([0.5] * 3, "of every sample, it gives 3 rows for 4 samples"),
        ([0.5] * 5, "of every sample, it gives 5 rows for 4 samples"),
        ([0, 1, math.nan, 0], r"a sample in \[0, 1\], that of sample 2 is nan; scale"),
        ([0, 71.5, 30, -1], r"a sample in \[0, 1\], that of sample 1 is 71\.5 \(3 of 4 are outside\)"),
        ([-0.1, 0, 0, 0], r"a sample in \[0, 1\], that of sample 0 is -0\.1"),
        ([0, 0, math.inf, 0], "that of sample 2 is inf"),
    ],
)
def test_scores_that_say_nothing_of_every_sample_are_refused(found: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        scored(found)


def test_how_many_samples_a_loader_gives_is_known_where_it_tells() -> None:
    data = TensorDataset(torch.zeros(10, 2), torch.zeros(10))
    assert sample_count(DataLoader(data, batch_size=4)) == 10
    assert sample_count(DataLoader(data, batch_size=4, drop_last=True)) is None
    assert sample_count([(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(2, 2), torch.zeros(2))]) == 5
    assert sample_count(iter([])) is None
    assert sample_count([([torch.zeros(3), torch.zeros(3)], None)]) == 3


def test_a_data_set_of_inputs_alone_calibrates() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=2)
    check(task(calibration=loader, test=Untouched()), net().eval())
    assert inputs_and_target(next(iter(loader)))[1] is None


@pytest.mark.parametrize("part", ["train", "validation"])
def test_inputs_alone_are_not_enough_where_targets_are_needed(part: str) -> None:
    loader = DataLoader(TensorDataset(X), batch_size=2)
    with pytest.raises(
        BadInput, match=r"the batches have inputs alone; training and measuring need \(inputs, target\)"
    ):
        check(task(**{part: loader, "test": Untouched()}), net().eval())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("column", [False, True])
def test_labels_of_any_integers_are_class_numbers(dtype: torch.dtype, column: bool) -> None:
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    given = (labels[:, None] if column else labels).to(dtype)
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.equal(cross_entropy(torch.nn.Identity(), (logits, given)), wanted)
    right = (logits.argmax(1) == labels).float().mean()
    assert Top1().score(torch.nn.Identity(), [(logits, given)]) == pytest.approx(float(right))


def test_probabilities_of_classes_are_labels_too() -> None:
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    one_hot = torch.nn.functional.one_hot(labels).float()
    whole = cross_entropy(torch.nn.Identity(), (logits, labels))
    assert torch.allclose(cross_entropy(torch.nn.Identity(), (logits, one_hot)), whole)
    scores = [Top1().score(torch.nn.Identity(), [(logits, target)]) for target in (labels, one_hot)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["a"] * 4, "not a list"), (torch.rand(4), "class numbers are integers"), (None, "inputs alone")],
)
def test_what_are_no_labels_is_refused(labels: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        cross_entropy(torch.nn.Identity(), (torch.randn(4, 3), labels))


@pytest.mark.parametrize("value", ["3x", True, [2]])
def test_goals_are_numbers(value: object) -> None:
    with pytest.raises(BadInput, match=r"speedup = .*must be a number"):
        Goal(speedup=value)
