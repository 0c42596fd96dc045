"""ONNX files of others: looked through before a runtime opens them."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from gossamer.errors import CorruptFile, first_line
from gossamer.runtime.operators.library import DOMAIN, OPERATORS

LIMIT = 1 << 31  # bytes: protobuf reads no larger message
MOST_GRAPHS = 64  # graphs inside one another
DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "com.microsoft", "com.microsoft.nchwc"))
DOMAINS_OF_OTHERS = "org.openvinotoolkit"  # what it knows besides these


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model of an ONNX file, its tensors in other files not loaded. Raises CorruptFile, with one line, where it
    cannot be read or where what it names outside may not be: only files in its own folder and below."""
    try:
        if path.stat().st_size >= LIMIT:
            raise CorruptFile(f"{path} has {path.stat().st_size:,} bytes; an ONNX file has less than {LIMIT:,}")
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
    except CorruptFile:
        raise
    except Exception as error:  # protobuf's own, which has no public base class
        raise CorruptFile(f"{path} is not a readable ONNX file: {first_line(error)}") from error
    if not model.ir_version or not model.graph.output:
        raise CorruptFile(f"{path} is not a readable ONNX file: it has no graph")
    local = {(function.domain, function.name) for function in model.functions}
    for graph in _graphs(model, path):
        for node in graph.node:
            known = node.domain in DOMAINS or node.domain.startswith(DOMAINS_OF_OTHERS)
            known = known or (node.domain == DOMAIN and node.op_type in OPERATORS)
            if not known and (node.domain, node.op_type) not in local:
                raise CorruptFile(
                    f"{path} calls {node.op_type[:60]!r} of {node.domain[:60]!r}, which no runtime here knows; export "
                    "it with operators of ONNX"
                )
            _check_split(node, path)
        for tensor in _tensors(graph):
            _check_tensor(tensor, path)
    return model


def _check_split(node: onnx.NodeProto, path: Path) -> None:
    """ONNX's own inference of shapes ends the process where these numbers differ."""
    for attribute in node.attribute:
        if node.op_type == "Split" and attribute.name == "num_outputs" and attribute.i != len(node.output):
            name = f"{path}: node {node.name[:80]!r} (Split)"
            raise CorruptFile(f"{name} has {len(node.output)} outputs and says that they are {attribute.i}")


def check_onnx(path: Path) -> None:
    """Raise CorruptFile for a file that no runtime should open."""
    read_onnx(path)


def outside_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files next to an ONNX file in which its tensors lie."""
    names = {_external(t).get("location", "") for graph in _graphs(model, path) for t in _tensors(graph) if _is_out(t)}
    return [path.parent / name for name in sorted(names)]


def stored_bits(data_type: int) -> int:
    """Bits of one value of an ONNX type."""
    name = onnx.TensorProto.DataType.Name(data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2"):
        return 2 if name.endswith("INT2") else 4
    return int(8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    where = f"{path}: tensor {tensor.name[:80]!r}"
    try:
        bits = stored_bits(tensor.data_type)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{where} has the type {tensor.data_type}, which does not exist") from error
    if any(size < 0 for size in tensor.dims):
        raise CorruptFile(f"{where} has the shape {list(tensor.dims)[:8]}")
    needed = math.ceil(math.prod(tensor.dims) * bits / 8)
    if _is_out(tensor):
        _check_outside(_external(tensor), needed, path, where)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
        raise CorruptFile(f"{where} has {len(tensor.raw_data):,} bytes; its shape needs {needed:,}")
    elif not tensor.HasField("raw_data") and needed > 8 * tensor.ByteSize() + 16:
        raise CorruptFile(f"{where} needs {needed:,} bytes, more than the file holds for it")


def _check_outside(entries: dict[str, str], needed: int, path: Path, where: str) -> None:
    name = entries.get("location", "")
    pure = PurePosixPath(name.replace("\\", "/"))
    folder = path.parent.resolve()
    if not name or "\0" in name or len(name) > 255 or pure.is_absolute() or ".." in pure.parts or ":" in name:
        raise CorruptFile(f"{where} lies in {name[:80]!r}; only files in the folder of the .onnx and below are read")
    file = path.parent / name
    if not file.resolve().is_relative_to(folder):
        raise CorruptFile(f"{where} lies in {name[:80]!r}, a link that leads out of the folder of the .onnx")
    if not file.is_file():
        raise CorruptFile(f"{where} lies in {name[:80]!r}, which is missing next to the .onnx")
    try:
        start, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
    except ValueError as error:
        raise CorruptFile(f"{where} has no readable place in {name[:80]!r}") from error
    if start < 0 or length != needed or start + length > file.stat().st_size:
        raise CorruptFile(f"{where} reaches over the end of {name[:80]!r}")


def _graphs(model: onnx.ModelProto, path: Path) -> Iterator[Any]:
    """All graphs of a model, and the bodies of its functions, which have nodes as well."""
    waiting: list[tuple[Any, int]] = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while waiting:
        graph, depth = waiting.pop()
        if depth > MOST_GRAPHS:
            raise CorruptFile(f"{path} has more than {MOST_GRAPHS} graphs inside one another")
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [(inner, depth + 1) for inner in (attribute.g, *attribute.graphs) if len(inner.node)]


def _tensors(graph: Any) -> Iterator[onnx.TensorProto]:
    """The initializers and constants of a graph or function."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _is_out(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
