"""Free dimensions and inputs of every form in an `.onnx` file: what other sizes give is compared with torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from patterns import Function
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import gossamer
from gossamer.errors import BadInput
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2, load_pt2

NUMBERS = torch.Generator().manual_seed(0)


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=NUMBERS)


def recurrent() -> nn.Module:
    def forward(m: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = m.rnn(x, (h, c))
        return m.head(y), h

    return Function(forward, rnn=nn.LSTM(4, 5), head=nn.Linear(5, 2))


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2))


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, batch: Mapping[str, Any], *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"out": self.a(batch["a"]) * scale + self.b(batch["b"][0])}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) + self.b(right).mean(1)


def given(path: Path, inputs: Any) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    feed = {i.name: (t.float() if t.is_floating_point() else t).numpy() for i, t in zip(session.get_inputs(), tensors)}
    return [torch.from_numpy(out) for out in session.run(None, feed)]


CASES: dict[str, tuple[Any, Any, dict[Any, dict[int, str]], Any, list[list[Any]]]] = {
    # network, example, free dimensions, other inputs, shapes of the file's inputs
    "time first, states": (
        recurrent,
        (r(7, 2, 4), r(1, 2, 5), r(1, 2, 5)),
        {0: {0: "time", 1: "batch"}, 1: {1: "batch"}, 2: {1: "batch"}},
        (r(3, 5, 4), r(1, 5, 5), r(1, 5, 5)),
        [["time", "batch", 4], [1, "batch", 5], [1, "batch", 5]],
    ),
    "image sizes": (
        pixels,
        r(1, 3, 16, 16),
        {0: {0: "batch", 2: "height", 3: "width"}},
        (r(2, 3, 33, 20),),
        [["batch", 3, "height", "width"]],
    ),
    "half precision": (lambda: pixels().half(), r(1, 3, 8, 8).half(), {}, (r(2, 3, 8, 8),), [["batch", 3, 8, 8]]),
    "bfloat16": (lambda: pixels().bfloat16(), r(1, 3, 8, 8), {}, (r(2, 3, 8, 8),), [["batch", 3, 8, 8]]),
    "a dict": (
        Structured,
        ({"a": r(1, 4), "b": [r(1, 2)]},),
        {},
        ({"a": r(3, 4), "b": [r(3, 2)]},),
        [["batch", 4], ["batch", 2]],
    ),
    "keywords": (
        Named,
        {"left": r(1, 4), "right": r(1, 6, 2)},
        {"left": {0: "n"}, "right": {0: "n", 1: "length"}},
        {"left": r(3, 4), "right": r(3, 2, 2)},
        [["n", 4], ["n", "length", 2]],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_other_sizes_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    make, example, free, other, shapes = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    path = export_onnx(model, example, tmp_path / "net.onnx", free=free)
    inputs = onnx.load(path).graph.input
    assert [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs] == shapes
    if isinstance(other, dict):
        assert [i.name for i in inputs] == list(other)
    with torch.no_grad():
        wanted = tree_leaves(model.float()(**other) if isinstance(other, dict) else model.float()(*other))
    for a, b in zip(given(path, other), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_advice_only_where_it_helps(tmp_path: Path) -> None:
    fixed = Function(lambda m, x: m.a(x.view(2, 12)), a=nn.Linear(12, 3)).eval()
    with pytest.raises(BadInput, match="its forward fixes the batch size: pass dynamic_batch=False"):
        export_onnx(fixed, r(2, 3, 4), tmp_path / "net.onnx")
    export_onnx(fixed, r(2, 3, 4), tmp_path / "net.onnx", dynamic_batch=False)
    other = Function(lambda m, x: m.a(torch.linalg.eig(m.a(x)).eigenvalues.abs()), a=nn.Linear(3, 3)).eval()
    with pytest.raises(BadInput) as error:
        export_onnx(other, r(3, 3), tmp_path / "net.onnx")
    assert "dynamic_batch" not in str(error.value)


@pytest.mark.parametrize(
    ("free", "why"), [({"imag": {0: "b"}}, "unknown argument 'imag'"), ({0: {4: "b"}}, "no dimension 4")]
)
def test_a_dimension_that_is_not_there(free: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=why):
        export_onnx(pixels().eval(), r(1, 3, 8, 8), tmp_path / "net.onnx", free=free)


def exports(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """The network from a file of every format that torch's exporter writes."""
    return {
        ".gsr": gossamer.load(gossamer.save(model, folder / "net.gsr", (x,))),
        ".pt2": load_pt2(export_pt2(model, (x,), folder / "net.pt2")),
        ".onnx": gossamer.open_runner("onnxruntime", export_onnx(model, x, folder / "net.onnx")),
    }


@pytest.mark.slow
def test_python_code_that_counts_the_batch_leaves_it_free(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Function(lambda m, x: {"y": m.a(m.table.weight.expand(len(x), -1, -1) + x[:, None])}, a=nn.Linear(4, 3))
    model.table = nn.Embedding(5, 4)
    for kind, network in exports(model.eval(), r(2, 4), tmp_path).items():
        x = r(3, 4)
        torch.testing.assert_close(network(x)["y"], model(x)["y"], rtol=1e-4, atol=1e-5, msg=kind)


def test_example_inputs_stay_as_they_were(tmp_path: Path) -> None:
    # torch notes on a tensor that a dimension was free; an export of a network that fixes it would fail from then on.
    x = r(2, 4)
    exports(nn.Linear(4, 3).eval(), x, tmp_path)
    assert not vars(x)
    with pytest.raises(BadInput, match="its forward fixes the batch size: pass dynamic_batch=False"):
        gossamer.save(Function(lambda m, x: m.a(x.view(2, 4)), a=nn.Linear(4, 3)), tmp_path / "net.gsr", (x,))


def test_complex_inputs_are_refused(tmp_path: Path) -> None:
    model = Function(lambda m, x: m.a(torch.view_as_real(x).flatten(1)), a=nn.Linear(8, 3))
    with pytest.raises(BadInput, match=r"no runtime takes complex numbers; give the network torch\.view_as_real"):
        export_onnx(model, torch.randn(2, 4, dtype=torch.cfloat), tmp_path / "net.onnx")


@pytest.mark.slow
def test_transformers_with_a_causal_mask_are_exported(tmp_path: Path) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return m.decoder(x, m.memory.weight.expand(x.shape[0], -1, -1), tgt_mask=mask)

    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    model = Function(forward, decoder=nn.TransformerDecoder(layer, 1), memory=nn.Embedding(4, 8)).eval()
    for kind, network in exports(model, r(2, 5, 8), tmp_path).items():
        x = r(3, 5, 8)
        torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5, msg=kind)
