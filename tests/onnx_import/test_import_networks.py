"""Whole networks out of ONNX files: the same outputs, layers that methods find, cuts with proof, and clear refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import gossamer
from gossamer.errors import BadInput, CorruptFile, ExportMismatch
from gossamer.models import build
from gossamer.onnx_import import check_import, example_inputs, import_onnx
from gossamer.onnx_import.registry import Function
from gossamer.runtime.onnx_export import export_onnx


class Attention(nn.Module):
    """Heads by reshapes, layer norm, and a linear layer on every position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Recognizer(nn.Module):
    """Convolution, LSTM in both directions, classes for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(3, 8, 3, padding=1), nn.LSTM(8, 6, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().permute(2, 0, 1)
        return self.head(self.lstm(y)[0])


class TwoHeads(nn.Module):
    """A body with skips, a split and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.body, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(24, 4, 2, 2)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.nn.functional.silu(self.norm(self.stem(x)))
        first, second = x.chunk(2, 1)
        joined = torch.cat([first, second, first + self.body(second)], 1)
        return self.up(joined), self.head(joined).sigmoid()


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet": (lambda: build("resnet14", in_channels=1), (2, 1, 28, 28)),
    "mobilenet": (lambda: build("mobilenet_v1", input_size=32), (2, 3, 32, 32)),
    "attention": (Attention, (2, 5, 16)),
    "recognizer": (Recognizer, (2, 3, 12)),
    "two heads": (TwoHeads, (2, 3, 16, 16)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().eval(), torch.rand(shape)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {
        name: export_onnx(*((one := network(name))[0], (one[1],)), folder / f"{i}.onnx")
        for i, name in enumerate(NETWORKS)
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_network_comes_back_and_takes_other_batches(name: str, files: dict[str, Path]) -> None:
    model, x = network(name)
    again = import_onnx(files[name])
    assert not again.training and check_import(files[name], again, (x,)) < 1e-5
    for batch in (x, torch.cat([x, x + 1, x])):
        for ours, theirs in zip(outputs(again, batch), outputs(model, batch), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_it_is_cut_with_proof_and_exported_again(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    _, x = network(name)
    whole = import_onnx(files[name])
    small = gossamer.prune_channels(whole, x, sparsity=0.5)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (whole, small.model))
    assert after < 0.7 * before and type(small.model) is type(whole)
    file = export_onnx(small.model, (x,), tmp_path / "small.onnx")
    for ours, theirs in zip(outputs(import_onnx(file), x), outputs(small.model, x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_layers_with_weights_are_pytorchs_and_keep_their_values(files: dict[str, Path]) -> None:
    model, _ = network("recognizer")
    again = import_onnx(files["recognizer"])
    kinds = {type(m).__name__ for m in again.modules() if list(m.parameters(recurse=False))}
    assert kinds == {"Conv1d", "LSTM", "Linear"}
    [lstm] = [m for m in again.modules() if isinstance(m, nn.LSTM)]
    for mine, old in zip(lstm.parameters(), model.lstm.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(mine, old)


@pytest.mark.slow
def test_it_trains_and_is_copied(files: dict[str, Path]) -> None:
    again = copy.deepcopy(import_onnx(files["two heads"])).train()
    sum(out.square().mean() for out in outputs_with_gradient(again)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in again.parameters())


def outputs_with_gradient(model: nn.Module) -> tuple[Tensor, ...]:
    return model(network("two heads")[1])  # type: ignore[no-any-return]


def of_nodes(path: Path, nodes: list[Any], tensors: dict[str, Any], *, shape: Any = (2, 4), output: str = "y") -> Path:
    """A file of these nodes, from x to an output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_weights_in_constant_nodes_and_biases_apart_become_one_layer(tmp_path: Path) -> None:
    weight, bias = np.ones((4, 3), np.float32), np.arange(3, dtype=np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="dense/MatMul"),
        helper.make_node("Add", ["b", "m"], ["y"]),
    ]
    again = import_onnx(of_nodes(tmp_path / "a.onnx", nodes, {"b": bias}))
    [(name, layer)] = again.named_children()
    assert name == "dense" and isinstance(layer, nn.Linear)
    x = torch.rand(2, 4)
    assert torch.allclose(again(x), x.sum(1, keepdim=True) + torch.arange(3.0))


def test_a_fixed_batch_in_reshapes_becomes_free(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    again = import_onnx(of_nodes(tmp_path / "a.onnx", nodes, {"s": np.array([2, 2, 2])}))
    [reshape] = [m for m in again.modules() if isinstance(m, Function)]
    assert reshape.target == (0, 2, 2) and again(torch.zeros(5, 4)).shape == (5, 2, 2)


def test_a_branch_is_chosen_by_its_condition_and_sees_the_values_around_it(tmp_path: Path) -> None:
    def branch(op: str) -> Any:
        out = helper.make_empty_tensor_value_info(f"{op}_y")
        return helper.make_graph([helper.make_node(op, ["m", "one"], [f"{op}_y"])], op, [], [out])

    nodes = [
        helper.make_node("Neg", ["x"], ["m"]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "one"], ["large"]),
        helper.make_node("If", ["large"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub")),
    ]
    path = of_nodes(tmp_path / "a.onnx", nodes, {"one": np.array(1, np.float32)})
    again = import_onnx(path)
    for x in (torch.full((2, 4), 5.0), torch.full((2, 4), 0.5)):
        assert torch.equal(again(x), -x + 1 if x[0, 0] > 1 else -x - 1)
        check_import(path, again, (x,))


@pytest.mark.slow
def test_a_network_that_differs_is_refused_with_its_first_wrong_node(files: dict[str, Path]) -> None:
    again = import_onnx(files["two heads"])
    with torch.no_grad():
        next(m for m in again.modules() if isinstance(m, nn.ConvTranspose2d)).weight[0] += 1
    with pytest.raises(ExportMismatch, match=r"first at .* \(module up,"):
        check_import(files["two heads"], again, (network("two heads")[1],))


def test_files_that_lie_or_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        import_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf")
    with pytest.raises(CorruptFile):
        import_onnx(tmp_path / "text.onnx")
    circle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    with pytest.raises(BadInput, match="'b' is used before"):
        import_onnx(of_nodes(tmp_path / "circle.onnx", circle, {}, output="b"))
    with pytest.raises(BadInput, match="the output 'c' is made by no node"):
        import_onnx(of_nodes(tmp_path / "open.onnx", circle[1:2], {"a": np.ones(3, np.float32)}, output="c"))
    foreign = [helper.make_node("Sampling", ["x", "x"], ["y"], domain="com.microsoft")]
    with pytest.raises(BadInput, match=r"com\.microsoft"):
        import_onnx(of_nodes(tmp_path / "foreign.onnx", foreign, {}))
    lying = [helper.make_node("Conv", ["x", "w"], ["y"])]
    network_ = import_onnx(
        of_nodes(tmp_path / "lie.onnx", lying, {"w": np.ones((2, 3, 3, 3), np.float32)}, shape=(1, 5, 6, 6))
    )
    with pytest.raises(ExportMismatch):
        check_import(tmp_path / "lie.onnx", network_, example_inputs(network_))


def test_sizes_that_the_file_leaves_free_have_to_be_given(tmp_path: Path) -> None:
    again = import_onnx(of_nodes(tmp_path / "a.onnx", [helper.make_node("Neg", ["x"], ["y"])], {}, shape=("n", 3, "h")))
    with pytest.raises(BadInput, match="1x3x\\?"):
        example_inputs(again)
    assert example_inputs(again, {0: (2, 3, 7)})[0].shape == (2, 3, 7)


def test_inputs_of_other_sizes_than_the_file_names_are_checked_as_well(tmp_path: Path) -> None:
    path = export_onnx(TwoHeads().eval(), torch.rand(2, 3, 16, 16), tmp_path / "a.onnx", dynamic_batch=False)
    network = import_onnx(path)
    assert network.shapes == ((2, 3, 16, 16),)
    assert check_import(path, network, (torch.rand(1, 3, 32, 24),)) < 1e-4


def test_a_run_makes_no_value_that_is_far_too_large(tmp_path: Path) -> None:
    """A few bytes of file and input could otherwise ask for any amount of memory."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["big"]), helper.make_node("ReduceSum", ["big"], ["y"])]
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "g", [x], [y], [shape])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "a.onnx")
    network = import_onnx(tmp_path / "a.onnx")
    with pytest.raises(BadInput, match="1,099,511,627,776 elements"):
        network(torch.zeros(1, 1))
    with pytest.raises(BadInput, match="elements"):
        check_import(tmp_path / "a.onnx", network, (torch.zeros(1, 1),))
