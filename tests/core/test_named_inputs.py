"""Batches that are mappings, and batches of several inputs without a tuple around them."""

from collections import UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gossamer
from gossamer.core.batches import inputs_and_target
from gossamer.core.task import evaluation
from gossamer.task import check


class TwoInputs(nn.Module):
    """Takes first and second by these names; the third is one that nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, first: Tensor, second: Tensor, third: Tensor | None = None) -> Tensor:
        return self.layer(first - second) if third is None else self.layer(third)


def samples(**more: object) -> list[dict[str, object]]:
    torch.manual_seed(0)
    return [{"second": torch.rand(3), "labels": torch.tensor(i % 2), "first": torch.rand(3), **more} for i in range(12)]


def task_of(data: list[dict[str, object]], **settings: object) -> gossamer.Task:
    loader = DataLoader(data, batch_size=4)
    return gossamer.Task.from_loaders(loader, loader, **settings)


def test_mappings_become_inputs_by_position_and_a_target() -> None:
    task = task_of(samples(), inputs=("first", "second"))
    (first, second), target = next(iter(task.train))
    data = samples()
    assert torch.equal(first[1], data[1]["first"])
    assert torch.equal(second[1], data[1]["second"])
    assert target.tolist() == [0, 1, 0, 1]
    assert [len(x) for x in task.example_inputs] == [2, 2]
    assert task.train.samples == 12
    check(task, TwoInputs())


def test_what_is_no_tensor_is_no_input() -> None:
    assert task_of(samples(text="a line")).input_names == ("second", "first")


def test_without_a_target_batches_are_inputs_alone() -> None:
    rows = [{"first": torch.rand(4, 3), "second": torch.rand(4, 3)}]
    task = gossamer.Task.from_loaders(rows, rows)
    assert inputs_and_target(task.validation[0])[1] is None


def test_subclasses_of_mappings_will_do() -> None:
    rows = [UserDict(first=torch.rand(4, 3), second=torch.rand(4, 3), label=torch.zeros(4, dtype=torch.long))]
    task = gossamer.Task.from_loaders(rows, rows)
    assert task.input_names == ("first", "second")
    check(task, TwoInputs())


def test_an_order_that_would_swap_inputs_is_refused_with_the_right_one() -> None:
    with pytest.raises(gossamer.BadInput, match=r"inputs=\('first', 'second'\)"):
        check(task_of(samples()), TwoInputs())


def test_an_input_that_leaves_one_out_is_refused() -> None:
    rows = [{"first": torch.rand(4, 3), "third": torch.rand(4, 3), "y": torch.zeros(4, dtype=torch.long)}]
    with pytest.raises(gossamer.BadInput, match=r"forward takes \(first, third\)"):
        check(gossamer.Task.from_loaders(rows, rows), TwoInputs())


@pytest.mark.parametrize("wanted", [("first", "other"), ("labels_",)])
def test_names_that_are_not_there_are_refused(wanted: tuple[str, ...]) -> None:
    with pytest.raises(gossamer.BadInput, match=f"no {wanted[-1]!r}"):
        task_of(samples(), inputs=wanted)


def test_names_for_tuples_are_refused() -> None:
    with pytest.raises(gossamer.BadInput, match="these are tuples"):
        gossamer.Task.from_loaders(
            [(torch.rand(4, 3), torch.zeros(4))], [(torch.rand(4, 3), torch.zeros(4))], inputs=("x",)
        )


def test_a_tensor_data_set_of_several_inputs_has_its_target_last() -> None:
    data = TensorDataset(torch.rand(8, 3), torch.rand(8, 3), torch.arange(8) % 2)
    loader = DataLoader(data, batch_size=4)
    task = gossamer.Task.from_loaders(loader, loader)
    assert len(task.example_inputs) == 2
    check(task, TwoInputs())


def test_a_network_is_trained_and_judged_on_mappings() -> None:
    data = samples()
    for row in data:
        row["labels"] = torch.tensor(int((row["first"] - row["second"]).sum() > 0))
    task = task_of(data, inputs=("first", "second"))
    model = TwoInputs()
    gossamer.fit(model, task, gossamer.Training(epochs=30, lr=0.5), gossamer.Context())
    assert evaluation(task, model.eval(), task.validation).value >= 0.8
