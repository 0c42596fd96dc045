"""The files that the data sets are published in, read into tensors. Nothing is unpickled without restriction."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import CorruptFile

IDX_UINT8 = 8


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A uint8 array in the IDX format of MNIST, plain or gzipped: big-endian sizes, then the values."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:2] != b"\0\0":
                raise CorruptFile(f"{path} is not an IDX file")
            if head[2] != IDX_UINT8 or head[3] != dimensions:
                raise CorruptFile(
                    f"{path}: need uint8 values in {dimensions} dimensions, it has type {head[2]}, {head[3]}"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            values = file.read(math.prod(shape) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFile(f"{path} is truncated or damaged: {error}; delete it and get it again") from error
    if len(values) != math.prod(shape):
        have = "fewer" if len(values) < math.prod(shape) else "more"
        raise CorruptFile(f"{path}: its header says {shape}, it holds {have} values; delete it and get it again")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape).copy())
