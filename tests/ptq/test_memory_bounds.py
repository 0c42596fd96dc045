"""What bounds memory on large images: batches of the data, chunks of the calibration, what is kept of the files."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from gossamer.data import DataSplit, Normalisation, make_task
from gossamer.data.batches import largest_batch
from gossamer.ptq import activation_ranges
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.sessions import open_session


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    return export_onnx(net, (torch.zeros(2, 1, 6, 6),), tmp_path_factory.mktemp("net") / "net.onnx")


BATCHES = [torch.randn(size, 1, 6, 6, generator=torch.Generator().manual_seed(size)) for size in (40, 7)]


@pytest.mark.parametrize(("most", "sizes"), [(2**27, [32, 8, 7]), (3 * 4 * 5, [5] * 8 + [5, 2]), (1, [1] * 47)])
def test_a_chunk_has_as_many_samples_as_give_what_is_allowed(
    network: Path, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(activation_ranges, "CHUNK_BYTES", most)
    session = open_session(network, threads=1)
    chunks = [feed["input"] for feed in activation_ranges.feeds(session, BATCHES)]
    assert [len(chunk) for chunk in chunks] == sizes
    assert (torch.cat([torch.from_numpy(chunk) for chunk in chunks]) == torch.cat(BATCHES)).all()
    assert sum(len(feed["input"]) for feed in activation_ranges.feeds(session, BATCHES, 43)) == 43


def test_what_was_seen_does_not_depend_on_the_chunks(
    network: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = onnx.load(network)
    whole = activation_ranges.observe(model, BATCHES, tmp_path, threads=1)
    monkeypatch.setattr(activation_ranges, "CHUNK_BYTES", 500)
    parts = activation_ranges.observe(model, BATCHES, tmp_path, threads=1)
    assert whole.keys() == parts.keys()
    for name, one in whole.items():
        assert (one.low, one.high) == pytest.approx((parts[name].low, parts[name].high), rel=1e-5)
        assert one.counts.sum() == parts[name].counts.sum()
        assert abs(one.counts - parts[name].counts).sum() <= 4


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 3, 224, 224), 8), ((9, 1, 224, 224), 24), ((1, 3, 32, 32), 392), ((1, 3, 5000, 5000), 1)]
)
def test_batches_of_large_images_are_small(shape: tuple[int, ...], size: int) -> None:
    assert largest_batch(shape) == size


@pytest.mark.parametrize(("asked", "train", "held_out"), [(None, 3, 3), (5, 5, 3), (2, 2, 2)])
def test_a_training_step_is_as_large_as_asked_for_and_measuring_never_larger_than_fits(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, train: int, held_out: int
) -> None:
    monkeypatch.setattr("gossamer.data.batches.BATCH_NUMBERS", 3 * 16)
    split = DataSplit(images=torch.zeros(40, 1, 4, 4), labels=torch.arange(40) % 2)
    task = make_task(
        "zeros", train=split, test=split, classes=("a", "b"), validation=10, batch_size=asked,
        normalisation=Normalisation(mean=(0.0,), std=(1.0,)),
    )  # fmt: skip
    assert len(next(iter(task.train))[0]) == train
    assert [len(next(iter(loader))[0]) for loader in (task.validation, task.test)] == [held_out] * 2
    assert len(next(iter(task.calibration))) == held_out
