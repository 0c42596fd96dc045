"""`gossamer.save`: a network as one `.gsr` file."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.capture import capture
from gossamer.compact.reading import opened_bytes
from gossamer.constraints.apply import constraints, materialize
from gossamer.core import record
from gossamer.core.batches import as_inputs
from gossamer.core.conditions import own_conditions
from gossamer.core.copies import check_network, state_of
from gossamer.core.kinds import checked_arguments
from gossamer.core.outputs import tensors as in_order
from gossamer.core.placement import evaluating
from gossamer.errors import BadInput, CorruptFile, ExportMismatch, unknown
from gossamer.gsr.codec.integers import Integers
from gossamer.gsr.codec.section import encode_section
from gossamer.gsr.format.file import MODES, GsrFile, build_file
from gossamer.gsr.format.float_grid import BLOCK
from gossamer.gsr.format.generated import GeneratedWeight
from gossamer.gsr.format.graph import DTYPES, Graph
from gossamer.gsr.format.header import FileHeader, constant_names, entry_of
from gossamer.gsr.format.ledger import Limit
from gossamer.gsr.format.packed import pack, worth_packing
from gossamer.gsr.format.stored_values import Coding, GeneratedEntry, Stored, as_stored, raw_bytes
from gossamer.modules.replay import structure_of
from gossamer.modules.structure import Structure

MEASURED = 1 << 14  # up to so many integers a coding's length is measured, not estimated
MOST_LAG = 64
FAST_GAIN = 0.75  # effort "fast" leaves floats as they are, so that they open at once, if all else takes more of them
BYTES_PER_BYTE = Limit.TENSORS.value[3]
Captured = tuple[Graph, list[Tensor]]  # a graph, and the constants that it makes
TOLD = {Coding.SPLIT: 6, Coding.PACKED: 4}  # bytes in the header, about


@checked_arguments
@own_conditions()
def save(
    model: nn.Module,
    path: Path | str,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    original: nn.Module | Structure | None = None,
    fold: bool = False,
    effort: str = "default",
    dynamic_batch: bool = True,
) -> Path:
    """Write a network as one small `.gsr` file. The network itself is not changed.

    Every tensor of its state_dict comes back bit by bit: what it is (few different values, a grid, signs, zeros) is
    read off its values, and the shortest coding is taken. Weights that are still constrained to values of a rule
    (`share.hashed`, `share.product`, `share.residual`) are stored as the numbers that the rule takes.

    Args:
        model: any network, constrained or not.
        path: the file; its folder must exist.
        example_inputs: a tensor, or a tuple of the network's positional arguments. With them, the file also holds the
            graph of eval mode, and `load(path)` gives a network without the class; without them only
            `load(path, into=model)` can read it.
        original: the network that this one was compressed from, or what `structure_of` gave; then
            `load(path, into=...)` can also fill a network like that one, which gets the structure of this one.
        fold: store two vectors for a BatchNorm instead of four (`fold_batch_norm`): its outputs change in their last
            bits, and the four tensors that come back are others.
        effort: "fast" needs no compiled code, and leaves dense floats as they are, so that they load at once; "max"
            takes more than twice as long as "default" on large networks, for about 0.3 % less; on small ones they give
            the same.
        dynamic_batch: the first dimension of every input that shares it with the first one is free.

    Returns:
        The path.

    Raises:
        BadInput: for a network that cannot be exported, with the operation in the way, and for one whose difference
            from the original is no plain data.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(nn.Linear(2, 3), f"{folder}/model.gsr", (torch.zeros(1, 2),)).name
        'model.gsr'
    """
    path = Path(path)
    if effort not in MODES:
        raise unknown("effort", effort, MODES)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    check_network(model)
    inputs = None if example_inputs is None else as_inputs(example_inputs, "save (None stores the weights alone)")
    generated = {name: how for name, stack in constraints(model).items() if (how := stack[-1].generated())}
    if constraints(model):
        model = materialize(model)
    if fold:
        model = fold_batch_norm(model)
    _check(state_of(model))
    structure = _structure(original, model, inputs)
    captured = None if inputs is None else capture(model, inputs, list(state_of(model)), dynamic_batch=dynamic_batch)
    header, stored = _describe(model, captured, generated, structure, effort)
    data = build_file(header, stored, effort)
    _refuse_unreadable(data, type(model).__name__)
    del stored  # checking the file takes the memory of a network
    if inputs is not None:
        _verify(data, model, inputs)
    record.write_bytes(path, data)
    return path


@own_conditions()
def storable_graph(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Captured | None:
    """The graph that the file of a network holds, for `stored_bytes`; None where a file cannot hold it."""
    _check(state_of(model))
    try:
        captured = capture(model, example_inputs, list(state_of(model)), dynamic_batch=True)
        data = build_file(*_describe(model, captured, {}, "", "default"), "default")
        _refuse_unreadable(data, type(model).__name__)
        _verify(data, model, example_inputs)
    except BadInput:
        return None
    return captured


@own_conditions()
def stored_bytes(model: nn.Module, captured: Captured | None = None) -> int:
    """The size of the file that `save` writes of a network without constraints. captured: its graph, or that of a
    network like it with other weights; None: the file has no graph."""
    _check(state_of(model))
    return len(build_file(*_describe(model, captured, {}, "", "default"), "default"))


def _describe(
    model: nn.Module, captured: Captured | None, generated: Mapping[str, GeneratedWeight], structure: str, effort: str
) -> tuple[FileHeader, list[Stored]]:
    """The header of the file, and its tensors: those of the state first, then constants of the graph, then parts."""
    state = state_of(model)
    names = list(state)
    graph, constants = captured or (None, [])
    known = {number: generated[name] for number, name in enumerate(names) if name in generated}
    stored = describe_file([*state.values(), *constants], effort, known)
    header = FileHeader(
        names=[*names, *constant_names(len(names), len(stored) - len(names))],
        named=len(names),
        buffers=set(names) - {name for name, _ in model.named_parameters(remove_duplicate=False)},
        entries=[entry_of(s) for s in stored],
        graph=graph,
        structure=structure,
    )
    return header, stored


def _refuse_unreadable(data: bytes, network: str) -> None:
    """Nothing is written that the reader would refuse. Raises BadInput with the limit that the network exceeds."""
    try:
        GsrFile(data)
    except CorruptFile as error:
        why = str(error).rpartition("is damaged: ")[2]
        raise BadInput(f"{network} cannot be stored: {why} (the limits of the format are in docs/format.md)") from error


def _structure(
    original: nn.Module | Structure | None, model: nn.Module, example_inputs: tuple[Tensor, ...] | None
) -> str:
    found = structure_of(original, model, example_inputs) if isinstance(original, nn.Module) else original
    return "" if found is None else found.text()


def describe_file(
    tensors: Sequence[Tensor], effort: str, generated: Mapping[int, GeneratedWeight] | None = None
) -> list[Stored]:
    """The shortest exact coding of every tensor; tensors that are equal bit by bit are stored once.

    generated: the rules that give tensors, by the numbers of the tensors. The parts of a rule follow all others.
    """
    known: dict[Any, int] = {}
    waiting, result = list(tensors), list[Stored]()
    for number, tensor in enumerate(waiting):  # grows on the way
        key = (tensor.dtype, tensor.shape, hashlib.blake2b(raw_bytes(tensor).data, digest_size=16).digest())
        if key in known:
            same = known[key]
            result.append(Stored(coding=Coding.SAME, dtype=tensor.dtype, shape=tuple(tensor.shape), same=same))
            continue
        known[key] = number
        plain = _of_values(tensor, effort)
        how = (generated or {}).get(number)
        if how is not None and _pays(how, tensor, plain, effort):
            plain = Stored(
                coding=Coding.GENERATED,
                dtype=tensor.dtype,
                shape=how.shape,
                generated=_generated_entry(how, len(waiting)),
            )
            waiting += [part for part in how.parts if part is not None]
        result.append(plain)
    return result


def _generated_entry(how: GeneratedWeight, first: int) -> GeneratedEntry:
    """The rule of a tensor whose parts are those from number `first` on."""
    indices = None if how.indices is None else first + 1
    keep = None if how.keep is None else first + 1 + (indices is not None)
    return GeneratedEntry(rule=how.rule, seed=how.seed, numbers=first, indices=indices, keep=keep)


def _pays(how: GeneratedWeight, tensor: Tensor, plain: Stored, effort: str) -> bool:
    """Whether a rule gives back every bit, in fewer bytes."""
    if not np.array_equal(raw_bytes(how.weight()), raw_bytes(tensor)):
        return False
    mode = MODES[effort][0]
    parts = [_of_values(part, effort) for part in how.parts if part is not None]
    return sum(_length(part, mode) for part in parts) < _length(plain, mode)


def _of_values(tensor: Tensor, effort: str) -> Stored:
    candidates = as_stored(tensor, trellis=effort != "fast")
    if candidates[0].coding in (Coding.ZEROS, Coding.CONSTANT):
        return candidates[0]
    for one in candidates:
        if one.q is not None:
            one.lag = likely_lag(one)
    slack = FAST_GAIN if effort == "fast" else 1.0
    lengths = [_length(one, MODES[effort][0]) / (slack if one.coding == Coding.SPLIT else 1.0) for one in candidates]
    best, data = int(np.argmin(lengths)), raw_bytes(tensor)
    if worth_packing(data, slack * lengths[best]):
        packed = Stored(coding=Coding.PACKED, dtype=tensor.dtype, shape=tuple(tensor.shape), floats=pack(data))
        readable = len(packed.floats) * BYTES_PER_BYTE >= data.size  # a reader gives no more memory than that
        if readable and _length(packed, "") < slack * lengths[best]:
            return packed
    return candidates[best]


def _length(stored: Stored, mode: str) -> float:
    """Bytes: measured for small tensors; order-0 entropy for large ones and for exponents, which have little more."""
    plain = len(stored.floats) + TOLD.get(stored.coding, 0)
    if stored.q is None:
        return plain
    if stored.q.size <= MEASURED and stored.coding != Coding.SPLIT:
        tensor = Integers(q=stored.q.astype(np.int32), lag=stored.lag, trellis=stored.coding == Coding.TRELLIS)
        return plain + len(encode_section([tensor], mode))
    # Levels of a trellis say less than they seem to: half of their indices' alphabet.
    q = stored.q // 2 if stored.coding == Coding.TRELLIS else stored.q
    # Half a logarithm of the weights for each integer whose frequency is learned.
    return plain + entropy_bytes(q) + (int(q.max()) - int(q.min())) * math.log2(q.size) / 16


def entropy_bytes(q: Any) -> float:
    """The order-0 entropy of integers, in bytes for all of them together."""
    if not q.size:
        return 0.0
    flat, low = q.reshape(-1), int(q.min())
    counts = np.zeros(int(q.max()) - low + 1, np.int64)
    for at in range(0, flat.size, BLOCK):
        counts += np.bincount(flat[at : at + BLOCK].astype(np.int64) - low, minlength=len(counts))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def likely_lag(stored: Stored) -> int:
    """At which distance along a row weights are of most similar size; 0 where none stands out."""
    q = stored.q
    if q is None or len(stored.shape) < 2:
        return 0
    if len(stored.shape) > 2:
        return stored.shape[-1] if 1 < stored.shape[-1] < q.shape[1] else 0
    if q.shape[1] < 16:
        return 0
    size = np.minimum(np.abs(q[:: max(1, q.size >> 18)]), 8).astype(np.float32)
    size -= size.mean()
    lags = range(2, min(MOST_LAG, q.shape[1] // 2))
    alike = [float((size[:, lag:] * size[:, :-lag]).mean()) for lag in lags]
    variance = float((size * size).mean())
    best = int(np.argmax(alike))
    return lags[best] if variance and alike[best] > 0.01 * variance else 0


def _check(state: Mapping[str, Any]) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise BadInput(f"{name} is a tensor of {tensor.dtype}, {tensor.layout}; this cannot be stored")


def _verify(data: bytes, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
    """Raise ExportMismatch if what was stored does not compute what the network does."""
    loaded = opened_bytes(data)
    with torch.no_grad():
        with evaluating(model):
            wanted = model(*(x.clone() for x in example_inputs))
        found = loaded(*(x.detach().cpu().clone() for x in example_inputs))
    for one, other in zip(in_order(wanted), in_order(found), strict=True):
        if not torch.allclose(one.cpu(), other, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ExportMismatch(
                f"the graph of {type(model).__name__} does not compute what the network does; does its forward draw "
                "random numbers or change itself? Store the weights alone with example_inputs=None"
            )
