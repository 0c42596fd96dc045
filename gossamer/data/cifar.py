"""The archives of CIFAR-10 and CIFAR-100, binary or Python version. Their pickles are read with restrictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.data.arrays import DataSplit
from gossamer.data.formats import Published, read_members, to_tensor
from gossamer.data.unpickle import load_arrays
from gossamer.errors import CorruptFile


def read_cifar10(paths: Sequence[Path]) -> Published:
    """CIFAR-10 in its binary or its Python version, as the archive or as the unpacked folder."""
    batches = [f"data_batch_{n}" for n in range(1, 6)]
    return _read_cifar(
        paths[0], batches, "test_batch", label_bytes=1, key="labels", names=("batches.meta", "label_names")
    )


def read_cifar100(paths: Sequence[Path]) -> Published:
    """CIFAR-100 with its 100 fine classes, binary or Python version, as the archive or as the unpacked folder."""
    return _read_cifar(
        paths[0], ["train"], "test", label_bytes=2, key="fine_labels", names=("meta", "fine_label_names")
    )


def _read_cifar(
    path: Path, train: list[str], test: str, *, label_bytes: int, key: str, names: tuple[str, str]
) -> Published:
    if "python" in path.name or path.name.endswith("-py"):
        raw = read_members(path, [*train, test, names[0]])
        meta = load_arrays(raw[names[0]], f"{path}: {names[0]}").get(names[1], [])
        classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in meta)
        parts = {n: _cifar_dictionary(load_arrays(raw[n], f"{path}: {n}"), key, f"{path}: {n}") for n in [*train, test]}
    else:
        text = f"{names[0]}.txt" if label_bytes == 1 else f"{names[1]}.txt"
        raw = read_members(path, [*(f"{n}.bin" for n in train), f"{test}.bin", text])
        classes = tuple(raw[text].decode("latin1").split())
        parts = {n: _cifar_rows(raw[f"{n}.bin"], label_bytes, f"{path}: {n}.bin") for n in [*train, test]}
    images = torch.cat([parts[n].images for n in train])  # type: ignore[misc]
    labels = torch.cat([parts[n].labels for n in train])
    return Published(train=DataSplit(images=images, labels=labels), test=parts[test], classes=classes)


def _cifar_rows(raw: bytes, label_bytes: int, where: str) -> DataSplit:
    """Records of label bytes (the last one is the fine label) and 3x32x32 pixels."""
    size = label_bytes + 3072
    if not raw or len(raw) % size:
        raise CorruptFile(f"{where} is truncated: {len(raw)} bytes are not a multiple of the {size} of one image")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
    labels = torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64))
    return DataSplit(images=to_tensor(rows[:, label_bytes:].reshape(-1, 3, 32, 32)), labels=labels)


def _cifar_dictionary(content: dict[str, Any], key: str, where: str) -> DataSplit:
    data, labels = content.get("data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise CorruptFile(f"{where}: 'data' must be a uint8 array of shape (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(n, int) for n in labels):
        raise CorruptFile(f"{where}: {key!r} must be a list of {len(data)} integers")
    return DataSplit(images=to_tensor(data.reshape(-1, 3, 32, 32)), labels=torch.tensor(labels, dtype=torch.int64))
