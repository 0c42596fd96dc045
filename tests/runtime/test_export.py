import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy_nets import Textures, images, task, trained
from torch import nn

import gossamer
from gossamer.errors import BadInput, CorruptFile, ExportMismatch
from gossamer.models.zoo import build
from gossamer.ptq import qdq
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify


def nodes(path):
    return {node.name: node.op_type for node in onnx.load(path).graph.node}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_onnx(trained(), task().example_inputs, tmp_path_factory.mktemp("onnx") / "net.onnx")


def test_the_file_computes_what_the_module_does_at_any_batch_size(exported):
    runner = open_runner("onnxruntime", exported, threads=1)
    for batch in (1, 2, 7):
        x = images(batch, 9)[0]
        torch.testing.assert_close(runner(x), trained()(x), rtol=1e-4, atol=1e-5)


def test_nothing_but_the_weights_and_the_graph_is_in_the_file(exported):
    model = onnx.load(exported)
    weights = sum(4 * p.numel() for p in Textures().parameters())
    assert exported.stat().st_size < weights + 4000
    assert not model.metadata_props and not model.graph.value_info and not model.functions
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_weighted_nodes_carry_the_names_of_their_modules(exported):
    names = nodes(exported)
    assert all(names[f"conv{i}"] == "Conv" for i in range(1, 5)) and names["fc"] == "Gemm"
    assert [value.name for value in onnx.load(exported).graph.input] == ["input"]
    assert [value.name for value in onnx.load(exported).graph.output] == ["output"]


def test_only_operations_with_integer_kernels_are_left(exported):
    assert set(nodes(exported).values()) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


@pytest.mark.parametrize("name", ["resnet8", "wrn16_1"])
@pytest.mark.slow
def test_networks_of_the_zoo_agree(name, tmp_path):
    torch.manual_seed(0)
    model = build(name, in_channels=1).train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(3, 1, 16, 16)
    path = export_onnx(model, (x[:1],), tmp_path / "net.onnx")
    assert model.training
    torch.testing.assert_close(open_runner("onnxruntime", path, threads=1)(x), model.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_module_is_left_as_it_was(tmp_path):
    model = trained().train().double()
    model.fc.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, task().example_inputs, tmp_path / "net.onnx")
    assert model.training and not model.fc.training and model.conv1.weight.dtype == torch.float64
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)
        self.same = nn.Parameter(self.a.weight.detach().clone())

    def forward(self, x, y):
        return {"sum": self.a(x) + self.b(y), "product": x @ self.same.T}


def test_several_inputs_and_dict_outputs_come_back_as_the_network_gives_them(tmp_path):
    model, x, y = TwoInputs().eval(), torch.randn(2, 3), torch.randn(2, 5)
    path = export_onnx(model, (x, y), tmp_path / "net.onnx")
    for runtime, source in (("onnxruntime", path), ("openvino", path), ("torch", model)):
        got = open_runner(runtime, source, threads=1)(x, y)
        torch.testing.assert_close(got, model(x, y), rtol=1e-4, atol=1e-5)


class Nested(nn.Module):
    """Boxes, class logits and a list of features, in a tuple."""

    def __init__(self):
        super().__init__()
        self.conv, self.boxes, self.labels = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = self.conv(x)
        pooled = z.mean((2, 3))
        return {"boxes": self.boxes(pooled), "labels": self.labels(pooled)}, (z, pooled), None


def test_nested_outputs_survive_export_and_int8(tmp_path):
    model, x = Nested().eval(), torch.randn(4, 1, 8, 8)
    path = export_onnx(model, (x,), tmp_path / "net.onnx")
    network = onnx.load(path)
    stored = {tensor.name for tensor in network.graph.initializer}
    seen = {name: (-9.0, 9.0) for name in value_names(network) if name not in stored}  # weights have steps of their own
    write_onnx(qdq.quantize_graph(network, seen), tmp_path / "int8.onnx")
    for file, precision in (("net.onnx", "float32"), ("int8.onnx", "int8")):
        for runtime in ("onnxruntime", "openvino"):
            got = open_runner(runtime, tmp_path / file, threads=1, precision=precision)(x)
            assert isinstance(got, tuple) and got[2] is None and list(got[0]) == ["boxes", "labels"]
            torch.testing.assert_close(got, model(x), rtol=0.2, atol=0.2)


def value_names(model):
    return {n for node in model.graph.node for n in (*node.input, *node.output)} | {i.name for i in model.graph.input}


def test_every_output_is_compared(tmp_path):
    model, x, y = TwoInputs().eval(), torch.randn(2, 3), torch.randn(2, 5)
    runner = open_runner("onnxruntime", export_onnx(model, (x, y), tmp_path / "net.onnx"), threads=1)
    assert verify(model, runner, [((x, y), None)])[1].value < 1e-5

    def other(x, y):
        return {**model(x, y), "product": 1.01 * model(x, y)["product"]}

    with pytest.raises(ExportMismatch, match=r"largest relative difference 9\.9e-03"):
        verify(other, runner, [((x, y), None)])


class Sliced(nn.Module):
    def __init__(self, start, pads):
        super().__init__()
        self.start, self.pads = start, pads

    def forward(self, x):
        return nn.functional.pad(x[:, :, self.start :: 2, ::2], self.pads)


@pytest.mark.parametrize(
    ("start", "pads", "becomes"),
    [
        (0, (0, 0, 0, 0, 1, 2), {"Conv"}),
        (1, (0, 0, 0, 0, 1, 2), {"Slice", "Conv"}),
        (0, (0, 1, 0, 0, 1, 2), {"Slice", "Pad"}),
    ],
)
def test_a_padded_slice_is_a_convolution_where_it_takes_every_nth_pixel_from_the_first(start, pads, becomes, tmp_path):
    model, x = Sliced(start, pads), torch.randn(2, 3, 9, 8)
    path = export_onnx(model, (x,), tmp_path / "net.onnx")
    assert set(nodes(path).values()) == becomes
    assert torch.equal(open_runner("onnxruntime", path, threads=1)(x), model(x))


class Squeezed(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True).squeeze() * 2


def test_an_example_of_one_sample_does_not_fix_the_batch(tmp_path):
    path = export_onnx(Squeezed(), (torch.randn(1, 3, 4, 4),), tmp_path / "net.onnx")
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(open_runner("onnxruntime", path, threads=1)(x), Squeezed()(x))


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_exported_is_named_in_one_line_and_the_old_file_stays(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(BadInput, match="Branches cannot be exported to ONNX") as caught:
        export_onnx(Branches(), (torch.ones(2, 3),), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(BadInput, match=r"cannot be exported to \.pt2"):
        export_pt2(Branches(), (torch.ones(2, 3),), path)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3) * 2


@pytest.mark.slow
def test_a_forward_that_fixes_the_batch_size_is_told_what_to_do(tmp_path):
    with pytest.raises(BadInput, match="dynamic_batch=False"):
        export_onnx(FixedBatch(), (torch.ones(2, 3),), tmp_path / "net.onnx")
    path = export_onnx(FixedBatch(), (torch.ones(2, 3),), tmp_path / "net.onnx", dynamic_batch=False)
    assert torch.equal(open_runner("onnxruntime", path)(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        export_onnx(trained(), task().example_inputs, tmp_path / "no" / "net.onnx")


@pytest.mark.slow
def test_export_is_silent(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(trained(), task().example_inputs, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_pt2_file_runs_without_the_class_at_any_batch_size(tmp_path):
    model = trained().train()
    path = export_pt2(model, task().example_inputs, tmp_path / "net.pt2")
    assert model.training and list(tmp_path.iterdir()) == [path]
    loaded, x = load_pt2(path), images(5, 1)[0]
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-5, atol=1e-6)
    assert not loaded.eval().training
    with pytest.raises(BadInput, match="cannot be trained"):
        loaded.train()
    torch.testing.assert_close(open_runner("torch", loaded, threads=1)(x), model(x), rtol=1e-5, atol=1e-6)


class Sum(nn.Module):
    """Takes any number of inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, *more):
        return self.layer(x + sum(more))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.slow
def test_networks_out_of_files_are_exported_again_whatever_they_take(count, tmp_path):
    torch.manual_seed(0)
    model, x = Sum().eval(), tuple(torch.randn(3, 4) for _ in range(count))
    example = tuple(part[:2] for part in x)
    gossamer.save(model, tmp_path / "net.gsr", example)
    sources = [model, load_pt2(export_pt2(model, example, tmp_path / "net.pt2")), gossamer.load(tmp_path / "net.gsr")]
    for source in sources:
        runner = open_runner("onnxruntime", export_onnx(source, example, tmp_path / "again.onnx"), threads=1)
        torch.testing.assert_close(runner(*x), model(*x), rtol=1e-5, atol=1e-6)
        again = load_pt2(export_pt2(source, example, tmp_path / "again.pt2"))
        torch.testing.assert_close(again(*x), model(*x))
        gossamer.save(source, tmp_path / "again.gsr", example)
        torch.testing.assert_close(gossamer.load(tmp_path / "again.gsr")(*x), model(*x))


def test_a_damaged_pt2_file_is_refused(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"PK not really")
    with pytest.raises(CorruptFile, match=r"net\.pt2"):
        load_pt2(path)
    with pytest.raises(BadInput, match="no such file"):
        load_pt2(tmp_path / "other.pt2")


def test_a_pt2_file_names_no_folders_and_loads_with_the_pickles_of_others_left_out(tmp_path):
    path = export_pt2(trained(), task().example_inputs, tmp_path / "net.pt2")
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
    x = images(2, 1)[0]
    torch.export.save(torch.export.export(trained(), (x,)), tmp_path / "plain.pt2")
    torch.testing.assert_close(load_pt2(tmp_path / "plain.pt2")(x), trained()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "old", "new", "reason"),
    [
        ("models/model.json", b'"torch.ops.aten.relu.default"', b'"torch.hub.load"', "no operation of torch"),
        ("models/model.json", b"Symbol(", b"open(", "no expression of sizes"),
        ("data/weights/model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true', "is pickled"),
        ("data/constants/custom_obj_0", b"", b"x", "only tensors and one graph"),
        ("models/model.json", b"{", b"[", "incomplete archive"),
    ],
)
def test_a_pt2_file_that_would_run_code_is_refused(part, old, new, reason, tmp_path):
    path, hostile = export_pt2(trained(), task().example_inputs, tmp_path / "net.pt2"), tmp_path / "hostile.pt2"
    changed = False
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(hostile, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(part):
                changed = old in content
                content = content.replace(old, new, 1)
            target.writestr(name, content)
        if not old:
            changed = True
            target.writestr(f"{source.namelist()[0].split('/')[0]}/{part}", new)
    assert changed
    with pytest.raises(CorruptFile, match=rf"hostile\.pt2.*{reason}"):
        load_pt2(hostile)


def test_equal_tensors_are_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    model[1].load_state_dict(model[0].state_dict())
    path = export_onnx(model, (torch.randn(2, 64),), tmp_path / "net.onnx")
    assert path.stat().st_size < 1.2 * 4 * (64 * 64 + 64)
    assert onnxruntime.InferenceSession(str(path)).run(None, {"input": np.zeros((2, 64), np.float32)})[0].shape == (
        2,
        64,
    )
