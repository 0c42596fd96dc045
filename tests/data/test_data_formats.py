"""The published formats, written here image by image and read back; damage and hostile files."""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from torch import Tensor

from gossamer.data import load_task
from gossamer.data.catalog import DATASETS
from gossamer.data.formats import Published, read_idx
from gossamer.data.unpickle import load_arrays
from gossamer.errors import BadInput, CorruptFile

Array = NDArray[Any]


def pixels(n: int, channels: int, side: int) -> Array:
    return np.random.default_rng(n).integers(0, 256, (n, channels, side, side), np.uint8)


def read(name: str, folder: Path) -> Published:
    data = DATASETS[name]
    return data.read([next(folder / n for n in (f.name, *f.also) if (folder / n).exists()) for f in data.files])


def check(found: Published, train: Array, train_labels: list[int], test: Array, test_labels: list[int]) -> None:
    for split, images, labels in ((found.train, train, train_labels), (found.test, test, test_labels)):
        assert isinstance(split.images, Tensor)
        assert torch.equal(split.images, torch.from_numpy(images))
        assert split.labels.tolist() == labels
        assert split.labels.dtype == torch.int64


# IDX


def idx(array: Array, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, zipped: bool = True, side: int = 28) -> tuple[Array, Array]:
    train, test = pixels(12, 1, side), pixels(6, 1, side)
    for part, images in (("train", train), ("t10k", test)):
        labels = (np.arange(len(images)) % 3).astype(np.uint8)
        for kind, raw in (("images-idx3-ubyte", idx(images[:, 0])), ("labels-idx1-ubyte", idx(labels))):
            if zipped:
                (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / f"{part}-{kind}").write_bytes(raw)
    return train, test


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_plain_and_gzipped(tmp_path: Path, zipped: bool) -> None:
    train, test = write_mnist(tmp_path, zipped=zipped)
    check(read("mnist", tmp_path), train, [0, 1, 2] * 4, test, [0, 1, 2] * 2)


def test_a_data_set_in_the_root_becomes_a_task(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    task = load_task("mnist", root=tmp_path, download=False, validation=3, batch_size=4)
    assert len(task.train) == 2
    assert task.name == "mnist"


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist", side=20)
    with pytest.raises(CorruptFile, match=r"mnist: training images must have .* = \(1, 28, 28\), .* \(1, 20, 20\)"):
        load_task("mnist", root=tmp_path, download=False, validation=3)


@pytest.mark.parametrize("keep", [0, 3, 10, 60])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_idx_files_are_refused(tmp_path: Path, keep: int, zipped: bool) -> None:
    raw = idx(pixels(2, 1, 28)[:, 0])
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes((gzip.compress(raw) if zipped else raw)[:keep])
    with pytest.raises(CorruptFile, match=rf"{path.name}.*get it again"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (idx(pixels(2, 1, 4)[:, 0]) + b"x", "it holds more values"),
        (idx(pixels(2, 1, 4)[:, 0])[:-1], "it holds only 31 values"),
        (idx(pixels(2, 1, 4)[:, 0], kind=13), "must hold bytes in 3 dimensions"),
        (idx(pixels(2, 1, 4)), "must hold bytes in 3 dimensions"),
        (b"PK" + bytes(30), "not an IDX file"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "more than"),
    ],
)
def test_idx_headers_that_lie_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(CorruptFile, match=message):
        read_idx(tmp_path / "a", 3)


def test_a_gzip_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(idx(pixels(2, 1, 4)[:, 0]))
    with pytest.raises(CorruptFile, match="truncated or damaged"):
        read_idx(tmp_path / "a.gz", 3)


# CIFAR

TEN = [f"class{n}" for n in range(10)]
HUNDRED = [f"class{n}" for n in range(100)]
TRAIN, TEST = pixels(15, 3, 32), pixels(4, 3, 32)
TRAIN_LABELS, TEST_LABELS = [n % 10 for n in range(15)], [9, 8, 7, 6]


def cifar10_binary() -> dict[str, bytes]:
    def rows(images: Array, labels: list[int]) -> bytes:
        return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels))

    files = {f"data_batch_{n + 1}.bin": rows(TRAIN[3 * n : 3 * n + 3], TRAIN_LABELS[3 * n :]) for n in range(5)}
    return files | {"test_batch.bin": rows(TEST, TEST_LABELS), "batches.meta.txt": "\n".join([*TEN, ""]).encode()}


def cifar10_python(protocol: int = 2) -> dict[str, bytes]:
    def batch(images: Array, labels: list[int]) -> bytes:
        return pickle.dumps({b"data": images.reshape(-1, 3072), b"labels": labels, b"batch_label": b"x"}, protocol)

    files = {f"data_batch_{n + 1}": batch(TRAIN[3 * n : 3 * n + 3], TRAIN_LABELS[3 * n : 3 * n + 3]) for n in range(5)}
    meta = pickle.dumps({b"label_names": [name.encode() for name in TEN]}, protocol)
    return files | {"test_batch": batch(TEST, TEST_LABELS), "batches.meta": meta}


def cifar100_binary() -> dict[str, bytes]:
    def rows(images: Array, labels: list[int]) -> bytes:
        return b"".join(bytes([19, label]) + image.tobytes() for image, label in zip(images, labels))

    names = "\n".join(HUNDRED).encode()
    return {"train.bin": rows(TRAIN, TRAIN_LABELS), "test.bin": rows(TEST, TEST_LABELS), "fine_label_names.txt": names}


def cifar100_python() -> dict[str, bytes]:
    def batch(images: Array, labels: list[int]) -> bytes:
        return pickle.dumps({"data": images.reshape(-1, 3072), "fine_labels": labels, "coarse_labels": labels}, 2)

    meta = pickle.dumps({"fine_label_names": HUNDRED, "coarse_label_names": []}, 2)
    return {"train": batch(TRAIN, TRAIN_LABELS), "test": batch(TEST, TEST_LABELS), "meta": meta}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"some-folder/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, raw in files.items():
        (path / name).write_bytes(raw)
    return path


FORMS = [
    ("cifar10", cifar10_binary, "cifar-10-binary.tar.gz", "cifar-10-batches-bin", TEN),
    ("cifar10", cifar10_python, "cifar-10-python.tar.gz", "cifar-10-batches-py", TEN),
    ("cifar100", cifar100_binary, "cifar-100-binary.tar.gz", "cifar-100-binary", HUNDRED),
    ("cifar100", cifar100_python, "cifar-100-python.tar.gz", "cifar-100-python", HUNDRED),
]


@pytest.mark.parametrize(("name", "files", "archive", "folder", "classes"), FORMS)
def test_cifar_archives_and_folders(
    tmp_path: Path, name: str, files: Callable[[], dict[str, bytes]], archive: str, folder: str, classes: list[str]
) -> None:
    write_archive(tmp_path / "a" / archive, files())
    write_folder(tmp_path / "b" / folder, files())
    for place in ("a", "b"):
        found = read(name, tmp_path / place)
        check(found, TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)
        assert list(found.classes) == classes


def test_cifar_becomes_a_task(tmp_path: Path) -> None:
    write_archive(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", cifar10_binary())
    task = load_task("cifar10", root=tmp_path, validation=4, download=False)
    assert task.classes == tuple(TEN)
    assert task.example_inputs[0].shape == (4, 3, 32, 32)


def test_a_cifar_label_out_of_range_is_refused(tmp_path: Path) -> None:
    files = cifar10_binary()
    files["test_batch.bin"] = b"\x0b" + files["test_batch.bin"][1:]
    write_archive(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", files)
    with pytest.raises(BadInput, match=r"cifar10, test: the label of image 0 is 11, must be in 0\.\.9"):
        load_task("cifar10", root=tmp_path, validation=4, download=False)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("name", "files", "archive"), [form[:3] for form in FORMS])
def test_truncated_archives_are_refused(
    tmp_path: Path, name: str, files: Callable[[], dict[str, bytes]], archive: str, share: float
) -> None:
    path = write_archive(tmp_path / archive, files())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CorruptFile, match=archive):
        read(name, tmp_path)


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    files = cifar10_binary()
    del files["data_batch_3.bin"]
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    with pytest.raises(CorruptFile, match=r"lacks data_batch_3\.bin"):
        read("cifar10", tmp_path)


def test_a_cut_off_record_is_refused(tmp_path: Path) -> None:
    files = cifar10_binary()
    files["test_batch.bin"] = files["test_batch.bin"][:-1]
    write_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    with pytest.raises(CorruptFile, match=r"test_batch\.bin is truncated: 12291 bytes"):
        read("cifar10", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"labels": [1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3072), np.float32), "labels": [1]},
        {"data": np.zeros((1, 3000), np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]},
    ],
)
def test_cifar_pickles_with_other_content_are_refused(tmp_path: Path, content: Any) -> None:
    write_archive(tmp_path / "cifar-10-python.tar.gz", cifar10_python() | {"data_batch_2": pickle.dumps(content, 2)})
    with pytest.raises(CorruptFile, match=r"data_batch_2: '(data|labels)' must be"):
        read("cifar10", tmp_path)


# Pickles

# As Python 2 with numpy 1 wrote them into the official archives.
OFFICIAL = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89U\x03abctbU\x06labelsq\x08]q\t(K\x05eu."
)


def test_the_official_pickles_of_python_2_are_read() -> None:
    found = load_arrays(OFFICIAL, "here")
    assert found["data"].tolist() == [[97, 98, 99]]
    assert found["labels"] == [5]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_arrays_of_any_number_type_and_order(protocol: int) -> None:
    arrays = {
        "a": np.arange(6, dtype=">i4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.array([True, False]),
    }
    found = load_arrays(pickle.dumps(arrays, protocol), "here")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "value",
    [
        Calls(Path.touch, Path("never")),
        Calls(eval, "__import__('pathlib').Path('never').touch()"),
        Calls(np.load, "never"),
        Calls(np.dtype, "O"),
        Calls(np.dtype, "i4,i4"),
        Calls(np.ndarray, (10**12,)),
        np.array([Calls(Path.touch, Path("never"))], dtype=object),
        np.zeros(2, dtype=[("a", "u1")]),
        Path("x"),
        frozenset({Path("x")}),
        np.float64(1.0),
    ],
)
def test_hostile_pickles_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        with pytest.raises(CorruptFile, match="here is not a pickle of plain arrays"):
            load_arrays(pickle.dumps({"data": value}, protocol), "here")
    assert not Path("never").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x02",
        b"garbage",
        b"cos\nsystem\n(S'touch never'\ntR.",
        b"cnumpy\nndarray\n(tR.",  # calls the marker
        b"\x80\x02}U\x01aC\xff.",
    ],
)
def test_hand_made_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptFile, match="here"):
        load_arrays(raw, "here")
    assert not Path("never").exists()


def test_a_pickle_cannot_change_what_it_may_call() -> None:
    with pytest.raises(CorruptFile, match="tries to change a function"):
        load_arrays(b"cnumpy.core.multiarray\n_reconstruct\n(dp0\nS'x'\nI1\nsb.", "here")


def is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str | bytes | int | float | None) for one in value)
    return is_plain([value]) or (type(value) is np.ndarray and value.dtype.kind in "biuf")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_what_a_damaged_pickle_still_gives_is_plain(flip: int) -> None:
    """A changed letter of a key or a number of a list cannot be seen, damage to what holds them can."""
    read = []
    for place in range(len(OFFICIAL)):
        damaged = OFFICIAL[:place] + bytes([OFFICIAL[place] ^ flip]) + OFFICIAL[place + 1 :]
        try:
            read.append(load_arrays(damaged, "here"))
        except CorruptFile as error:
            assert str(error).startswith("here ")
    assert 0 < len(read) < len(OFFICIAL) / 3 and all(is_plain(x) for found in read for x in found.values())


@pytest.mark.parametrize(
    "raw",
    [
        b"}U\x01acnumpy\ndtype\ns.",  # a function as a value
        b"}U\x01a]cnumpy.core.multiarray\n_reconstruct\nas.",  # in a list
        b"}U\x01acnumpy.core.multiarray\n_reconstruct\n)Rs.",  # an array without numbers
        b"}U\x01a]q\x00h\x00as.",  # a list in itself
    ],
)
def test_stand_ins_never_come_out(raw: bytes) -> None:
    with pytest.raises(CorruptFile, match="here is not a pickle of plain arrays"):
        load_arrays(raw, "here")


def test_a_pickle_of_something_else_than_a_dictionary_is_refused() -> None:
    with pytest.raises(CorruptFile, match="must hold a dictionary, it holds a list"):
        load_arrays(pickle.dumps([1]), "here")


# SVHN


def write_svhn(folder: Path) -> tuple[Array, Array]:
    folder.mkdir()
    train, test = pixels(12, 3, 32), pixels(5, 3, 32)
    for name, images in (("train_32x32.mat", train), ("test_32x32.mat", test)):
        labels = np.arange(1, len(images) + 1, dtype=np.uint8).clip(max=10)[:, None]
        savemat(folder / name, {"X": images.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
    return train, test


def test_svhn_files_with_ten_for_zero(tmp_path: Path) -> None:
    train, test = write_svhn(tmp_path / "svhn")
    check(read("svhn", tmp_path / "svhn"), train, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0], test, [1, 2, 3, 4, 5])
    task = load_task("svhn", root=tmp_path, validation=4, download=False)
    assert task.example_inputs[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_mat_files_are_refused(tmp_path: Path, share: float) -> None:
    write_svhn(tmp_path / "svhn")
    path = tmp_path / "svhn" / "test_32x32.mat"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CorruptFile, match=r"test_32x32\.mat"):
        read("svhn", tmp_path / "svhn")


@pytest.mark.parametrize("arrays", [{"X": np.zeros((2, 2)), "y": [1, 2]}, {"X": np.zeros((32, 32, 3, 2))}, {"y": [1]}])
def test_a_mat_file_without_the_arrays_is_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    write_svhn(tmp_path / "svhn")
    savemat(tmp_path / "svhn" / "train_32x32.mat", arrays)
    with pytest.raises(CorruptFile, match=r"train_32x32\.mat must hold X"):
        read("svhn", tmp_path / "svhn")
