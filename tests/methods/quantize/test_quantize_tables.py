"""Embeddings in the methods of quantization: half of a text network's bytes."""

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.compact.reading import load
from gossamer.compact.writing import save
from gossamer.constraints.apply import materialize
from gossamer.constraints.weights import weights_of
from gossamer.core.task import Task
from gossamer.methods.quantize.adaround import AdaRound
from gossamer.methods.quantize.lsq import LearnedStepSize
from gossamer.methods.quantize.uniform import UniformQuantization

WORDS, WIDTH = 40, 8


class Text(nn.Module):
    """Words whose mean decides between three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Linear(WIDTH, 3)
        self.words.weight.data *= torch.logspace(-3, 0, WORDS)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Tied(nn.Module):
    """A table that the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


def task() -> Task:
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randint(WORDS, (16, 5), generator=g), torch.randint(3, (16,), generator=g)) for _ in range(3)]
    return Task.from_loaders(batches, batches, batches, calibration=[x for x, _ in batches])


def test_tables_are_found_where_they_are_asked_for_and_a_shared_one_by_the_name_of_the_layer() -> None:
    assert list(weights_of(Text())) == ["head.weight"]
    assert list(weights_of(Text(), tables=True)) == ["head.weight", "words.weight"]
    assert list(weights_of(Text(), ["words"], tables=True)) == ["words.weight"]
    assert list(weights_of(Tied(), tables=True)) == ["head.weight"]


@pytest.mark.parametrize("method", [UniformQuantization(bits=4), AdaRound(bits=4, iterations=5, batches=1)])
def test_every_row_of_a_table_has_a_step_of_its_own(method: gossamer.methods.Method) -> None:
    model = Text().eval()
    quantized, edits = method(model, task())
    assert {edit.target for edit in edits} == {"words.weight", "head.weight"}
    before, after = model.words.weight.detach(), materialize(quantized).get_parameter("words.weight").detach()
    step = before.abs().amax(1, keepdim=True) / 7
    assert ((after - before).abs() <= step * 0.5001).float().mean() > 0.9 and (after[0] == 0).all()
    assert max(len(row.unique()) for row in after) <= 15
    assert (after - before).square().sum() < 0.02 * before.square().sum()


def test_a_table_takes_fewer_bytes_and_comes_back_as_it_was(tmp_path) -> None:
    model = Text().eval()
    model.words = nn.Embedding(2000, WIDTH)
    quantized, _ = UniformQuantization(bits=4)(model)
    size = save(quantized, tmp_path / "net.gsr").stat().st_size
    assert size < 2000 * (WIDTH * 4 / 8 + 4) * 1.1  # codes and a step of a row, in bytes
    loaded = Text()
    loaded.words = nn.Embedding(2000, WIDTH)
    loaded = load(tmp_path / "net.gsr", loaded)
    assert torch.equal(loaded.words.weight, materialize(quantized).get_parameter("words.weight"))


def test_steps_of_tables_are_trained() -> None:
    model = Text().eval()
    quantized, _ = LearnedStepSize(bits=3, epochs=1, lr=0.01)(model, task())
    assert len(materialize(quantized).get_parameter("words.weight").unique()) <= 8
    assert not torch.equal(quantized.get_parameter("head.bias"), model.head.bias)
