"""Operators that count bits in ONNX Runtime: the same numbers as the layer itself, for every shape and processor."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from gossamer.errors import BadInput, CorruptFile
from gossamer.modules.binary import BinaryConv2d, BinaryLinear
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.onnx_read import read_onnx
from gossamer.runtime.operators import build, library
from gossamer.runtime.operators.rewrite import binary_layers
from gossamer.runtime.runners import open_runner
from gossamer.runtime.sessions import open_session
from gossamer.targets import compare_target, write_target

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
Array = NDArray[Any]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """What the first test would otherwise wait for."""
    library.find_library()


def signed(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with binary weights and batch norms that do something."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, BinaryConv2d | BinaryLinear | OwnSign):
            scale = torch.rand(len(module.weight)).add(0.5).view(-1, *[1] * (module.weight.dim() - 1))
            module.weight.data = torch.where(torch.randn_like(module.weight) >= 0, scale, -scale)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for parameter in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(parameter)  # type: ignore[arg-type]
    return network.eval()


class OwnSign(nn.Conv2d):
    """A user's own binary convolution: another sign, padded by zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x > 0.25, 1.0, -1.0))


def exported(network: nn.Module, x: Tensor, path: Path) -> tuple[list[str], Path]:
    model = read_onnx(export_onnx(network, (x,), path))
    names = binary_layers(model)
    write_onnx(model, path)
    return names, path


CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {  # shape of one sample, layers that are replaced
    "shifted and normed": (BinaryConv2d(5, 7, 3, padding=1, norm="batch", shift=True), (5, 6, 6), 1),
    "groups, stride, dilation": (BinaryConv2d(8, 6, 3, stride=2, dilation=2, groups=2, norm="batch"), (8, 9, 7), 1),
    "a scale of the inputs": (BinaryConv2d(4, 6, 3, padding=1, norm="batch", input_scale=True), (4, 6, 6), 1),
    "a user's own sign, padded by zeros": (OwnSign(35, 9, 3, padding=1), (35, 5, 6), 1),
    "tokens": (BinaryLinear(40, 11), (3, 40), 1),
    "features": (BinaryLinear(33, 9, norm="batch"), (33,), 1),
    "two, a pool between": (
        nn.Sequential(BinaryConv2d(3, 10, 3, padding=1), nn.MaxPool2d(2), BinaryConv2d(10, 4, 3, norm="batch")),
        (3, 8, 8),
        2,
    ),
    "numbers that are no signs": (nn.Conv2d(3, 4, 3), (3, 6, 6), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_gives_what_it_gave(tmp_path: Path, name: str) -> None:
    network, shape, replaced = CASES[name]
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    names, path = exported(signed(network), x, tmp_path / "net.onnx")
    assert len(names) == replaced
    with torch.no_grad():
        expected = network(x)
    assert torch.allclose(open_runner("onnxruntime", path, threads=2)(x), expected, atol=1e-4, rtol=1e-5)


def test_a_file_has_one_bit_for_a_weight_and_no_trace_of_the_signs(tmp_path: Path) -> None:
    network = signed(nn.Sequential(BinaryLinear(512, 256, norm="batch"), nn.PReLU(), BinaryLinear(256, 64)))
    plain = export_onnx(network, (torch.randn(2, 512),), tmp_path / "plain.onnx").stat().st_size
    names, path = exported(network, torch.randn(2, 512), tmp_path / "net.onnx")
    assert path.stat().st_size < plain / 20 and len(names) == 2
    assert [node.op_type for node in onnx.load(path).graph.node] == ["SignProduct", "PRelu", "SignProduct"]


def test_the_target_writes_the_library_beside_the_file_and_never_loads_that_one(tmp_path: Path) -> None:
    network, x = signed(BinaryConv2d(4, 4, 3, norm="batch")), torch.randn(3, 4, 6, 6)
    path = write_target("onnx-binary", network, (x,), tmp_path / "net.onnx")
    beside = tmp_path / build.LIBRARY
    assert beside.read_bytes() == library.find_library().read_bytes()
    beside.write_bytes(b"something else")
    assert compare_target("onnx-binary", network, path, [x]).relative < 1e-5
    with pytest.raises(BadInput, match=r"no layer has signs as weights and as inputs"):
        write_target("onnx-binary", nn.Conv2d(4, 4, 3), (x,), tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def one_operator(path: Path, arrays: dict[str, Array], shape: list[Any], **attributes: Any) -> Path:
    """A file with nothing but the operator."""
    usual = {name: [1, 1] for name in ("kernel_shape", "strides", "dilations")}
    node = helper.make_node(
        "SignProduct",
        ["x", *arrays],
        ["y"],
        domain=library.DOMAIN,
        **({"group": 1, "outside": 0, "matrix": 0, "pads": [0] * 4} | usual | attributes),
    )
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph([node], "one", infos[:1], infos[1:], tensors)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid(library.DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), path)
    return path


def arrays_of(signs: Array, channels: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "signs": np.where(random.random(channels) < 0.5, 1, -1).astype(np.float32),
        "limits": random.standard_normal(channels).astype(np.float32),
        "weight": np.packbits(signs.reshape(len(signs), -1), axis=1, bitorder="little"),
        "scales": random.random(len(signs)).astype(np.float32),
        "bias": random.standard_normal(len(signs)).astype(np.float32),
    }


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    outside=st.sampled_from([-1, 0, 1]),
    group=st.integers(1, 3),
)
@example((2, 33, 9, 5, 9), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 0, 1)
@example((1, 64, 16, 2, 12), (1, 3), (1, 2), (1, 1), (0, 3, 0, 3), 0, 2)
def test_every_shape(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    outside: int,
    group: int,
) -> None:
    samples, of_group, made, height, width = size
    channels, outputs = of_group * group, made * group
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel)]
    if reach[0] > height + pads[0] + pads[2] or reach[1] > width + pads[1] + pads[3]:
        return
    random = np.random.default_rng(0)
    signs = random.random((outputs, of_group, *kernel)) < 0.5
    arrays, x = arrays_of(signs, channels), random.standard_normal((samples, channels, height, width))
    x.flat[0] = np.nan  # which is no 1
    settings_of = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    one_operator(path, arrays, ["n", channels, height, width], group=group, outside=outside, **settings_of)
    given_bits = arrays["signs"][:, None, None] * x.astype(np.float32) >= arrays["limits"][:, None, None]
    padded = F.pad(
        torch.from_numpy(np.where(given_bits, 1.0, -1.0)), (pads[1], pads[3], pads[0], pads[2]), value=outside
    )
    weight = torch.from_numpy(np.where(signs, 1.0, -1.0))
    products = F.conv2d(padded, weight, None, strides, 0, dilations, group).numpy()
    expected = arrays["scales"][:, None, None] * products.astype(np.float32) + arrays["bias"][:, None, None]
    found = open_session(path, threads=1).run(None, {"x": x.astype(np.float32)})[0]
    assert np.array_equal(found, expected)


HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Array], str]] = {  # attributes, constants, what is said
    "no stride": ({"strides": [0, 1]}, {}, "at least 1"),
    "pads of 2^40": ({"pads": [1 << 40] * 4}, {}, "at least 1, pads"),
    "a negative kernel": ({"kernel_shape": [-1, 1]}, {}, "at least 1"),
    "no groups": ({"group": 0}, {}, "multiples of the groups"),
    "groups that do not divide": ({"group": 3}, {}, "multiples of the groups"),
    "three pads": ({"pads": [0, 0, 0]}, {}, "pads"),
    "fewer weights": ({}, {"weight": np.zeros((6, 0), np.uint8)}, "one row of bits"),
    "other limits": ({}, {"limits": np.zeros(3, np.float32)}, "differ in size"),
    "no channels": ({}, {name: np.zeros(0, np.float32) for name in ("signs", "limits")}, "multiples of the groups"),
    "a matrix with groups": ({"matrix": 1, "group": 2}, {}, "one row of bits|no groups"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_operator_is_refused(tmp_path: Path, name: str) -> None:
    attributes, changed, said = HOSTILE[name]
    arrays = arrays_of(np.ones((6, 4), bool), 4) | changed
    path = one_operator(tmp_path / "net.onnx", arrays, ["n", 4, "h", "w"], **attributes)
    with pytest.raises(CorruptFile, match=said):
        open_session(path, threads=1)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of(np.ones((6, 4), bool), 4)
    session = open_session(one_operator(tmp_path / "net.onnx", arrays, [None] * 4), threads=1)
    assert session.run(None, {"x": np.zeros((0, 4, 2, 2), np.float32)})[0].shape == (0, 6, 2, 2)
    for shape in ((1, 3, 2, 2), (1, 4, 0, 2)):
        with pytest.raises(Exception, match=r"SignProduct"):
            session.run(None, {"x": np.zeros(shape, np.float32)})


def test_constants_that_are_computed_are_refused(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "net.onnx", arrays_of(np.ones((6, 4), bool), 4), ["n", 4, "h", "w"])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, [6]))
    for tensor in [one for one in model.graph.initializer if one.name == "scales"]:
        model.graph.initializer.remove(tensor)
    onnx.save(model, path)
    with pytest.raises(CorruptFile, match=r"must be constants"):
        open_session(path, threads=1)


def test_another_operator_of_the_domain_is_refused(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "net.onnx", arrays_of(np.ones((6, 4), bool), 4), ["n", 4, "h", "w"])
    model = onnx.load(path)
    model.graph.node[0].op_type = "Other"
    onnx.save(model, path)
    with pytest.raises(CorruptFile, match=r"'Other' of 'gossamer'"):
        read_onnx(path)


@pytest.mark.slow
def test_a_processor_without_wide_registers_gets_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = signed(BinaryConv2d(40, 12, 3, padding=1)), torch.randn(2, 40, 5, 6)
    path = write_target("onnx-binary", network, (x,), tmp_path / "net.onnx")
    found = open_session(path, threads=1).run(None, {"input": x.numpy()})[0]
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DONLY_PLAIN"))
    build.build_library(tmp_path / "plain.so")
    np.savez(tmp_path / "ends.npz", x=x.numpy(), y=found)
    program = (
        "import sys, numpy, onnxruntime\n"
        "options, ends = onnxruntime.SessionOptions(), numpy.load('ends.npz')\n"
        "options.register_custom_ops_library('./plain.so')\n"
        "session = onnxruntime.InferenceSession('net.onnx', options, providers=['CPUExecutionProvider'])\n"
        "sys.exit(not numpy.array_equal(session.run(None, {'input': ends['x']})[0], ends['y']))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(OSError, match=r"install g\+\+"):
        build.build_library(tmp_path / build.LIBRARY)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_program_without_python_runs_it(tmp_path: Path) -> None:
    network, x = signed(nn.Sequential(nn.Conv2d(2, 8, 3), BinaryConv2d(8, 4, 3, padding=1))), torch.randn(3, 2, 7, 9)
    path = write_target("onnx-binary", network, (x,), tmp_path / "net.onnx")
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None and found.submodule_search_locations is not None
    runtime = next(Path(found.submodule_search_locations[0], "capi").glob("libonnxruntime.so*"))
    program, compiler = tmp_path / "program", build.compiler()
    assert compiler is not None
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)  # as the program looks for it
    source, link = Path(__file__).with_name("outside_python.cpp"), [str(runtime), f"-Wl,-rpath,{tmp_path}"]
    command = [compiler, "-std=c++17", f"-I{build.SOURCE}", str(source), *link, "-o", str(program)]
    subprocess.run(command, check=True)
    sizes = [str(size) for size in x.shape]
    given = [str(program), str(path), str(tmp_path / build.LIBRARY), *sizes]
    done = subprocess.run(given, input=x.numpy().tobytes(), capture_output=True, check=True)
    with torch.no_grad():
        assert np.allclose(np.frombuffer(done.stdout, np.float32), network(x).flatten(), atol=1e-4)
