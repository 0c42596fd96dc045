"""int8 of networks of matrix products: ranges taken while it runs, even ranges of their inputs, masks."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import gossamer
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.progress import Silent
from gossamer.measure import Agreement
from gossamer.ptq import dynamic, rounding, smoothing
from gossamer.ptq.activation_ranges import ActivationHistogram, channel_ranges, histogram, lost, observe
from gossamer.ptq.fallback import QuantizedCandidate, float32_scores, quantize_int8
from gossamer.runtime.onnx_export import export_onnx

WIDTH, TOKENS, WORDS = 16, 6, 1100


class Encoder(nn.Module):
    """Attention with a mask of very negative numbers, then a vector of length one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        with torch.no_grad():
            self.norm.weight[3] = 40.0  # one large channel, as transformers have

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids))
        scores = self.queries(x) @ self.keys(x).mT / 4
        scores = scores + (1 - mask[:, None, :].float()) * torch.finfo(torch.float32).min
        x = scores.softmax(-1) @ self.values(x)
        x = self.narrow(torch.nn.functional.gelu(self.wide(x)))
        return torch.nn.functional.normalize(x.mean(1), dim=-1)


def batches(count: int) -> list[tuple[tuple[Tensor, Tensor], None]]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(8, TOKENS, dtype=torch.long)
    mask[::2, -2:] = 0
    return [((torch.randint(WORDS, (8, TOKENS), generator=generator), mask), None) for _ in range(count)]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return onnx.load(export_onnx(Encoder().eval(), batches(1)[0][0], path))


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), batches(1)[0][0])}
    return session.run(None, feed)[0]


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_all_matrices_and_the_table_are_int8_and_inputs_are_rounded_once(network: onnx.ModelProto) -> None:
    found = dynamic.quantize(network)
    onnx.checker.check_model(found)
    assert kinds(found).count("MatMulInteger") == 5
    assert kinds(found).count("DynamicQuantizeLinear") == 3  # one for queries, keys and values
    before, after = arrays(network), arrays(found)
    table, codes, step = before["words:Gather.0"], after["words:Gather.0/codes"], after["words:Gather.0/step"]
    assert codes.dtype == np.int8 and codes.shape == table.shape and step.shape == (WORDS, 1)
    assert (np.abs(codes * step - table) <= step / 2 + 1e-7).all()
    assert "words:Gather.0" not in after
    for node in network.graph.node:
        if node.op_type == "MatMul" and node.input[1] in before:
            weight, name = before[node.input[1]], node.input[1]
            step = after[f"{name}/step"]
            assert (np.abs(after[f"{name}/codes"] * step - weight) <= step / 2 + 1e-6).all()
    assert found.ByteSize() < 0.45 * network.ByteSize()


def test_outputs_stay_near_and_what_is_left_out_stays_exact(network: onnx.ModelProto) -> None:
    exact = run(network)
    assert ((run(dynamic.quantize(network)) * exact).sum(1) > 0.98).all()
    layers = [node.name for node in network.graph.node]
    np.testing.assert_array_equal(run(dynamic.quantize(network, exclude=layers)), exact)


def test_a_linear_layer_with_bias_on_rows_is_the_same_sum(tmp_path: object) -> None:
    layer, x = nn.Linear(200, 5), torch.randn(3, 200)
    found = dynamic.quantize(onnx.load(export_onnx(layer, (x,), tmp_path / "net.onnx")))
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    [given] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), layer(x).detach(), rtol=0, atol=0.05)


def test_networks_of_convolutions_do_not_fit(network: onnx.ModelProto, tmp_path: object) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.Flatten(), nn.Linear(32 * 4, 2))
    other = onnx.load(export_onnx(model.eval(), (torch.rand(2, 1, 6, 6),), tmp_path / "net.onnx"))
    assert dynamic.is_mostly_products(network) and not dynamic.is_mostly_products(other)
    old = onnx.ModelProto()
    old.CopyFrom(network)
    old.opset_import[0].version = 10  # operators would mean something else in a later opset
    assert not dynamic.is_mostly_products(old)


@pytest.mark.parametrize("strength", smoothing.STRENGTHS)
def test_smoothing_is_the_same_function_with_more_even_inputs(
    network: onnx.ModelProto, strength: float, tmp_path: object
) -> None:
    def ranges(model: onnx.ModelProto) -> dict[str, np.ndarray]:
        names = list(smoothing.product_inputs(model))
        return channel_ranges(model, names, batches(2), tmp_path, threads=1, axis=-1)

    before = ranges(network)
    found = smoothing.even_inputs(network, before, strength)
    np.testing.assert_allclose(run(found), run(network), atol=2e-5)
    after = ranges(found)
    assert len(after) == len(before) == 3
    spread = [[float(x.max() / np.median(x)) for x in each.values()] for each in (before, after)]
    assert all(new <= old for old, new in zip(*spread)) and spread[1][0] < spread[0][0] / 3
    # The norm takes the division in; the two other inputs get a product by a vector.
    assert kinds(found).count("Mul") == kinds(network).count("Mul") + 2


def test_weights_of_products_are_rounded_and_the_sum_behind_takes_the_mean_error(
    network: onnx.ModelProto, tmp_path: object
) -> None:
    layers = rounding.rounded_layers(network)
    assert [node.op_type for node in layers] == ["MatMul"] * 5
    rounded, steps = rounding.round_weights(network, batches(4), tmp_path, threads=1, samples=None, progress=Silent())
    assert len(steps) == 5
    before, after = arrays(network), arrays(rounded)
    for name, step in steps.items():
        codes = after[name] / step
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    changed = [
        name for name in before if name.endswith(":Add.weight") and not np.array_equal(before[name], after[name])
    ]
    assert len(changed) == 5
    assert np.square(run(dynamic.quantize(rounded, steps=steps)) - run(network)).mean() < 1e-2


def test_what_becomes_zero_is_counted() -> None:
    values = np.array([1.0, 2.0, 3.0, -1e6, 0.0, 0.0], np.float32)
    seen = ActivationHistogram(low=-1e6, high=3.0, counts=histogram(values))
    assert lost(seen, (-1e6, 3.0)) == pytest.approx(3 / 4)
    assert lost(seen, (-1.0, 3.0)) == 0
    nothing = ActivationHistogram(low=0.0, high=0.0, counts=histogram(np.zeros(4, np.float32)))
    assert lost(nothing, (0.0, 0.0)) == 0


@pytest.mark.parametrize(("runtime", "first"), [("onnxruntime", "dynamic ranges"), ("openvino", "min-max")])
def test_a_masked_encoder_stays_what_it_is_on_both_runtimes(runtime: str, first: str, tmp_path: object) -> None:
    model = Encoder().eval()
    data = batches(6)
    task = gossamer.Task.from_loaders(data, data, metric=Agreement(reference=model, kind="cosine"))
    goal = Goal(max_drop=3, runtime=runtime, threads=1)
    found = quantize_int8(
        model, task, tmp_path, goal=goal, reference=float32_scores(model, task), samples=16, context=Context()
    )
    assert found.steps[0].name == first
    assert found.met and found.drop.points < 3


def test_scores_with_a_mask_are_not_rounded(network: onnx.ModelProto, tmp_path: object) -> None:
    seen = observe(network, batches(2), tmp_path, threads=1)
    found = QuantizedCandidate("min-max", network, seen).build()
    assert ((run(found) * run(network)).sum(1) > 0.9).all()
    rounded = {name for node in found.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    assert not [node for node in found.graph.node if node.op_type == "Softmax" and rounded & set(node.input)]
    [softmax] = [node for node in found.graph.node if node.op_type == "Softmax"]
    [masked] = [node for node in found.graph.node if softmax.input[0] in node.output]
    assert masked.op_type == "Add"


class Normed(nn.Module):
    """A norm as an exporter writes it, one operation after the other; the squares of quiet samples become 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv1d(4, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-6)
        return self.last(x.relu().mean(2))


def test_sums_and_products_between_layers_stay_in_float32_where_they_cost_most(tmp_path: object) -> None:
    model = Normed().eval()
    loud = torch.logspace(-0.7, 0.5, 16)[:, None, None]
    data = [(loud * torch.randn(16, 4, 12), None) for _ in range(4)]
    task = gossamer.Task.from_loaders(data, data, metric=Agreement(reference=model, kind="cosine"))
    goal, reference = Goal(max_drop=2, threads=1), float32_scores(model, task)
    found = quantize_int8(model, task, tmp_path, goal=goal, reference=reference, samples=64)
    assert found.steps[0].note == "sums and products between layers in float32"
    assert found.steps[0].accepted and len(found.steps) == 1
    weights = {t.data_type for t in onnx.load(found.path).graph.initializer if len(t.dims) > 1 and max(t.dims) > 4}
    assert weights == {onnx.TensorProto.INT8}


def test_a_residual_network_is_int8_throughout(tmp_path: object) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.c((x + self.b(x)).relu().mean((2, 3)))

    model = Residual().eval()
    data = [(torch.rand(16, 1, 8, 8), None) for _ in range(2)]
    task = gossamer.Task.from_loaders(data, data, metric=Agreement(reference=model, kind="cosine"))
    goal, reference = Goal(max_drop=5, threads=1), float32_scores(model, task)
    found = quantize_int8(model, task, tmp_path, goal=goal, reference=reference, samples=32)
    assert found.met and not found.steps[0].note
