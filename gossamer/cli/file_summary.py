"""What a file of weights holds: tensors, their types and sizes, and how much of the file they take."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gossamer.errors import BadInput, no_file


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """One tensor in a file. bytes: of its values, as they are stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A file and its tensors, in file order. The rest of the file is graph and metadata."""

    file: str
    file_bytes: int
    tensors: tuple[StoredWeights, ...]

    @property
    def other_bytes(self) -> int:
        return max(0, self.file_bytes - sum(t.bytes for t in self.tensors))


def read_contents(path: Path) -> Contents:
    """The tensors of a `.onnx`, `.pt2`, `.safetensors`, `.pt` or `.pth` file."""
    if not path.is_file():
        raise no_file(path)
    if path.suffix not in _READERS:
        raise BadInput(
            f"{path}: can look into .gsr, {', '.join(_READERS)} and result folders, not into this kind of file"
        )
    tensors, extra = _READERS[path.suffix](path)
    return Contents(file=str(path), file_bytes=path.stat().st_size + extra, tensors=tuple(tensors))


def _onnx(path: Path) -> tuple[list[StoredWeights], int]:
    """Initializers and constants; the second number is the size of a data file next to it."""
    from onnx import TensorProto

    from gossamer.runtime.onnx_read import outside_files, read_onnx, stored_bits

    model = read_onnx(path)
    graph = model.graph
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value")
    tensors = [
        StoredWeights(
            name=tensor.name,
            dtype=TensorProto.DataType.Name(tensor.data_type).lower(),
            shape=tuple(tensor.dims),
            bytes=math.ceil(math.prod(tensor.dims) * stored_bits(tensor.data_type) / 8),
        )
        for tensor in [*graph.initializer, *constants]
    ]
    return tensors, sum(file.stat().st_size for file in outside_files(model, path))


def _weights(path: Path) -> tuple[list[StoredWeights], int]:
    from gossamer.models.weights import read_weights

    return _stored(read_weights(path)), 0


def _pt2(path: Path) -> tuple[list[StoredWeights], int]:
    from gossamer.runtime.pt2.file import load_pt2

    return _stored({name.removeprefix("network."): t for name, t in load_pt2(path).state_dict().items()}), 0


def _stored(tensors: Mapping[str, Tensor]) -> list[StoredWeights]:
    return [
        StoredWeights(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            bytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in tensors.items()
    ]


_READERS: dict[str, Callable[[Path], tuple[list[StoredWeights], int]]] = {
    ".onnx": _onnx,
    ".pt2": _pt2,
    ".safetensors": _weights,
    ".pt": _weights,
    ".pth": _weights,
}
