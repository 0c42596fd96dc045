"""Folders of images."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gossamer.core.preprocessing import Preprocessing
from gossamer.data import images, load_task
from gossamer.data.images import ImageFiles, decode_image
from gossamer.errors import BadInput, CorruptFile
from gossamer.measure import evaluate, has_labels, judged_by


def form(size: int, mode: str = "RGB", **more: Any) -> Preprocessing:
    """How images are read here."""
    channels = 3 if mode == "RGB" else 1
    return Preprocessing(size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels, **more)


def paint(path: Path, value: int, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in "L1" else (value,) * len(mode)).save(path)
    return path


def paint_classes(root: Path, start: int, each: int, mode: str = "RGB") -> Path:
    """`each` images for two classes, every one of its own grey value."""
    for number in range(2 * each):
        paint(root / ("cat" if number < each else "dog") / f"{number:03}.png", start + number, mode=mode)
    return root


def values(loader: Any) -> list[int]:
    """The grey values of the images that come, after undoing the normalisation of the first channel."""
    batches = [batch if isinstance(batch, Tensor) else batch[0] for batch in loader]
    return [round(float(v) * 255) for x in batches for v in x[:, 0, 4, 4] * 0.229 + 0.485]


def test_class_folders_alone_are_split_the_same_way_every_time(tmp_path: Path) -> None:
    paint_classes(tmp_path, 10, 20)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("not looked at")
    (tmp_path / "cat" / "notes.txt").write_text("not looked at")
    task, again = (load_task(tmp_path, size=8, batch_size=4, seed=s) for s in (0, 1))
    assert task.classes == ("cat", "dog")
    assert task.name == tmp_path.name
    test, validation = values(task.test), values(task.validation)
    assert len(test) == 6
    assert len(validation) == 3
    assert len(set(test) | set(validation) | set(values(task.calibration))) == 40
    assert values(again.test) == test
    assert values(again.validation) == validation
    for x, y in task.test:
        assert [v >= 30 for v in values([x])] == (y == 1).tolist()


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, start, each in (("train", 0, 6), ("valid", 100, 2), ("test", 200, 3)):
        paint_classes(tmp_path / name, start, each)
    task = load_task(str(tmp_path), size=8, batch_size=4)
    assert values(task.test) == [200, 201, 202, 203, 204, 205]
    assert values(task.validation) == [100, 101, 102, 103]
    assert sorted(values(task.calibration)) == list(range(12))
    fewer = load_task(tmp_path, size=8, validation=4)
    assert len(set(values(fewer.validation)) & set(range(12))) == 4


def test_a_missing_split_is_cut_from_training(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", 0, 20)
    paint_classes(tmp_path / "val", 100, 2)
    task = load_task(tmp_path, size=8)
    assert values(task.validation) == [100, 101, 102, 103]
    assert len(values(task.test)) == 6
    assert set(values(task.test)).isdisjoint(values(task.calibration))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("boat", "train"):
        for number in range(10):
            paint(tmp_path / name / f"{number}.png", number)
    assert load_task(tmp_path, size=8).classes == ("boat", "train")


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    paint_classes(tmp_path / "grey", 0, 10, mode="L")
    paint_classes(tmp_path / "mixed", 0, 10, mode="L")
    paint(tmp_path / "mixed" / "cat" / "colour.png", 9)
    assert load_task(tmp_path / "grey", size=8).example_inputs[0].shape == (2, 1, 8, 8)
    assert load_task(tmp_path / "mixed", size=8).example_inputs[0].shape[1:] == (3, 8, 8)


def test_the_shorter_side_is_scaled_and_the_middle_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    pixels[:4, 8:16, 1] = 100
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert torch.equal(
        decode_image(tmp_path / "wide.png", form(8, "RGB")), torch.from_numpy(pixels[:, 8:16]).permute(2, 0, 1)
    )
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    tall = torch.from_numpy(pixels.transpose(1, 0, 2)[8:16].copy()).permute(2, 0, 1)
    assert torch.equal(decode_image(tmp_path / "tall.png", form(8, "RGB")), tall)
    assert decode_image(tmp_path / "wide.png", form(5, "L")).shape == (1, 5, 5)
    assert int(decode_image(tmp_path / "wide.png", form(2, "RGB"))[0].min()) > 150


@pytest.mark.parametrize(
    ("sizes", "side"), [([(32, 32)] * 2, 32), ([(32, 32), (32, 31)], 224), ([(300, 300)] * 2, 224)]
)
def test_equal_small_squares_keep_their_size(tmp_path: Path, sizes: list[tuple[int, int]], side: int) -> None:
    for number, name in enumerate(("cat", "dog") * 10):
        paint(tmp_path / name / f"{number}.png", number, size=sizes[number % 2])
    assert load_task(tmp_path).example_inputs[0].shape[2:] == (side, side)


def test_a_folder_without_augmentation_gives_every_image_as_it_is(tmp_path: Path) -> None:
    paint_classes(tmp_path, 10, 20)
    shifted, plain = (
        [float(image[0].std()) > 1e-3 for x, _ in load_task(tmp_path, size=8, augment=choice).train for image in x]
        for choice in (True, False)
    )
    assert any(shifted) and not any(plain)


def test_the_orientation_of_a_camera_is_followed(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = decode_image(tmp_path / "a.png", form(8, "L"))
    assert image[0, 7].eq(255).all()
    assert not image[0, :7].any()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_usual_kind_of_image_is_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (9, 9)).save(path)
    assert decode_image(path, form(8, "RGB")).shape == (3, 8, 8)


def test_images_are_decoded_once_if_they_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [paint(tmp_path / f"{n}.png", n) for n in range(5)]
    decoded: list[str] = []

    def counting(path: Path, form: Preprocessing, most: float) -> Tensor:
        decoded.append(path.name)
        return decode_image(path, form, most)

    monkeypatch.setattr(images, "decode_image", counting)
    files = ImageFiles(paths, form(4))
    for _ in range(2):
        assert files[torch.tensor([3, 1, 3])][:, 0, 0, 0].tolist() == [3, 1, 3]
    assert sorted(decoded) == ["1.png", "3.png"]
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    uncached = ImageFiles(paths, form(4))
    for _ in range(2):
        assert uncached[torch.tensor([3, 1])][:, 0, 0, 0].tolist() == [3, 1]
    assert len(decoded) == 6
    assert torch.equal(pickle.loads(pickle.dumps(uncached))[torch.tensor([2])], uncached[torch.tensor([2])])


def test_an_unreadable_image_is_named_before_training_starts(tmp_path: Path) -> None:
    paint_classes(tmp_path, 0, 10)
    (tmp_path / "dog" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(CorruptFile, match=r"dog/broken\.jpg is not an image that can be read"):
        load_task(tmp_path, size=8)


def test_an_image_that_ends_early_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptFile, match=r"a\.png is not an image"):
        decode_image(path, form(8, "RGB"))


def test_folders_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"must hold a folder of images for every class, at least two; it holds 0"):
        load_task(tmp_path)
    paint(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(BadInput, match="it holds 1 folders"):
        load_task(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(BadInput, match=r"dog holds no images \(\.bmp"):
        load_task(tmp_path)


def test_images_without_class_folders_are_a_task_without_labels(tmp_path: Path) -> None:
    for number in range(12):
        paint(tmp_path / ("deeper" if number % 2 else "") / f"{number:03}.png", 10 + number, size=(8, 8))
    # A folder inside is a class folder; without images directly in the folder there is no doubt.
    flat = tmp_path / "deeper"
    with pytest.raises(BadInput, match="6 images without class folders are too few to check anything by; 8 do"):
        load_task(flat)
    for number in range(6):
        paint(flat / f"more{number}.png", 100 + number, size=(8, 8))
    task, again = (load_task(flat, batch_size=4, seed=s) for s in (0, 1))
    splits = [values(loader) for loader in (task.train, task.validation, task.test)]
    assert [len(split) for split in splits] == [4, 3, 3]  # training leaves out its last batch, which is not whole
    assert not set(splits[1]) & set(splits[2]) and not set(splits[0]) & set(splits[1] + splits[2])
    assert values(again.test) == splits[2] and set(values(task.calibration)) >= set(splits[0])
    assert all(isinstance(batch, Tensor) for batch in task.validation) and task.classes == ()
    with pytest.raises(BadInput, match="the data have no labels"):
        evaluate(torch.nn.Identity(), task)


@torch.no_grad()
def test_a_network_judges_data_without_labels(tmp_path: Path) -> None:
    for number in range(8):
        paint(tmp_path / f"{number}.png", 30 * number, size=(8, 8))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    task = load_task(tmp_path)
    assert not has_labels(task)
    judged = judged_by(task, network)
    network[1].weight.data.zero_()  # what judges is a copy
    assert judged.metric.name == "agreement" and evaluate(network, judged).value < 1
    batch = next(iter(judged.train))
    assert float(judged.loss(network, batch).detach()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(network(batch), judged.metric.reference(batch).argmax(1)))  # type: ignore[attr-defined]
    )


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", 0, 6)
    paint(tmp_path / "test" / "cat" / "a.png", 1)
    paint(tmp_path / "test" / "cow" / "a.png", 1)
    with pytest.raises(BadInput, match=r"test must hold the class folders cat, dog, it has \('cat', 'cow'\)"):
        load_task(tmp_path)


def test_images_deeper_than_those_of_training_are_found_when_the_folder_is_read(tmp_path: Path) -> None:
    for split, deep in (("train", False), ("val", False), ("test", True)):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(3):
                values = np.full((8, 8), 60_000 if deep else 60, np.uint16 if deep else np.uint8)
                Image.fromarray(values).save(tmp_path / split / label / f"{number}.png")
    with pytest.raises(CorruptFile, match="6 images cannot be used") as error:
        load_task(tmp_path)
    assert "its values go beyond 255, those of the training images do not" in str(error.value)
