"""Is an imported network the same? Every node is compared with ONNX Runtime on real inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from gossamer.errors import ExportMismatch, GossamerError, own_error
from gossamer.onnx_import.network import OnnxNetwork
from gossamer.onnx_import.values import as_tensor
from gossamer.runtime.onnx_read import read_onnx

TOLERANCE = 1e-4
SMALL = 1e-2  # values below it are as good as zero: probabilities of what is not there, say


@dataclass(frozen=True)
class NodeDifference:
    """What the values of a node differ by.

    Attributes:
        value: its name in the file.
        module: of the network that computes it.
        shape: of the value.
        relative: the largest difference over the largest value, or over 0.01 where all are smaller.

    Example:
        >>> NodeDifference(value="conv1", module="Conv_0", shape=(1, 8, 14, 14), relative=2e-7).relative < 1e-4
        True
    """

    value: str
    module: str
    shape: tuple[int, ...]
    relative: float


def check_import(
    path: Path | str, network: OnnxNetwork, inputs: Sequence[Tensor], *, tolerance: float = TOLERANCE
) -> float:
    """Raise ExportMismatch, naming the first node that differs, where a network computes something else than its file.

    Args:
        path: of the file.
        network: imported from it.
        inputs: for both.
        tolerance: the largest relative difference of an output.

    Returns:
        The largest relative difference of an output.

    Raises:
        ExportMismatch: the network computes something else than its file.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.onnx_import import import_onnx
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx")
        ...     check_import(file, import_onnx(file), task.example_inputs) < 1e-4
        True
    """
    rows = node_differences(path, network, inputs)
    outputs = [row for row in rows if row.value in network.outputs]
    worst = max((row.relative for row in outputs), default=0.0)
    if not worst <= tolerance:
        first = next(row for row in rows if not row.relative <= tolerance)
        raise ExportMismatch(
            f"{path}: the imported network gives other values than ONNX Runtime: {worst:.2g} relative at the outputs, "
            f"first at {first.value!r} (module {first.module}, {first.relative:.2g})"
        )
    return worst


def node_differences(path: Path | str, network: OnnxNetwork, inputs: Sequence[Tensor]) -> list[NodeDifference]:
    """All values of the outermost graph, in order, against ONNX Runtime's.

    Args:
        path: of the file.
        network: imported from it.
        inputs: for both.

    Returns:
        One row for each value.

    Raises:
        ExportMismatch: ONNX Runtime does not run the file on these inputs.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.onnx_import import import_onnx
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx")
        ...     rows = node_differences(file, import_onnx(file), task.example_inputs)
        >>> max(row.relative for row in rows) < 1e-4
        True
    """
    path = Path(path)
    model = read_onnx(path)
    onnx.load_external_data_for_model(model, str(path.parent))
    try:
        with torch.no_grad():
            network(*inputs)  # which refuses values that are far too large, before ONNX Runtime makes them
    except GossamerError:
        raise
    except Exception:  # ONNX Runtime says what is wrong, or the comparison does
        pass
    _free_sizes(model, network, inputs)
    return _compared(network, inputs, _runtime_values(model, path, network, inputs))


def _free_sizes(model: onnx.ModelProto, network: OnnxNetwork, inputs: Sequence[Tensor]) -> None:
    """Forget the sizes of the file where the inputs have others: exporters write those of their example."""
    if all(
        wanted is None or wanted == size
        for shape, x in zip(network.shapes, inputs)
        for wanted, size in zip(shape, x.shape)
    ):
        return
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _runtime_values(
    model: onnx.ModelProto, path: Path, network: OnnxNetwork, inputs: Sequence[Tensor]
) -> dict[str, Any]:
    """What ONNX Runtime gives for all values of the outermost graph."""
    import onnxruntime

    names = list(dict.fromkeys(name for step in network.steps for name in step.outputs if name))
    known = {one.name for one in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    extra = [name for name in names if name not in known and name in made]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in extra)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        asked = [one.name for one in session.get_outputs()]
        feeds = {name: x.detach().cpu().numpy() for name, x in zip(network.inputs, inputs)}
        return dict(zip(asked, session.run(asked, feeds)))
    except Exception as error:
        raise ExportMismatch(f"{path}: ONNX Runtime does not run it on these inputs: {own_error(error)}") from error


def _compared(network: OnnxNetwork, inputs: Sequence[Tensor], expected: dict[str, Any]) -> list[NodeDifference]:
    """Run the network with a look at each value."""
    graph, rows = network, list[NodeDifference]()
    with torch.no_grad():
        current: dict[str, Any] = dict(zip(network.inputs, inputs))
        current |= graph.numbers | {name: getattr(graph, buffer) for name, buffer in graph.buffered.items()}
        for step in graph.steps:
            found = getattr(graph, step.module)(*(current[name] for name in step.inputs))
            many = found if isinstance(found, tuple) else (found,)
            for name, one in zip(step.outputs, many):
                current[name] = one
                if name in expected:
                    rows.append(_difference(name, step.module, one, expected[name]))
            for name in step.last:
                current.pop(name, None)
    return rows


def _difference(name: str, module: str, given: Any, expected: Any) -> NodeDifference:
    ours, theirs = as_tensor(given).detach().cpu(), torch.from_numpy(np.asarray(expected).copy())
    if ours.shape != theirs.shape:
        ours = ours.reshape(theirs.shape) if ours.numel() == theirs.numel() and ours.dim() == 0 else ours
    if ours.shape != theirs.shape:
        return NodeDifference(name, module, tuple(theirs.shape), float("inf"))
    a, b = ours.double(), theirs.double()
    finite = a.isfinite() & b.isfinite()
    if not bool((finite | (a == b) | (a.isnan() & b.isnan())).all()):
        return NodeDifference(name, module, tuple(theirs.shape), float("inf"))
    a, b = a[finite], b[finite]
    largest = float(b.abs().max()) if b.numel() else 0.0
    difference = float((a - b).abs().max()) if b.numel() else 0.0
    return NodeDifference(name, module, tuple(theirs.shape), difference / max(largest, SMALL))
