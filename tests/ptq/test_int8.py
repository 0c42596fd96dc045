import tracemalloc

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy_nets import batches, images, task, trained
from onnx import numpy_helper
from torch import nn

from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.progress import Silent
from gossamer.errors import BadInput, NoEffect
from gossamer.measure import RMSE, Evaluation, Top1
from gossamer.ptq.activation_ranges import (
    BINS,
    EDGES,
    ActivationHistogram,
    histogram,
    least_squares,
    min_max,
    observe,
    percentile,
)
from gossamer.ptq.fallback import FallbackSequence, QuantizedCandidate, float32_scores, quantize_int8, rounded_weights
from gossamer.ptq.qdq import quantize_graph
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.runners import open_runner


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return export_onnx(trained(), task().example_inputs, tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.fixture(scope="module")
def reference():
    return float32_scores(trained(), task())


def hits(scores):
    """What a network gave that was right on these samples."""
    return Evaluation(Top1(), {"score": scores})


def same_evidence(runner, scores):
    return torch.equal(task().metric.evidence(runner, task().validation)["score"], scores.evidence["score"])


def ranges_of(network, folder):
    seen = observe(onnx.load(network), task().calibration, folder, threads=1)
    return {name: min_max(one) for name, one in seen.items()}


def run(model, folder, x):
    path = folder / "run.onnx"
    write_onnx(model, path)
    return open_runner("onnxruntime", path, threads=1)(x)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_first_step_does_for_an_easy_network(runtime, network, reference, tmp_path):
    found = quantize_int8(
        network, task(), tmp_path, goal=Goal(max_drop=1, runtime=runtime, threads=1), reference=reference
    )
    assert found.met and [step.name for step in found.steps] == ["min-max"] and found.chosen == "min-max"
    assert found.steps[0].accepted and found.drop.points <= 1
    runner = open_runner(runtime, found.path, threads=1, precision="int8")
    assert same_evidence(runner, found.scores)
    assert found.scores.value > reference.value - 0.01
    assert [path.name for path in tmp_path.iterdir()] == ["model.int8.onnx"]


@pytest.mark.slow
def test_a_module_is_exported_on_the_way_and_left_alone(reference, tmp_path):
    model = trained().train()
    found = quantize_int8(model, task(), tmp_path, goal=Goal(max_drop=1, threads=1), reference=reference, samples=64)
    assert model.training and found.met and [path.name for path in tmp_path.iterdir()] == ["model.int8.onnx"]


def test_nothing_but_integer_kernels_runs_between_input_and_output(network, tmp_path):
    path = tmp_path / "int8.onnx"
    write_onnx(quantize_graph(onnx.load(network), ranges_of(network, tmp_path)), path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 6 and kinds.count("QLinearAdd") == 2 and kinds.count("QGemm") == 1
    assert kinds.count("QuantizeLinear") == 1 and kinds[0] == "QuantizeLinear"
    assert not {"Conv", "Add", "Gemm", "Relu", "GlobalAveragePool", "DequantizeLinear"} & set(kinds)


def test_the_file_holds_a_byte_a_weight_and_little_else(network, tmp_path):
    model = quantize_graph(onnx.load(network), ranges_of(network, tmp_path))
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert kinds == {"INT8", "UINT8", "INT32", "FLOAT"}
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 64]
    assert large and all(tensor.data_type == onnx.TensorProto.INT8 for tensor in large)
    weights = sum(np.prod(tensor.dims) for tensor in large)
    assert len(model.SerializeToString()) < weights + 6500
    assert not model.metadata_props and not model.graph.value_info
    constants = {tensor.name for tensor in model.graph.initializer}
    weights_in = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    # Zero points only of the two inputs of the matrix product that are constant.
    assert sum(len(node.input) == 3 for node in weights_in) <= 2 < len(weights_in)


def test_excluded_nodes_stay_in_float(network, tmp_path):
    model = quantize_graph(onnx.load(network), ranges_of(network, tmp_path), exclude=["conv4"])
    assert "conv4" not in rounded_weights(model) and "conv3" in rounded_weights(model)
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(network).graph.initializer}
    kept = [numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [16, 16, 3, 3]]
    assert np.array_equal(kept[0], original["conv4.weight"])


class Bottleneck(nn.Module):
    """Two convolutions of which the first makes one channel `factor` times too large and the second takes it back."""

    def __init__(self, factor):
        super().__init__()
        self.inner = trained()
        self.enter, self.leave = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            self.enter.weight.copy_(torch.tensor([1.0, factor, -1.0, -factor]).view(4, 1, 1, 1))
            self.enter.bias.zero_()
            self.leave.weight.copy_(torch.tensor([1.0, 0.1 / factor, -1.0, -0.1 / factor]).view(1, 4, 1, 1))
            self.leave.bias.zero_()

    def forward(self, x):
        return self.inner(self.leave(torch.relu(self.enter(x))))


class Listener(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.mark.slow
def test_unequal_channels_fail_min_max_and_are_saved_by_equalization(tmp_path):
    model = Bottleneck(3000.0).eval()
    exact = float32_scores(model, task())
    assert exact.value > 0.9
    listener = Listener()
    found = quantize_int8(
        model, task(), tmp_path, goal=Goal(max_drop=1, threads=1), reference=exact, context=Context(progress=listener)
    )
    first, last = found.steps[0], found.steps[-1]
    assert not first.accepted and first.drop > 5
    assert last.accepted and last.name == "channel equalization" == found.chosen and found.met
    assert len(listener.said) == len(found.steps) and "min-max" in listener.said[0]
    runner = open_runner("onnxruntime", found.path, threads=1, precision="int8")
    assert same_evidence(runner, found.scores)


def test_products_never_saturate_on_any_processor(tmp_path):
    """Two products of bytes of eight bits may pass 16 bits; with the steps that are taken they do not: the kernel gives
    what its rounded weights and inputs give in floating point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 8, 3), nn.Flatten()).eval()
    nn.init.uniform_(model[0].weight, 0.9, 1.0)  # all large, of one sign
    x = 1 - 0.1 * torch.rand(4, 64, 5, 5)
    network = onnx.load(export_onnx(model, (x,), tmp_path / "net.onnx"))
    seen = observe(network, [(x, None)], tmp_path, threads=1)
    int8 = quantize_graph(network, {name: min_max(one) for name, one in seen.items()})
    [weight] = rounded_weights(int8).values()
    codes = [t for t in map(numpy_helper.to_array, int8.graph.initializer) if t.dtype == np.int8 and t.ndim == 4]
    assert [int(np.abs(code).max()) for code in codes] == [64]
    model[0].weight.data = torch.from_numpy(weight)
    wanted = model(x).detach()
    error = (run(int8, tmp_path, x) - wanted).abs().max() / wanted.abs().max()
    assert float(error) < 0.01


@pytest.mark.slow
def test_rare_extremes_fail_min_max_and_are_cut_off_by_another_rule(tmp_path):
    plain = task()
    calibration = [(x.clone(), y) for x, y in batches(256, 3)]
    calibration[0][0][0, 0, 0, 0] = 300.0
    spiked = type(plain)(**{**plain.__dict__, "calibration": calibration})
    found = quantize_int8(
        trained(), spiked, tmp_path, goal=Goal(max_drop=1, threads=1), reference=float32_scores(trained(), plain)
    )
    assert not found.steps[0].accepted and found.met and found.chosen in ("least squares", "percentile 99.99")


@pytest.mark.slow
def test_an_impossible_budget_tries_everything_and_gives_the_best(network, tmp_path):
    everything_right = hits(torch.ones(1280))
    found = quantize_int8(
        network, task(), tmp_path, goal=Goal(max_drop=0, threads=1), reference=everything_right, samples=64
    )
    names = [step.name for step in found.steps]
    assert names[:3] == ["min-max", "least squares", "percentile 99.99"]
    assert "GPTQ" in names and "float layers: 1" in names
    assert not found.met and not any(step.accepted for step in found.steps)
    assert found.drop.points == pytest.approx(100 - found.scores.shown, abs=1e-4)
    assert next(step for step in found.steps if step.name == found.chosen).drop == found.drop.points
    runner = open_runner("onnxruntime", found.path, threads=1, precision="int8")
    assert same_evidence(runner, found.scores)


class Judge(FallbackSequence):
    """Whose candidates have known errors, by name."""

    def __init__(self, errors):
        self.errors, self.best = errors, candidate("best")

    def output_error(self, network):
        return self.errors[network.graph.name]


def candidate(name, exclude=()):
    class Named(QuantizedCandidate):
        def build(self):
            return onnx.ModelProto(graph=onnx.GraphProto(name=name))

    return Named(name, onnx.ModelProto(), {}, exclude=exclude)


FARTHER, NEARER = Judge({"new": 2.0, "best": 1.0}), Judge({"new": 0.5, "best": 1.0})


def test_layers_are_left_in_float_only_for_a_gain_beyond_chance():
    before = torch.zeros(1000)
    little, much = before.clone(), before.clone()
    little[:2] = 1
    much[:50] = 1
    before, little, much = hits(before), hits(little), hits(much)
    new, slower = candidate("new"), candidate("new", exclude=("conv",))
    assert not NEARER.improves(slower, before, little) and FARTHER.improves(slower, before, much)
    assert FARTHER.improves(new, before, much) and not NEARER.improves(new, much, before)


def test_where_chance_explains_the_difference_the_nearer_outputs_win():
    before = torch.zeros(1000)
    little = before.clone()
    little[:2] = 1
    new, before, little = candidate("new"), hits(before), hits(little)
    assert NEARER.improves(new, before, little) and NEARER.improves(new, little, before)
    assert not FARTHER.improves(new, before, little) and not FARTHER.improves(new, before, before)


def test_after_a_change_the_rule_with_the_nearest_outputs_is_taken():
    class ByRule(QuantizedCandidate):
        def build(self):
            return onnx.ModelProto(graph=onnx.GraphProto(name=self.rule))

    judge = Judge({"min-max": 3.0, "least squares": 1.0, "percentile 99.99": 2.0})
    taken = judge.with_best_rule(ByRule("GPTQ", onnx.ModelProto(), {}, note="on top of: best, "))
    assert taken.rule == "least squares" and taken.note == "on top of: best, ranges: least squares"


def test_of_errors_the_lower_one_is_better_and_chance_is_that_of_a_paired_bootstrap():
    squares = torch.rand(300, generator=torch.Generator().manual_seed(0))
    one, little, much = (
        Evaluation(RMSE(), {"squares": x, "samples": torch.ones(300)})
        for x in (squares, squares * torch.where(torch.arange(300) == 0, 0.5, 1.0), 0.5 * squares)
    )
    new, slower = candidate("new"), candidate("new", exclude=("conv",))
    assert NEARER.improves(new, one, little) and not NEARER.improves(slower, one, little)
    assert FARTHER.improves(slower, one, much) and not NEARER.improves(slower, much, one)


def test_int8_on_torch_is_refused(network, reference, tmp_path):
    with pytest.raises(BadInput, match="onnxruntime or openvino"):
        quantize_int8(network, task(), tmp_path, goal=Goal(max_drop=1, runtime="torch"), reference=reference)


def test_a_network_without_weighted_layers_is_refused(tmp_path):
    path = export_onnx(nn.ReLU(), (torch.zeros(2, 4),), tmp_path / "net.onnx")
    with pytest.raises(NoEffect, match="no layer"):
        quantize_int8(path, task(), tmp_path, goal=Goal(max_drop=1, threads=1), reference=hits(torch.ones(1280)))


def test_histograms_streamed_in_chunks_are_those_of_all_data_at_once(network, tmp_path):
    seen = observe(onnx.load(network), task().calibration, tmp_path, threads=1)
    x = torch.cat([batch[0] for batch in task().calibration]).numpy()
    assert (seen["input"].low, seen["input"].high) == (x.min(), x.max())
    expected = np.histogram(x, EDGES)[0]
    assert expected.sum() == x.size and np.array_equal(seen["input"].counts, expected)
    assert list(tmp_path.iterdir()) == []


def test_histogram_counts_zero_tiny_and_huge_numbers_at_the_ends_of_its_bins():
    counts = histogram(np.array([0.0, -0.0, 1e-30, 1e30, -1e30, 1.0], np.float32))
    one = int(np.searchsorted(EDGES, 1.0))
    assert counts[BINS] == 3 and counts[-1] == 1 and counts[0] == 1 and counts[one] == 1 and EDGES[one] == 1
    assert counts.sum() == 6


def test_memory_of_calibration_does_not_grow_with_the_samples(network, tmp_path):
    class Endless:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return ((images(64, seed)[0], None) for seed in range(self.batches))

    peaks = []
    for count in (1, 2, 30):
        tracemalloc.start()
        observe(onnx.load(network), Endless(count), tmp_path, threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]


def test_calibration_looks_at_no_more_samples_than_asked_and_refuses_none(network, tmp_path):
    seen = observe(onnx.load(network), task().calibration, tmp_path, threads=1, samples=70)
    assert seen["input"].counts.sum() == 70 * 144
    with pytest.raises(BadInput, match="no samples"):
        observe(onnx.load(network), [], tmp_path, threads=1)
    with pytest.raises(BadInput, match="not finite"):
        observe(onnx.load(network), [(torch.full((2, 1, 12, 12), torch.nan), None)], tmp_path, threads=1)


def seen_of(values):
    values = values.astype(np.float32)
    return ActivationHistogram(low=float(values.min()), high=float(values.max()), counts=histogram(values))


def test_rules_cut_what_they_say():
    values = np.append(np.random.default_rng(0).normal(size=200_000), 1e6)
    assert min_max(seen_of(values)) == pytest.approx((values.min(), 1e6))
    low, high = percentile(seen_of(values), 99.9)
    assert (low, high) == pytest.approx((np.quantile(values, 0.0005), np.quantile(values, 0.9995)), rel=0.04)
    positive = seen_of(np.abs(values))
    assert min_max(positive)[0] == percentile(positive)[0] == least_squares(positive)[0] == 0
    assert percentile(seen_of(np.full(10, 3.0))) == (0, 3)


def test_least_squares_has_the_least_error_of_all_its_shares():
    values = np.random.default_rng(1).exponential(size=20_000)

    def error(high):
        step = high / 15
        return float(((np.clip(np.round(values / step), 0, 15) * step - values) ** 2).mean())

    _, high = least_squares(seen_of(values), levels=16)
    best = min(error(share * values.max()) for share in np.geomspace(1, 1e-3, 100))
    assert error(high) < 1.05 * best < error(values.max())
