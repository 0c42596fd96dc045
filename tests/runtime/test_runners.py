import shutil
import sys

import onnx
import pytest
import torch
from deploy_nets import images, task, trained
from torch import nn

from gossamer.errors import BadInput, CorruptFile, ExportMismatch, MissingExtra, first_line
from gossamer.measure import latency, peak_memory
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.profiling import layer_times, origin, owners_of
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_onnx(trained(), task().example_inputs, tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_every_runtime_agrees_with_torch(runtime, exported):
    runner = open_runner(runtime, trained() if runtime == "torch" else exported, threads=1)
    x = images(9, 5)[0]
    torch.testing.assert_close(runner(x), trained()(x), rtol=1e-4, atol=1e-5)
    assert (runner.runtime, runner.precision, runner.threads, runner.device) == (runtime, "float32", 1, "cpu")
    assert runner.version[0].isdigit()
    assert task().metric.score(runner, task().validation) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_torch_compile_agrees_with_torch():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    runner = open_runner("torch.compile", model, threads=1)
    x = torch.randn(5, 4)
    torch.testing.assert_close(runner(x), model(x))
    assert runner.runtime == "torch.compile"


def test_torch_compile_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(MissingExtra, match="apt-get install g"):
        open_runner("torch.compile", nn.Linear(2, 2))


def test_the_outputs_of_one_call_survive_the_next(exported):
    a, b = images(4, 1)[0], images(4, 2)[0]
    for runtime in ("onnxruntime", "openvino"):
        runner = open_runner(runtime, exported, threads=1)
        first = runner(a)
        kept = first.clone()
        runner(b)
        assert torch.equal(first, kept)


def test_a_torch_runner_is_a_copy_in_eval_mode_and_restores_the_threads():
    model = trained().train()
    runner = open_runner("torch", model, threads=2)
    before, x = torch.get_num_threads(), images(8, 5)[0]
    expected = runner(x)
    assert torch.get_num_threads() == before and model.training
    nn.init.zeros_(model.fc.weight)
    assert torch.equal(runner(x), expected) and not expected.requires_grad


def test_other_precisions_of_openvino_are_named_as_such(exported):
    assert open_runner("openvino", exported, threads=1, precision="bfloat16").precision == "bfloat16"
    chosen = open_runner("openvino", exported, threads=1, precision="default").precision
    assert chosen in ("bfloat16 (default)", "float32 (default)", "float16 (default)")


@pytest.mark.parametrize(
    ("runtime", "source", "options", "message"),
    [
        ("onnx", "net.onnx", {}, "did you mean 'onnxruntime'"),
        ("onnxruntime", "net.onnx", {"precision": "bfloat16"}, "has no precision 'bfloat16'; it has float32, int8"),
        ("onnxruntime", "net.onnx", {"threads": 0}, "threads = 0"),
        ("onnxruntime", "net.onnx", {}, "no such file"),
        ("torch", "net.onnx", {}, "runs a torch module"),
        ("openvino", nn.Identity(), {}, "export_onnx"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(runtime, source, options, message):
    with pytest.raises(BadInput, match=message):
        open_runner(runtime, source, **options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_damaged_file_is_named(runtime, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08garbage")
    with pytest.raises(CorruptFile, match=r"net\.onnx"):
        open_runner(runtime, path)


def test_a_missing_openvino_names_the_extra(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"gossamer\[openvino\]"):
        open_runner("openvino", exported)


def test_latencies_of_real_runners_come_out_in_the_order_given(exported):
    runners = {runtime: open_runner(runtime, exported, threads=1) for runtime in ("openvino", "onnxruntime")}
    found = latency(runners, (images(4, 1)[0],), repeats=5, warmup=1)
    assert list(found) == ["openvino", "onnxruntime"]
    assert all(value.median_ms > 0 and value.batch == 4 for value in found.values())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layer_times_are_by_torch_module_and_leave_no_log(runtime, exported):
    x = images(64, 1)[0]
    times = layer_times(runtime, exported, (x,), threads=1, repeats=5, warmup=1)
    assert {"conv1", "conv2", "conv3", "conv4", "fc"} <= set(times)
    assert all(value >= 0 for value in times.values())
    assert times["conv2"] > 0
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_a_fused_activation_counts_to_the_weighted_node_before_it():
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["1"], name="a.conv"),
        make("Relu", ["1"], ["2"], name="a:Relu"),
        make("MaxPool", ["2"], ["3"], name="pool"),
    ]
    owners = owners_of(nodes)
    assert origin("2_nchwc", owners) == origin("a.conv_token_7", owners) == "a.conv"
    assert origin("a.conv/WithoutBiases", owners) == "a.conv"
    assert origin("a:Relu", owners) == "a:Relu" and origin("3_nchwc", owners) == "pool"
    assert origin("ReorderOutput", owners) == "other"


def test_layer_times_of_torch_are_refused(exported):
    with pytest.raises(BadInput, match="onnxruntime or openvino"):
        layer_times("torch", exported, (images(1, 1)[0],))


@pytest.mark.slow
def test_peak_memory_is_measured_by_this_gossamer_not_by_files_of_the_current_folder(exported, tmp_path, monkeypatch):
    for name in ("json.py", "numpy.py", "gossamer.py"):  # what a user's folder may hold
        (tmp_path / name).write_text("raise SystemExit('not a library')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert peak_memory(exported, (torch.zeros(1, 1, 12, 12),), threads=1) > 0


@pytest.mark.slow
def test_peak_memory_grows_with_the_batch(exported):
    small, large = (peak_memory(exported, (torch.zeros(batch, 1, 12, 12),), threads=1) for batch in (1, 8192))
    activation = 4 * 8192 * 8 * 12 * 12
    assert 0 < small < large - activation


def test_verify_records_agreement_and_difference(exported):
    model = trained().train()
    rows = verify(model, open_runner("onnxruntime", exported, threads=1), task().validation)
    assert model.training
    assert [(row.what, row.n) for row in rows] == [("agreement", 1280), ("max_difference", 1280)]
    assert rows[0].value == 100 and rows[1].value < 1e-5


def changed(weight_factor):
    model = trained()
    with torch.no_grad():
        model.fc.weight.mul_(weight_factor)
    return open_runner("torch", model, threads=1)


@pytest.mark.parametrize("factor", [1.002, -1.0, float("nan")])
def test_verify_fails_a_float_network_that_computes_something_else(factor):
    with pytest.raises(ExportMismatch, match="does not compute what the network does"):
        verify(trained(), changed(factor), task().validation)


def test_verify_only_records_what_other_precisions_change():
    runner = changed(-1.0)
    runner.precision = "int8"
    agreement, difference = verify(trained(), runner, task().validation)
    assert agreement.value < 50 and difference.value > 0.5
    assert agreement.conditions["dtype"] == "int8"


class Table(nn.Module):
    """Gives rows of a table."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, x):
        return self.rows[x]


def test_verify_sees_one_flipped_sample_in_a_hundred_that_hardly_moves_the_outputs():
    rows = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    rows[7] = torch.tensor([0.5, 0.5004])
    flipped = rows.clone()
    flipped[7] = rows[7].flip(0)
    with pytest.raises(ExportMismatch, match=r"agreement 99\.00 %"):
        verify(Table(rows), open_runner("torch", Table(flipped), threads=1), [(torch.arange(100), None)])


def test_verify_lets_ties_change_places():
    class Tie(nn.Module):
        def __init__(self, better):
            super().__init__()
            self.better = better

        def forward(self, x):
            y = torch.ones(len(x), 3)
            y[:, self.better] += 1e-6
            return y

    agreement, _ = verify(Tie(0), open_runner("torch", Tie(1), threads=1), [(torch.zeros(8, 1), None)])
    assert agreement.value == 0


def test_verify_refuses_an_empty_loader_and_other_shapes():
    with pytest.raises(BadInput, match="no samples"):
        verify(trained(), changed(1.0), [])
    with pytest.raises(ExportMismatch, match="shape"):
        verify(lambda x: torch.zeros(len(x), 7), changed(1.0), task().validation)


def test_what_another_library_says_is_told_without_its_headings() -> None:
    told = "Exception from core.cpp:84:\nCheck failed at report.cpp:151:\nNot converted.\n-- No rule for: A.B\n"
    assert first_line(RuntimeError(told)) == "Not converted. No rule for: A.B"
    assert first_line(RuntimeError("first\nsecond")) == "first"
    assert first_line(RuntimeError("only a heading:\n")) == "only a heading:" and first_line(KeyError()) == "KeyError"
