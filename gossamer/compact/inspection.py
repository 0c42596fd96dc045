"""`gossamer inspect`: what a `.gsr` file holds, and what each tensor costs."""

from dataclasses import dataclass
from pathlib import Path

from gossamer.compact.reading import opened, read_tensors
from gossamer.compact.writing import entropy_bytes
from gossamer.core.kinds import checked_arguments
from gossamer.gsr.format.header import TensorEntry
from gossamer.gsr.format.stored_values import Codes, Coding


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor in a compact file.

    Args:
        name: as in the state_dict.
        dtype: of the tensor that comes back.
        shape: of the tensor that comes back.
        coding: how it is stored, in lower case ("grid", "codebook").
        bytes: its part of the payloads; integers by their share of their section's order-0 entropy, because a section
            is coded as a whole.
        bits_per_weight: 8 x bytes over the number of elements.
        share: of all bytes of the file, in [0, 1].
        density: share of elements that are not zero, in [0, 1].
        entropy_bytes: the order-0 bound of its integers, with steps and codebook.

    Example:
        >>> import tempfile, gossamer
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [weight, bias] = gossamer.inspect_file(gossamer.save(nn.Linear(2, 3), f"{folder}/model.gsr")).tensors
        >>> weight.name, weight.shape, weight.dtype
        ('weight', (3, 2), 'float32')
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    coding: str
    bytes: float
    bits_per_weight: float
    share: float
    density: float
    entropy_bytes: float


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A compact file and what its parts cost.

    Args:
        file: its path.
        file_bytes: its size.
        header_bytes: names, shapes, graph, directory of the sections and checksums.
        dense_bytes: the same tensors as they are in memory.
        has_graph: whether it can be loaded without the class of the network.
        tensors: one row for each, in the order of the file.

    Example:
        >>> found = Inspected(
        ...     file="m.gsr", file_bytes=90, header_bytes=60, dense_bytes=32, has_graph=False, tensors=()
        ... )
        >>> found.file_bytes
        90
    """

    file: str
    file_bytes: int
    header_bytes: int
    dense_bytes: int
    has_graph: bool
    tensors: tuple[StoredTensor, ...]


@checked_arguments
def inspect_file(path: Path | str) -> Inspected:
    """Tell what each tensor of a `.gsr` file is stored as, and what it costs. Decodes the whole file.

    Args:
        path: the file.

    Returns:
        Sizes of the file and a row for each tensor.

    Raises:
        CorruptFile: with the damaged section.

    Example:
        >>> import tempfile, gossamer
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = gossamer.save(nn.Linear(2, 3), f"{folder}/model.gsr")
        ...     [row.name for row in inspect_file(path).tensors]
        ['weight', 'bias']
    """
    path = Path(path)
    with opened(path) as file:
        header, size = file.header, path.stat().st_size
        costs = [_Cost() for _ in header.entries]
        for number, section in enumerate(file.coded):
            _share_out(section.length, [(costs[p.tensor], q) for p, q in zip(file.pieces[number], file.codes(number))])
        tensors = read_tensors(file)
    rows = []
    for name, entry, cost in zip(header.names[: header.shown], header.entries, costs):
        parts = entry.generated.parts if entry.generated else []
        floats = entry.float_bytes + sum(header.entries[part].float_bytes for part in parts)
        stored = floats + cost.coded + sum(costs[part].coded for part in parts)
        rows.append(
            StoredTensor(
                name=name,
                dtype=str(entry.dtype).removeprefix("torch."),
                shape=entry.shape,
                coding=_coding(entry, cost.signs, header.names[entry.same]),
                bytes=stored,
                bits_per_weight=8 * stored / max(1, entry.elements),
                share=stored / size,
                density=int(tensors[name].count_nonzero()) / max(1, entry.elements),
                entropy_bytes=floats + cost.bound + sum(costs[part].bound for part in parts),
            )
        )
    return Inspected(
        file=str(path),
        file_bytes=size,
        header_bytes=file.header_bytes,
        dense_bytes=sum(entry.bytes for entry in header.entries[: header.named]),
        has_graph=header.graph is not None,
        tensors=tuple(rows),
    )


@dataclass
class _Cost:
    """Of a tensor's integers. coded: bytes of payload; bound: order-0 entropy; signs: whether all are 1 or -1."""

    coded: float = 0.0
    bound: float = 0.0
    signs: bool = True


def _share_out(length: int, parts: list[tuple[_Cost, Codes]]) -> None:
    """Share a section's bytes out, by entropy and a little by size, as zero entropy costs something too."""
    bounds = [entropy_bytes(q) for _, q in parts]
    weights = [bound + 1e-6 * q.size for bound, (_, q) in zip(bounds, parts)]
    for (cost, q), bound, weight in zip(parts, bounds, weights):
        cost.bound += bound
        cost.coded += length * weight / sum(weights)
        cost.signs &= bool((abs(q) == 1).all())


def _coding(entry: TensorEntry, signs: bool, same: str) -> str:
    if entry.generated:
        return entry.generated.rule.name.lower()
    match entry.coding:
        case Coding.SAME:
            return f"same as {same}"
        case Coding.GRID if signs:
            return "signs"
        case Coding.ROWS:
            return "grid per row"
        case _:
            return entry.coding.name.lower()
