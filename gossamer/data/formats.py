"""The files that the data sets are published in, read into tensors."""

import gzip
import math
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gossamer.data.arrays import DataSplit, cut
from gossamer.errors import CorruptFile, first_line, require

IDX_UINT8 = 8
DIGITS_TEST = 400
AGAIN = "delete it and get it again"
# No data set that is read whole comes near; a hostile header does.
MOST_BYTES = 2**32
DRAIN = 2**20
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set as published: training and test split. classes is empty where the files do not name them."""

    train: DataSplit
    test: DataSplit
    classes: tuple[str, ...] = ()


def read_idx_set(paths: Sequence[Path]) -> Published:
    """MNIST and its kin: training images and labels, test images and labels."""
    images, labels, test_images, test_labels = (read_idx(p, 3 if "images" in p.name else 1) for p in paths)
    return Published(
        train=DataSplit(images=images.unsqueeze(1), labels=labels.long()),
        test=DataSplit(images=test_images.unsqueeze(1), labels=test_labels.long()),
    )


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A uint8 array in the IDX format of MNIST, plain or gzipped: big-endian sizes, then the values."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:2] != b"\0\0":
                raise CorruptFile(f"{path} is not an IDX file, or it is truncated; {AGAIN}")
            if head[2] != IDX_UINT8 or head[3] != dimensions:
                raise CorruptFile(
                    f"{path} must hold bytes in {dimensions} dimensions, it has type {head[2]}, {head[3]}"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            if math.prod(shape) > MOST_BYTES:
                raise CorruptFile(f"{path}: its header says {shape}, that is more than {MOST_BYTES} bytes; {AGAIN}")
            values = file.read(math.prod(shape) + 1)
    except DAMAGE as error:
        raise CorruptFile(f"{path} is truncated or damaged: {first_line(error)}; {AGAIN}") from error
    if len(values) != math.prod(shape):
        have = f"only {len(values)}" if len(values) < math.prod(shape) else "more"
        raise CorruptFile(f"{path}: its header says {shape}, it holds {have} values; {AGAIN}")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape).copy())


def read_svhn(paths: Sequence[Path]) -> Published:
    """SVHN, cropped digits: training and test file, MATLAB arrays X (32, 32, 3, N) and y (N, 1) with 10 for zero."""
    train, test = (_read_mat(path) for path in paths)
    return Published(train=train, test=test)


def _read_mat(path: Path) -> DataSplit:
    from scipy.io import loadmat  # slow to import, needed here only

    try:
        arrays = loadmat(path, variable_names=("X", "y"))
    # scipy documents no exceptions, and a damaged file raises many kinds.
    except Exception as error:
        raise CorruptFile(f"{path} is not a MATLAB file, or it is damaged: {first_line(error)}; {AGAIN}") from error
    images, labels = arrays.get("X"), arrays.get("y")
    if images is None or labels is None or images.ndim != 4 or images.shape[3] != labels.size:
        raise CorruptFile(f"{path} must hold X of shape (32, 32, 3, N) and y with N labels")
    target = torch.from_numpy(labels.astype(np.int64).reshape(-1))
    return DataSplit(images=to_tensor(images.transpose(3, 2, 0, 1)), labels=target.where(target != 10, 0))


def read_members(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Files by name, from a folder, or from a gzipped tar archive read once from front to back; nothing is unpacked."""
    wanted, found = set(names), {}
    if path.is_dir():
        found = {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
    else:
        try:
            with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in wanted and member.isfile() and member.size <= MOST_BYTES:
                        file = archive.extractfile(member)
                        found[name] = file.read() if file else b""
                while unzipped.read(DRAIN):
                    pass  # to its end, where the checksum is
        except DAMAGE as error:
            raise CorruptFile(f"{path} is truncated or damaged: {first_line(error)}; {AGAIN}") from error
    if missing := sorted(wanted - found.keys()):
        raise CorruptFile(f"{path} lacks {', '.join(missing)}; {AGAIN}")
    return found


def read_digits(_: Sequence[Path]) -> Published:
    """scikit-learn's 1,797 embedded digits of 8x8 pixels, of which 400 are held out for the test.

    Enlarged to 28x28 once (bilinear), so that every network of the zoo takes them.
    """
    load_digits = require("sklearn.datasets").load_digits  # slow to import, needed here only

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(small, size=(28, 28), mode="bilinear").round().to(torch.uint8)
    target = torch.from_numpy(labels).long()
    kept, taken = cut(target, DIGITS_TEST, "digits, test")
    return Published(
        train=DataSplit(images=large[kept], labels=target[kept]),
        test=DataSplit(images=large[taken], labels=target[taken]),
    )


def to_tensor(values: NDArray[Any]) -> Tensor:
    """In C order and writable, copied only where it is not so already."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
