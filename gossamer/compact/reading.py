"""`gossamer.load`: the network of a `.gsr` file, or its tensors into a network of the user's class."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.compact.network import Network
from gossamer.core.copies import check_network
from gossamer.core.kinds import checked_arguments
from gossamer.errors import BadInput, CorruptFile, no_file, unknown
from gossamer.gsr.format.file import GsrFile
from gossamer.gsr.format.ledger import Limit
from gossamer.gsr.format.source import OnDisk
from gossamer.gsr.format.stream import damaged
from gossamer.gsr.format.tensors import Tensors
from gossamer.modules.replay import restore
from gossamer.modules.structure import Structure

OTHERS = {  # what reads files that are mistaken for a .gsr file
    ".onnx": "gossamer.onnx_import.import_onnx",
    ".pt2": "gossamer.runtime.load_pt2",
    ".safetensors": "gossamer.load_weights(model, path)",
    ".pt": "gossamer.load_weights(model, path)",
    ".pth": "gossamer.load_weights(model, path)",
}


@checked_arguments
def load(path: Path | str, into: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Load the network of a `.gsr` file, in eval mode and callable without its class. Nothing in the file is executed.

    Args:
        path: the file. It is read whole; what happens to it later does not matter.
        into: put the tensors into this network instead, in place; it keeps its own dtypes. Where the file is of a
            compressed network, that may be the network as it was before: it gets the compressed structure.
        dtype: convert the floating-point tensors, for example to torch.float16.

    Returns:
        The network; `into` itself where it was given.

    Raises:
        CorruptFile: with the damaged section.
        BadInput: where the file and the network do not fit.

    Example:
        >>> import tempfile, torch, gossamer
        >>> from torch import nn
        >>> model, x = nn.Linear(2, 3).eval(), torch.ones(1, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same = load(gossamer.save(model, f"{folder}/model.gsr", (x,)))
        >>> torch.equal(same(x), model(x))
        True
    """
    path = Path(path)
    if into is not None:
        check_network(into)
    if into is not None and dtype is not None:
        raise BadInput("dtype converts a network that is loaded without its class; convert the other one itself")
    if dtype is not None and not dtype.is_floating_point:
        raise BadInput(f"dtype = {dtype}; floating-point tensors can only be converted to a floating-point dtype")
    with opened(path) as file:
        if into is None and file.header.graph is None:
            raise BadInput(
                f"{path} holds weights alone; load them into a network of their class: load(path, into=model)"
            )
        tensors = read_tensors(file)
        if into is None:
            return network(file, tensors, dtype)
        named = {name: tensors[name] for name in file.header.names[: file.header.named]}
        restore(into, named, Structure.parse(file.header.structure) if file.header.structure else None, str(path))
        return into


@checked_arguments
def read_tensor(path: Path | str, name: str) -> Tensor:
    """Read one tensor of a file; only the sections that store it are decoded.

    Args:
        path: the `.gsr` file.
        name: of the tensor, as in the state_dict.

    Returns:
        The tensor, on the CPU.

    Raises:
        CorruptFile: with the damaged section.
        BadInput: for a name that the file does not have.

    Example:
        >>> import tempfile, gossamer
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_tensor(gossamer.save(nn.Linear(2, 3), f"{folder}/model.gsr"), "weight").shape
        torch.Size([3, 2])
    """
    with opened(Path(path)) as file:
        names = file.header.names[: file.header.named]
        if name not in names:
            raise unknown("tensor", name, names)
        number = names.index(name)
        return Tensors(file, [number]).one(number)


@contextmanager
def opened(path: Path) -> Iterator[GsrFile]:
    """A file with its header checked. What is found to be wrong inside the block names the file."""
    if not path.is_file():
        raise no_file(path)
    try:
        with path.open("rb", buffering=0) as handle:
            data = OnDisk(handle)
            if not len(data):
                raise CorruptFile("it is empty")
            yield GsrFile(data)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except CorruptFile as error:
        other = OTHERS.get(path.suffix.lower(), "")
        raise CorruptFile(f"{path}: {error}{other and f'; {path.suffix} files are read by {other}'}") from error


def opened_bytes(data: bytes) -> Network:
    """The network of a file that is in memory."""
    file = GsrFile(data)
    return network(file, read_tensors(file), None)


def read_tensors(file: GsrFile) -> dict[str, Tensor]:
    """All tensors by name, in the order of the file; equal ones share their memory."""
    for section in file.sections:
        file.payload(section)  # all checksums before the first integer: a damaged file is refused quickly
    reading = Tensors(file, range(file.header.shown))
    return {name: reading.one(number) for number, name in enumerate(file.header.names[: file.header.shown])}


def network(file: GsrFile, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> Network:
    """The callable network of a file that holds a graph."""
    header = file.header
    if header.graph is None:
        raise damaged("header", "there is no graph")
    converted: dict[int, Tensor] = {}
    if dtype is not None:
        different = {id(t): t for t in tensors.values() if t.is_floating_point()}
        for tensor in different.values():
            file.ledger.charge(Limit.TENSORS, tensor.numel() * dtype.itemsize)
        converted = {key: tensor.to(dtype) for key, tensor in different.items()}
    names = header.names[: header.shown]
    parameters = [name not in header.buffers and number < header.named for number, name in enumerate(names)]
    stored = [converted.get(id(tensor), tensor) for tensor in tensors.values()]
    return Network(header.graph, names, stored, parameters, file_bytes=file.ledger.file_bytes)
