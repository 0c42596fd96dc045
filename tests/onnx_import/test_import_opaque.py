"""Operators without a translation: each stays one call, whole and by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from gossamer import BadInput
from gossamer.compact.writing import save
from gossamer.errors import GossamerError
from gossamer.graph.groups import find_groups
from gossamer.methods.prune.channels import prune_channels
from gossamer.onnx_import import check_import, import_onnx
from gossamer.onnx_import.opaque import OPAQUE
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def written(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


def fused(path: Path, batch: Any = "batch") -> Path:
    """Two layers, a fused operator, and two layers behind it."""
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h1"], transB=1, name="first"),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "b"], ["h3"], transB=1, name="second"),
        helper.make_node("BiasGelu", ["h3", "bias"], ["h4"], domain="com.microsoft", name="fused"),
        helper.make_node("Gemm", ["h4", "c"], ["h5"], transB=1, name="third"),
        helper.make_node("Relu", ["h5"], ["h6"]),
        helper.make_node("Gemm", ["h6", "d"], ["y"], transB=1, name="last"),
    ]
    shapes = {"a": (16, 8), "b": (16, 16), "bias": (16,), "c": (16, 16), "d": (4, 16)}
    return written(path, nodes, {name: weights(*shape) for name, shape in shapes.items()}, [batch, 8])


def runs(path: Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_it_computes_what_onnx_runtime_does(tmp_path: Path) -> None:
    path, x = fused(tmp_path / "a.onnx"), torch.randn(3, 8)
    network = import_onnx(path)
    assert check_import(path, network, (x,)) < 1e-5
    assert "BiasGelu 'fused', by ONNX Runtime" in repr(network)


def test_it_is_cut_around_the_call_and_exported_with_the_node_as_it_was(tmp_path: Path) -> None:
    path, x = fused(tmp_path / "a.onnx"), torch.randn(4, 8)
    found = prune_channels(import_onnx(path), (x,), 0.5)
    widths = {
        name: tuple(layer.weight.shape) for name, layer in found.model.named_modules() if hasattr(layer, "weight")
    }
    assert widths == {"first": (8, 8), "second": (16, 8), "third": (8, 16), "last": (4, 8)}
    fixed = {group.name: group.reason for group in find_groups(import_onnx(path), (x,)).groups}
    assert fixed["second"] == "no rule for gossamer.onnx_node in fused"
    again = export_onnx(found.model, (x,), tmp_path / "b.onnx", dynamic_batch=True)
    assert [node.op_type for node in onnx.load(again).graph.node].count("BiasGelu") == 1
    for batch in (1, 4, 7):
        x = torch.randn(batch, 8)
        torch.testing.assert_close(runs(again, x), found.model(x), rtol=1e-4, atol=1e-5)
    assert check_import(again, import_onnx(again), (x,)) < 1e-5


def test_what_is_behind_it_can_be_trained_and_what_is_before_it_not(tmp_path: Path) -> None:
    network, x = import_onnx(fused(tmp_path / "a.onnx")), torch.randn(4, 8)
    for name, weight in network.named_parameters():
        weight.requires_grad_(name.startswith(("third", "last")))
    network(x).sum().backward()
    assert network.third.weight.grad.abs().sum() > 0
    network.first.weight.requires_grad_(True)
    with pytest.raises(BadInput, match=r"no gradient flows through the node 'fused' \(BiasGelu\)"):
        network(x).sum().backward()


def test_formats_that_cannot_hold_it_say_so(tmp_path: Path) -> None:
    network, x = import_onnx(fused(tmp_path / "a.onnx")), torch.randn(4, 8)
    with pytest.raises(BadInput, match=r"a \.pt2 cannot hold gossamer\.onnx_node\.default"):
        export_pt2(network, (x,), tmp_path / "b.pt2")
    with pytest.raises(BadInput, match=r"calls gossamer\.onnx_node\.default, which the format does not know"):
        save(network, tmp_path / "b.gsr", example_inputs=(x,))


def test_an_operator_of_onnx_and_several_outputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Celu", ["x"], ["a"], alpha=2.0),
        helper.make_node("SkipLayerNormalization", ["a", "x", "g"], ["n", "", "", "s"], domain="com.microsoft"),
        helper.make_node("Add", ["n", "s"], ["y"]),
    ]
    path = written(tmp_path / "a.onnx", nodes, {"g": weights(8)}, [2, 3, 8])
    network, x = import_onnx(path), torch.randn(2, 3, 8)
    torch.testing.assert_close(network(x), runs(path, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runs(export_onnx(network, (x,), tmp_path / "b.onnx"), x), runs(path, x))


@pytest.mark.parametrize(
    ("op", "domain", "attributes", "message"),
    [
        ("FusedConv", "com.microsoft", {"pads": [10**6] * 4}, r"pads \[1000000, .* are larger than 1024"),
        ("Sampling", "com.microsoft", {}, "this operator of com.microsoft cannot be imported"),
        ("Anything", "their.own", {}, "'Anything' of 'their.own', which no runtime here knows"),
        ("RandomNormal", "", {"shape": [10**9]}, "the operator RandomNormal cannot be imported"),
    ],
)
def test_what_is_not_bounded_by_its_inputs_is_refused(
    op: str, domain: str, attributes: Any, message: str, tmp_path: Path
) -> None:
    node = helper.make_node(op, ["x"], ["y"], domain=domain, name="odd", **attributes)
    with pytest.raises(GossamerError, match=message):
        import_onnx(written(tmp_path / "a.onnx", [node], {}, [2, 8]))


def test_a_form_that_the_runtime_does_not_have_is_named_when_it_runs(tmp_path: Path) -> None:
    node = helper.make_node("FusedMatMul", ["x"], ["y"], domain="com.microsoft", name="odd")
    network = import_onnx(written(tmp_path / "a.onnx", [node], {}, [2, 8]))
    with pytest.raises(BadInput, match=r"ONNX Runtime cannot run the node 'odd' \(FusedMatMul\) on \(2, 8\)"):
        network(torch.randn(2, 8))


def test_none_of_them_has_a_translation() -> None:
    from gossamer.onnx_import.registry import BUILDERS

    assert [name for domain, name in OPAQUE if not domain and name in BUILDERS] == []
