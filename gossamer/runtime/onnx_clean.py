"""Make an ONNX graph small and regular, without changing what it computes."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from gossamer.errors import CorruptFile, first_line
from gossamer.runtime.metadata import EXPORTERS, PREPROCESSING
from gossamer.runtime.onnx_rewrite import rewrite

DEFAULTS = {("group", 1), ("auto_pad", b"NOTSET"), ("alpha", 1.0), ("beta", 1.0), ("transA", 0)}


def clean(
    model: onnx.ModelProto,
    *,
    dims: Mapping[tuple[int, int], str] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> onnx.ModelProto:
    """The same network with short names, without notes, identities and duplicate or unused tensors; a copy.

    Weighted nodes get the path of their torch module as name, inputs become `input`, outputs `output` (numbered where
    there are several). Some operations become others that the runtimes are faster at (`onnx_rewrite`).

    Args:
        model: is not changed.
        dims: names of free dimensions by input and dimension.
        inputs: names of the inputs, where they have some.
        outputs: names of the outputs, where they have some.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    _name_nodes(copied.graph)
    remove_identities(copied.graph)
    copied = onnx.shape_inference.infer_shapes(copied)
    rewrite(copied)
    merge_initializers(copied.graph)
    rename_values(copied.graph, dims or {}, inputs, outputs)
    strip(copied)
    return copied


def about(path: Path) -> str:
    """What an `.onnx` file says of its preprocessing and classes, as JSON; nothing where it says nothing."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises many kinds for a damaged file
        raise CorruptFile(f"{path} is not a readable ONNX file: {first_line(error)}") from error
    return next((p.value for p in model.metadata_props if p.key == PREPROCESSING), "")


def strip(model: onnx.ModelProto) -> None:
    """Delete all that no runtime reads. The metadata of the file stays: programs read it. Notes of exporters go."""
    kept = {p.key: p.value for p in model.metadata_props if not p.key.startswith(EXPORTERS)}
    for field in ("doc_string", "metadata_props", "producer_version", "functions", "domain"):
        model.ClearField(field)
    onnx.helper.set_model_props(model, kept)
    model.producer_name = "gossamer"
    graph = model.graph
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "g"
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        attributes = [a for a in node.attribute if not _is_default(a)]
        for attribute in attributes:
            attribute.ClearField("doc_string")
        del node.attribute[:]
        node.attribute.extend(attributes)


def _is_default(attribute: onnx.AttributeProto) -> bool:
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("dilations", "strides"):
        return set(value) == {1}
    if attribute.name == "pads":
        return set(value) == {0}
    return isinstance(value, int | float | bytes) and (attribute.name, value) in DEFAULTS


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Weighted nodes: the torch module of their weight; others: the module that they ran in, and their kind."""
    weights = {tensor.name for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        found = next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "[]")
        scopes: list[str] = ast.literal_eval(found)
        weight = next((name for name in node.input[1:2] if name in weights and name.endswith(".weight")), None)
        if weight is not None:
            name = weight.removesuffix(".weight")
        else:
            name = f"{scopes[-2] if len(scopes) > 1 else ''}:{node.op_type}".removeprefix(":")
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        node.name = unique


def replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every reader of one value read another."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def remove_identities(graph: onnx.GraphProto) -> None:
    """Readers of an Identity read its input, unless it makes a graph output."""
    outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type == "Identity" and node.output[0] not in outputs:
            replace_input(graph, node.output[0], node.input[0])
            graph.node.remove(node)


def merge_initializers(graph: onnx.GraphProto) -> None:
    """Equal tensors are stored once, unused ones not at all."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if key in first:
            replace_input(graph, tensor.name, first[key])
        else:
            first[key] = tensor.name
            kept.append(tensor)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in kept if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def rename_values(
    graph: onnx.GraphProto, dims: Mapping[tuple[int, int], str], inputs: Sequence[str], outputs: Sequence[str] = ()
) -> None:
    """Inputs and outputs by their place, tensors by the node that reads them first, values by number."""
    names: dict[str, str] = {"": ""}
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for i, value in enumerate(values):
            names[value.name] = kind if len(values) == 1 else f"{kind}_{i}"
    for given, values in ((inputs, graph.input), (outputs, graph.output)):
        if len(given) == len(values):
            names |= {value.name: name for value, name in zip(values, given)}
    taken = set(names.values())
    stored = {tensor.name for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            if name in stored and name not in names:
                suffix = {1: "weight", 2: "bias"}.get(place, str(place))
                new = f"{node.name}.{suffix}"
                names[name] = new if new not in taken else f"{new}_{number}"
                taken.add(names[name])
        for name in node.output:
            if name not in names:
                new = str(number) if node.output[0] == name else f"{number}_{name}"
                names[name] = new if new not in taken else f"{new}/value"
                taken.add(names[name])
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    _rename_dimensions(graph, dims)


def _rename_dimensions(graph: onnx.GraphProto, dims: Mapping[tuple[int, int], str]) -> None:
    symbols: dict[str, str] = {}
    for i, value in enumerate(graph.input):
        for d, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and (i, d) in dims:
                symbols[dim.dim_param] = dims[i, d]
    for value in (*graph.input, *graph.output):
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                new = "batch" if i == 0 and not symbols else f"d{len(symbols)}"
                dim.dim_param = symbols.setdefault(dim.dim_param, new)
