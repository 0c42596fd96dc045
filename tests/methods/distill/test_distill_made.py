"""Students that learn on made-up data: exchanged attributes, inverted statistics."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import learned, stripes, task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.losses import munge, statistics_loss, synthetic
from gossamer.losses.synthetic import nearest_samples
from gossamer.methods.distill._student import Samples, teacher_labels
from gossamer.methods.distill.data_free import DataFreeDistillation, batch_norm_losses, invert
from gossamer.methods.distill.munge import MUNGE


def table() -> tuple[Tensor, Tensor]:
    """Two columns of numbers of very different size, two of names."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(40, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1000.0])
    names = torch.randint(3, (40, 2), generator=generator).double()
    return torch.cat([numbers, names], 1), torch.tensor([False, False, True, True])


def test_neighbours_are_nearest_in_scaled_numbers_and_equal_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, nominal = table()
    low, high = rows.numpy().min(0), rows.numpy().max(0)
    expected = []
    for i, a in enumerate(rows.numpy()):
        distances = []
        for b in rows.numpy():
            d = sum(((a[k] - b[k]) / (high[k] - low[k])) ** 2 for k in (0, 1)) + sum(a[k] != b[k] for k in (2, 3))
            distances.append(d)
        distances[i] = np.inf
        expected.append(int(np.argmin(distances)))
    assert nearest_samples(rows, nominal).tolist() == expected
    monkeypatch.setattr(synthetic, "ROWS", 7)
    assert nearest_samples(rows, nominal).tolist() == expected
    with pytest.raises(BadInput, match="no neighbours"):
        nearest_samples(rows[:1], nominal)


def test_munge_is_its_definition() -> None:
    rows, nominal = table()
    neighbours = nearest_samples(rows, nominal)
    torch.manual_seed(5)
    got = munge(rows, 0.5, 4.0, nominal_D=nominal)
    torch.manual_seed(5)
    expected = rows.numpy().copy()
    for i, j in enumerate(neighbours.tolist()):
        noise, chosen = torch.randn(2, 4, dtype=torch.float64), torch.rand(4)
        for k in range(4):
            a, b = expected[i, k], expected[j, k]
            sd = 0.0 if nominal[k] else abs(a - b) / 4.0
            if chosen[k] < 0.5:
                expected[i, k], expected[j, k] = b + sd * float(noise[0, k]), a + sd * float(noise[1, k])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_without_probability_nothing_changes_and_without_spread_values_only_change_places() -> None:
    rows, nominal = table()
    assert torch.equal(munge(rows, 0.0, 4.0, nominal_D=nominal), rows)
    exchanged = munge(rows, 1.0, 1e12)
    torch.testing.assert_close(exchanged.sort(0).values, rows.sort(0).values, rtol=1e-9, atol=1e-9)
    assert not torch.equal(exchanged, rows)
    names = munge(rows, 0.7, 1.0, nominal_D=nominal)[:, 2:]
    assert torch.equal(names.sort(0).values, rows[:, 2:].sort(0).values)


@pytest.mark.slow
def test_the_mean_of_every_column_is_preserved_in_expectation() -> None:
    rows, nominal = table()
    neighbours = nearest_samples(rows, nominal)
    torch.manual_seed(0)
    many = torch.stack([munge(rows, 0.5, 1.0, nominal_D=nominal, neighbours_N=neighbours) for _ in range(200)])
    assert bool(((many.mean((0, 1)) - rows.mean(0)).abs() < 0.1 * rows.std(0)).all())


@pytest.mark.slow
def test_a_student_learns_on_exchanged_samples_labelled_by_the_teacher() -> None:
    data = stripes()
    few = replace(data, train=[(x, torch.zeros_like(y)) for x, y in list(data.train)[:4]])
    context = Context(accelerator="cpu", teacher=learned())
    result = MUNGE(epochs=4, lr=0.05, copies=4).apply(tiny(), few, context).eval()
    assert float(data.metric.score(result, data.test)) > 0.9


def test_nominal_columns_must_exist() -> None:
    with pytest.raises(BadInput, match=r"nominal = \(36,\) must be columns in \[0, 36\)"):
        MUNGE(nominal=(36,))(tiny(), task(), Context(accelerator="cpu", teacher=tiny()))
    pairs: Any = [((x, x), y) for x, y in task().train]
    with pytest.raises(BadInput, match="one tensor of real numbers"):
        MUNGE()(tiny(), replace(task(), train=pairs), Context(accelerator="cpu", teacher=tiny()))


def test_samples_come_all_in_another_order_each_time() -> None:
    loader = Samples(torch.arange(10.0)[:, None], torch.arange(10), 4)
    torch.manual_seed(0)
    first, second = (list(loader), list(loader))
    assert len(loader) == len(first) == 3 and [len(y) for _, y in first] == [4, 4, 2]
    orders = [torch.cat([y for _, y in batches]) for batches in (first, second)]
    assert not torch.equal(*orders) and torch.equal(orders[0].sort().values, torch.arange(10))
    assert all(torch.equal(x[:, 0].long(), y) for x, y in first)


def test_the_teachers_word_is_a_class_where_the_task_has_classes_and_its_output_elsewhere() -> None:
    teacher, x = tiny(), task().example_inputs[0]
    assert torch.equal(teacher_labels(teacher, x, torch.zeros(2, dtype=torch.long), 3), teacher(x).argmax(1))
    torch.testing.assert_close(teacher_labels(teacher, x, torch.zeros(2, 3), 3), teacher(x).detach())
    with pytest.raises(BadInput, match="gives a tuple"):
        teacher_labels(Twice(), x, None, 3)


class Twice(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_what_batch_norms_remember_is_compared_with_what_enters_them() -> None:
    teacher, x = tiny(), task().example_inputs[0]
    with batch_norm_losses(teacher) as losses, torch.no_grad():
        teacher(x)
        block: Any = teacher.get_submodule("body.0")
        entered = block.conv1(torch.relu(teacher.get_submodule("stem")(x)))
        first = statistics_loss(entered, block.bn1.running_mean, block.bn1.running_var)
    assert len(losses) == 6
    torch.testing.assert_close(losses[0], first)
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_inverted_images_have_their_class_and_fitting_statistics() -> None:
    teacher = learned().requires_grad_(False)
    torch.manual_seed(0)
    labels = torch.arange(24) % 3
    images = invert(teacher, labels, (1, 6, 6), steps=60, lr=0.1, weights=(1.0, 0.01))
    noise = torch.randn(24, 1, 6, 6)
    unlike = []
    for x in (images, noise):
        with batch_norm_losses(teacher) as losses, torch.no_grad():
            teacher(x)
            unlike.append(float(torch.stack(losses).sum()))
    assert unlike[0] < 0.5 * unlike[1]
    assert float((teacher(images).argmax(1) == labels).float().mean()) > 0.9


class Nothing:
    """Data that must not be looked at."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the training data were looked at")


@pytest.mark.slow
def test_a_student_learns_without_data() -> None:
    data = replace(stripes(), train=Nothing())
    context = Context(accelerator="cpu", teacher=learned())
    result = (
        DataFreeDistillation(epochs=4, lr=0.05, samples=250, batch=50, steps=60).apply(tiny(), data, context).eval()
    )
    assert float(data.metric.score(result, data.test)) > 0.8


def test_teachers_that_remember_nothing_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(BadInput, match="no batch norm"):
        DataFreeDistillation()(tiny(), task(), Context(accelerator="cpu", teacher=flat))
    with pytest.raises(BadInput, match="must give logits"):
        DataFreeDistillation()(tiny(), task(), Context(accelerator="cpu", teacher=nn.Sequential(nn.Conv2d(1, 3, 3))))
