"""A job tries at its start what it will need at its end: nothing dies after the training."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import measured_briefly
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from train_toy import Notes

import gossamer
from gossamer import BadInput, Context, Goal, Task
from gossamer.data.probing import MOST_SHAPES, probe_loader
from gossamer.jobs.preflight import preflight

GOAL = Goal(params=10, max_drop=100)


@pytest.fixture(autouse=True)
def brief() -> Iterator[None]:  # but for what patches it again
    with measured_briefly(tried=True):
        yield


class Text(nn.Module):
    """Tokens of any length."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm, self.head = nn.Embedding(20, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.norm(self.embedding(tokens).mean(1)))


def text(*lengths: int, samples: int = 4, last: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """A batch of each length."""
    sizes = [samples] * (len(lengths) - 1) + [last or samples]
    return [(torch.arange(n * length).view(n, length) % 20, torch.arange(n) % 3) for n, length in zip(sizes, lengths)]


def task(**changes: Any) -> Task:
    batches = text(5, 5)
    whole = Task(
        name="text",
        train=batches,
        validation=batches,
        test=batches,
        calibration=[x for x, _ in batches],
        example_inputs=(batches[0][0],),
    )
    return replace(whole, **changes)


def tried(
    model: nn.Module | None = None, context: Context | None = None, int8: bool | None = False, **changes: Any
) -> None:
    preflight(model or Text(), task(**changes), GOAL, context or Context(), trains=True, int8=int8)


def test_what_can_be_used_passes_and_nothing_moves() -> None:
    model, notes = Text().eval(), Notes()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    tried(model, Context(progress=notes), int8=None, train=text(5, 5, 5, last=3))
    assert notes.said == [] and not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def wrong_label(label: int) -> list[tuple[Tensor, Tensor]]:
    """The second batch has one label that is none."""
    first, (inputs, target) = text(5, 5)
    return [first, (inputs, target.index_fill(0, torch.tensor([2]), label))]


def no_test(model: Any, loader: Any) -> Tensor:
    """Scores that need a run of the network; test batches have 6 samples."""
    batches = list(loader)
    assert all(len(y) != 6 for _, y in batches), "a score of test data was looked at"
    return torch.cat([(model(x).argmax(1) == y).float() for x, y in batches])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": text(5, 5, last=1)},
            r"the train data of text, batch 1 \(inputs of 1x5\): the loss .*drop_last=True",
        ),
        (
            {"train": [*text(5, 5), (torch.zeros(4, 5), torch.zeros(4).long())]},
            r"train data of text, batch 2 .*Runtime",
        ),
        (
            {"train": wrong_label(3)},
            "the train data of text, batch 1 .*: the loss in train mode: labels from 0 to 3 where",
        ),
        ({"validation": wrong_label(9)}, r"the validation data of text, batch 1 .*the metric: labels from 0 to 9"),
        ({"test": wrong_label(7)}, "the test data of text, batch 1: label 7, where the network has 3 outputs"),
        ({"test": wrong_label(-1), "metric": no_test}, "the test data of text, batch 1: label -1"),
        (
            {"test": [*text(5, samples=6), (torch.zeros(6, 5), torch.zeros(6).long())], "metric": no_test},
            "the test data",
        ),
        ({"calibration": [torch.zeros(4, 5)]}, r"the calibration data of text, batch 0 \(inputs of 4x5\): the network"),
        ({"validation": text(5, 5, 7)}, r"validation data of text, batch 2 \(inputs of 4x7\), on onnxruntime: .*pad"),
        (
            {"test": text(5, 9, samples=6), "metric": no_test},
            r"the test data of text, batch 1 \(inputs of 6x9\), on onnx",
        ),
    ],
)
def test_what_would_die_later_is_named_at_the_start(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tried(**changes)


def in_torch_alone(model: Any, loader: Any) -> Tensor:
    return torch.cat([(model.eval()(x).argmax(1) == y).float() for x, y in loader])


def other_elsewhere(model: Any, loader: Any) -> Tensor:
    return torch.cat([torch.full((len(y),), float(isinstance(model, nn.Module))) for _, y in loader])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (in_torch_alone, r"\(inputs of 4x5\), on onnxruntime: the metric: .*AttributeError: .*'eval'"),
        (other_elsewhere, "on onnxruntime: the metric gives other scores than .*, for 4 of 4 samples"),
    ],
)
def test_the_measure_must_work_on_exported_networks(metric: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tried(metric=metric)


def test_labels_that_loss_and_measure_take_are_none_of_our_business() -> None:
    """255 marks what does not count, as the validation data show."""

    def metric(model: Any, loader: Any) -> Tensor:
        return torch.cat([(model(x).argmax(1) == y).float() for x, y in loader])

    def loss(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], ignore_index=255)

    void = wrong_label(255)
    tried(train=void, validation=void, test=void, metric=metric, loss=loss)


def test_another_runtime_that_fails_is_only_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.jobs import preflight

    def fails(runtime: str, *args: Any, **options: Any) -> Any:
        if runtime == "openvino":
            raise RuntimeError("no such operation")
        return gossamer.runtime.open_runner(runtime, *args, **options)

    monkeypatch.setattr("gossamer.jobs.exporting.runtimes", lambda goal: ["onnxruntime", "openvino"])
    monkeypatch.setattr(preflight, "open_runner", fails)
    notes = Notes()
    tried(context=Context(progress=notes))
    assert len(notes.said) == 1 and "openvino does not run this network" in notes.said[0]


def test_a_refused_job_leaves_no_work_and_one_that_goes_on_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="the test data of text, batch 1: label 7"):
        gossamer.compress(Text(), task(test=wrong_label(7)), goal=GOAL, out=tmp_path / "a")
    assert not (tmp_path / "a" / "work").exists()
    (tmp_path / "b" / "work").mkdir(parents=True)
    (tmp_path / "b" / "work" / "journal.json").write_text("{}")
    monkeypatch.setattr("gossamer.jobs.job.preflight", lambda *args, **options: pytest.fail("tried again"))
    with pytest.raises(gossamer.GossamerError, match="is damaged"):
        gossamer.compress(Text(), task(), goal=GOAL, out=tmp_path / "b")


def test_a_student_is_tried_before_it_learns(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the test data of text, batch 1: label 7"):
        gossamer.distill(Text(), Text(), task(test=wrong_label(7)), out=tmp_path)
    assert not (tmp_path / "work").exists()


def test_every_shape_is_found_in_whatever_gives_it() -> None:
    batches = text(5, 6, 5, 7)
    assert [one.number for one in probe_loader(batches).batches()] == [0, 1, 3]
    data = TensorDataset(torch.zeros(10, 4), torch.arange(10) % 4)
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state()
    found = probe_loader(loader)
    assert sorted(shape[0] for shape in found.by_shape) == [(2, 4), (4, 4)] and (found.low, found.high) != (None, None)
    assert found.low is not None and found.high is not None and (found.low[0], found.high[0]) == (0, 3)
    assert torch.equal(generator.get_state(), before)
    assert [shape[0] for shape in probe_loader(DataLoader(data, batch_size=None)).by_shape] == [(4,)]


class Stream:
    """Batches that can only be gone through."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        return iter(text(5, 6, 7))


def test_of_many_shapes_the_ends_are_kept() -> None:
    lengths = [30, 4, *range(40, 20, -1), 2, 17]
    found = probe_loader(text(*lengths)).batches()
    assert len(found) == MOST_SHAPES
    kept = [one.batch[0].shape[1] for one in found]
    assert {30, 2, 40, 17} <= set(kept) and kept[0] == 30
    assert [one.batch[0].shape[1] for one in probe_loader(Stream()).batches()] == [5, 6, 7]
