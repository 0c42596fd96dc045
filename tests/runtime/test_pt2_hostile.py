"""Hostile `.pt2` files: refused before anything of them runs, in one message; and what may stay is read exactly."""

import copy
import functools
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.robustness import _changes, _worker, fuzz_inputs
from gossamer.errors import BadInput, CorruptFile, GossamerError
from gossamer.gsr.format.operations import VIEWS, WRITES, function_of
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.pt2.operations import ALLOWED
from gossamer.runtime.pt2.sizes import check_sizes

WEIGHT = {"as_tensor": {"name": "p_conv_weight"}}
MODEL, CONFIG, CONSTANTS = (
    "archive/models/model.json",
    "archive/data/weights/model_weights_config.json",
    "archive/data/constants/model_constants_config.json",
)


@functools.cache
def sample() -> dict[str, Any]:
    return _changes.unpacked(fuzz_inputs.sample_pt2())


def parts() -> dict[str, Any]:
    """The files of a valid archive, to change."""
    return copy.deepcopy(sample())


def written(files: dict[str, Any], folder: Path) -> Path:
    path = folder / "net.pt2"
    path.write_bytes(_changes.packed(files))
    return path


def node(target: str, *args: Any, gives: Any = "made", **named: Any) -> dict[str, Any]:
    """A call as it stands in a file."""
    inputs = [{"name": "", "arg": arg, "kind": 1} for arg in args]
    inputs += [{"name": name, "arg": arg, "kind": 2} for name, arg in named.items()]
    outputs = [{"as_tensor": {"name": gives}}] if isinstance(gives, str) else gives
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": {}}


def aten(name: str, *args: Any, **named: Any) -> dict[str, Any]:
    return node(f"torch.ops.aten.{name}", *args, **named)


def with_nodes(*nodes: dict[str, Any], result: str | None = None) -> dict[str, Any]:
    """The archive with calls before all others. result: the name of what the network gives first."""
    files = parts()
    module = files[MODEL]["graph_module"]
    module["graph"]["nodes"][:0] = nodes
    if result is not None:
        module["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"] = result
    return files


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def test_a_file_that_would_map_and_write_another_file_is_refused_before_it_runs(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"something dear to somebody")
    files = with_nodes(
        aten("from_file.default", {"as_string": str(victim)}, {"as_bool": True}, {"as_int": 4}, gives="mapped"),
        aten("fill_.Scalar", tensor("mapped"), {"as_float": 0.0}, gives="filled"),
        result="filled",
    )
    with pytest.raises(CorruptFile, match=r"net\.pt2 .*'torch\.ops\.aten\.from_file\.default', which is no operation"):
        load_pt2(written(files, tmp_path))
    assert victim.read_bytes() == b"something dear to somebody"


@pytest.mark.parametrize(
    "target",
    [
        *("torch.ops.aten._foreach_add_.Scalar", "torch.ops.aten._print.default", "torch.ops.aten.set_.default"),
        *("torch.ops.aten.as_strided.default", "torch.ops.aten.resize_.default", "torch.ops.aten.add.out"),
        *("torch.ops.image.write_file.default", "torch.ops.torchvision.nms.default", "torch.ops.profiler._x.default"),
        *("torch.ops.higher_order.cond", "torch.ops.higher_order.wrap_with_set_grad_enabled", "math.prod"),
        *("torch.hub.load", "_operator.attrgetter", "builtins.eval", "torch.ops.aten.relu", "#custom:op", "", 7),
    ],
)
def test_operations_outside_the_list_are_refused(target: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"net\.pt2 is not a \.pt2 file that can be read: "):
        load_pt2(written(with_nodes(node(target, tensor("x"))), tmp_path))


ZERO = {"as_int": 0}


@pytest.mark.parametrize(
    "nodes",
    [
        [aten("fill_.Scalar", WEIGHT, ZERO)],
        [aten("view.default", tensor("x"), {"as_ints": [-1]}, gives="v"), aten("relu_.default", tensor("v"))],
        [
            aten("real.default", WEIGHT, gives="v"),
            aten("alias.default", WEIGHT, gives="w"),
            aten("exp_.default", tensor("w")),
        ],
        [aten("exp_.default", WEIGHT)],
        [aten("view.default", WEIGHT, {"as_ints": [-1]}, gives="v"), aten("zero_.default", tensor("v"))],
        [aten("detach_.default", WEIGHT, gives="v"), aten("zero_.default", tensor("v"))],
        [
            aten("dropout.default", WEIGHT, {"as_float": 0.5}, {"as_bool": False}, gives="v"),
            aten("zero_.default", tensor("v")),
        ],
        [
            aten("chunk.default", WEIGHT, {"as_int": 2}, gives=[{"as_tensors": [{"name": "a"}, {"name": "b"}]}]),
            aten("mul_.Tensor", tensor("b"), ZERO),
        ],
        [
            aten("tensor_split.indices", WEIGHT, {"as_ints": [2]}, gives=[{"as_tensors": [{"name": "a"}]}]),
            aten("zero_.default", tensor("a")),
        ],
        [aten("copy_.default", WEIGHT, WEIGHT)],
    ],
)
def test_writing_into_what_is_stored_or_given_is_refused(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="writes into"):
        load_pt2(written(with_nodes(*nodes), tmp_path))


def test_a_number_in_the_place_of_a_type_is_refused(tmp_path: Path) -> None:
    """Torch crashes on types that it does not know by their number."""
    with pytest.raises(CorruptFile, match=r"to\.dtype takes something else than a ScalarType as dtype"):
        load_pt2(written(with_nodes(aten("to.dtype", WEIGHT, {"as_int": 64})), tmp_path))


def test_an_operation_that_is_made_of_one_that_writes_is_refused(tmp_path: Path) -> None:
    """A batch norm in train mode writes its statistics, which its schema does not say."""
    files = parts()
    [norm] = [n for n in files[MODEL]["graph_module"]["graph"]["nodes"] if "batch_norm" in n["target"]]
    [training] = [entry for entry in norm["inputs"] if entry["name"] == "training"]
    training["arg"] = {"as_bool": True}
    with pytest.raises(CorruptFile, match=r"writes into what it only reads.*batch_norm"):
        load_pt2(written(files, tmp_path))


def test_code_in_names_guards_and_types_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    files = parts()
    document = files[MODEL]
    document["guards_code"] = [code]
    call = document["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("null", json.dumps(json.dumps({"__enum__": 1, "fqn": "this:x"})), 1)
    text = json.dumps(document).replace('"relu_"', json.dumps(f"a = {code}; b"))
    assert code[:12] in text and "__enum__" in text
    files[MODEL] = json.loads(text)
    network = load_pt2(written(files, tmp_path))
    network(fuzz_inputs.IMAGES)
    assert not mark.exists() and "this" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        *("9**9**9**9", "s0**99", "Pow(Symbol('s0'), Integer(9999))", "Pow(2, Pow(2, 9))", "2**(9)", "1" * 40),
        *("__import__('os').system('x')", "open('x')", "s0.__class__", "lambda: 1", "s0[0]", "'a' 'b'", "s0 s1", ""),
        *("(" * 70 + "1" + ")" * 70, "1+" * 40000 + "1", "Symbol('s0'", "Max(s0,,s1)", "s0 +", "1e999999", "f'{x}'"),
    ],
)
def test_a_size_that_is_no_short_arithmetic_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="is no expression of sizes"):
        check_sizes(text)
    if len(text) == 10:
        files = parts()
        files[MODEL]["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text
        with pytest.raises(CorruptFile, match=r"net\.pt2 .*is no expression of sizes"):
            load_pt2(written(files, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(-1), FloorDiv(Symbol('s0', integer=True), Integer(2))), Pow(Symbol('s0'), Integer(2)))",
        "Max(1, 2*(s0 // 3) - s1 % 4)",
        "Eq(Mod(s0, 8), 0)",
        "s0**2 >= -4",
        "FloatTrueDiv(ToFloat(Symbol('s0')), Float('0.5', precision=53))",
    ],
)
def test_sizes_as_torch_writes_them_are_taken(text: str) -> None:
    check_sizes(text)


def archive(change: Callable[[zipfile.ZipFile, dict[str, bytes]], None], folder: Path) -> Path:
    """The valid archive, written by hand."""
    buffer = io.BytesIO()
    files = {name: part if isinstance(part, bytes) else json.dumps(part).encode() for name, part in parts().items()}
    with zipfile.ZipFile(buffer, "w") as target:
        change(target, files)
        for name, part in files.items():
            target.writestr(name, part)
    path = folder / "net.pt2"
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("name", "content", "compressed", "words"),
    [
        ("archive/data/weights/weight_99", bytes(1 << 24), True, "compressed or encrypted"),
        ("archive/data/weights/../../../etc/x", b"", False, "only tensors and one graph"),
        ("other/data/weights/weight_99", b"", False, "equal names"),
        ("archive/data/weights/custom_obj_0", b"", False, "only tensors and one graph"),
        (MODEL, b"{}", False, "equal names"),
        ("archive/version", "archive_" * 5000, False, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_is_not_as_torch_writes_it_is_refused(
    name: str, content: Any, compressed: bool, words: str | None, tmp_path: Path
) -> None:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    path = archive(lambda target, files: target.writestr(name, content, compress_type=kind), tmp_path)
    if words is None:
        assert isinstance(load_pt2(path), nn.Module)
    else:
        with pytest.raises(CorruptFile, match=words):
            load_pt2(path)


def test_files_that_lie_over_one_another_and_endless_lists_are_refused(tmp_path: Path) -> None:
    def overlapping(target: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        target.writestr("archive/data/weights/weight_1000", bytes(1 << 16))
        for number in range(1001, 1100):
            again = copy.copy(target.filelist[0])
            again.filename = f"archive/data/weights/weight_{number}"
            target.filelist.append(again)

    with pytest.raises(CorruptFile, match="said to be larger than the archive"):
        load_pt2(archive(overlapping, tmp_path))

    def comments(target: zipfile.ZipFile, files: dict[str, bytes]) -> None:
        for number in range(1001, 1201):
            target.writestr(f"archive/data/weights/weight_{number}", b"")
            target.filelist[-1].comment = bytes(60_000)

    with pytest.raises(CorruptFile, match="list of files is longer"):
        load_pt2(archive(comments, tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deep|JSON|Expecting"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested more than 64 deep"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "incomplete archive"),
        (b"\xff\xfe", "incomplete archive"),
        (b" " * (17 << 20), "at most 16,777,216 are read"),
        (b"7", "holds no object"),
    ],
)
def test_a_graph_that_is_no_bounded_json_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    files = parts() | {MODEL: content}
    with pytest.raises(CorruptFile, match=words):
        load_pt2(written(files, tmp_path))


def sizes(*numbers: Any) -> list[dict[str, Any]]:
    return [{"as_int": number} for number in numbers]


@pytest.mark.parametrize(
    "meta",
    [
        {"sizes": sizes(1 << 20, 1, 3, 3)},
        {"storage_offset": {"as_int": 1}},
        {"storage_offset": {"as_int": -1}},
        {"strides": sizes(9, 9, 3, -1)},
        {"strides": sizes(10, 9, 3, 1)},
        {"sizes": sizes(4, 1, 3)},
        {"sizes": sizes(1 << 30, 1 << 30, 0, 1)},
        {"sizes": sizes(1 << 30, 1, 3, 3), "strides": sizes(0, 0, 0, 0)},
        {"sizes": sizes(True, 1, 3, 3)},
        {"sizes": [{"as_expr": {"expr_str": "s0", "hint": None}}], "strides": sizes(1)},
        {"dtype": 99},
        {"dtype": 8, "sizes": sizes(4, 1, 3, 3)},
    ],
)
def test_a_tensor_takes_no_more_than_what_is_stored_for_it(meta: dict[str, Any], tmp_path: Path) -> None:
    files = parts()
    files[CONFIG]["config"]["conv.weight"]["tensor_meta"] |= meta
    with pytest.raises(CorruptFile, match=r"net\.pt2"):
        load_pt2(written(files, tmp_path))


def test_a_tensor_without_bytes_is_not_made_of_zeros(tmp_path: Path) -> None:
    files = parts()
    files[f"archive/data/weights/{files[CONFIG]['config']['conv.weight']['path_name']}"] = b""
    with pytest.raises(CorruptFile, match="reaches over the 0 values"):
        load_pt2(written(files, tmp_path))


BATCH = node("torch.ops.aten.sym_size.int", tensor("x"), ZERO, gives=[{"as_sym_int": {"as_name": "n"}}])
TIMES = node(
    "_operator.mul", {"as_sym_int": {"as_name": "n"}}, {"as_int": 10**8}, gives=[{"as_sym_int": {"as_name": "m"}}]
)
ONE = {"as_scalar_type": 7}


@pytest.mark.parametrize(
    "nodes",
    [
        [aten("full.default", {"as_ints": [10**9, 10**3]}, {"as_float": 1.0})],
        [aten("zeros.default", {"as_ints": [1 << 28, 2]}, dtype=ONE)],
        [aten("arange.default", {"as_int": 1 << 40})],
        [aten("repeat.default", tensor("x"), {"as_ints": [1, 1, 1 << 16, 1 << 16]})],
        [
            aten("expand.default", tensor("x"), {"as_ints": [2, 1 << 30, 8, 8]}, gives="e"),
            aten("clone.default", tensor("e")),
        ],
        [aten("constant_pad_nd.default", tensor("x"), {"as_ints": [1 << 40, 0]})],
        [aten("upsample_nearest2d.default", tensor("x"), {"as_ints": [1 << 20, 1 << 20]})],
        [aten("empty.memory_format", {"as_ints": [1 << 40]})],
        [
            node("_operator.pow", {"as_int": 9}, {"as_int": 9**9}, gives=[{"as_sym_int": {"as_name": "p"}}]),
            aten("mul.Tensor", tensor("x"), {"as_sym_int": {"as_name": "p"}}),
        ],
        [
            aten("arange.default", {"as_int": 1 << 24}, gives="a"),
            aten("unbind.int", tensor("a"), ZERO, gives=[{"as_tensors": [{"name": "b"}]}]),
        ],
    ],
)
def test_what_would_make_too_much_is_refused_before_it_runs(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    names = [entry["as_tensor"]["name"] for entry in nodes[-1]["outputs"] if "as_tensor" in entry]
    with pytest.raises(CorruptFile, match=r"the network (would make|raises a size|divides a tensor)"):
        load_pt2(written(with_nodes(*nodes, result=names[0] if names else None), tmp_path))


def test_many_results_that_are_needed_at_once_are_bounded_in_all(tmp_path: Path) -> None:
    complex_ = {"as_scalar_type": 11}
    made = [aten("zeros.default", {"as_ints": [1 << 25]}, gives=f"z{n}", dtype=complex_) for n in range(40)]
    whole = aten("cat.default", {"as_tensors": [{"name": f"z{n}"} for n in range(40)]})
    with pytest.raises(CorruptFile, match=r"would make 0\.5 GiB in zeros, with 16\.0 GiB in use"):
        load_pt2(written(with_nodes(*made, whole, result="made"), tmp_path))


def test_what_grows_with_the_batch_is_refused_when_it_is_too_much(tmp_path: Path) -> None:
    grown = aten("zeros.default", {"as_sym_ints": [{"as_name": "m"}]}, dtype=ONE, gives="z")
    files = with_nodes(BATCH, TIMES, grown, aten("sum.default", tensor("z")), result="made")
    network = load_pt2(written(files, tmp_path))  # 0.75 GiB for a batch of two
    with pytest.raises(BadInput, match=r"would make 3\.0 GiB in zeros"):
        network(torch.zeros(8, 1, 8, 8))


def test_inputs_of_other_kinds_are_refused_in_one_message(tmp_path: Path) -> None:
    network = load_pt2(written(parts(), tmp_path))
    for inputs, words in [
        ((torch.zeros(2, 1, 8, 9),), "input 1 has the shape 2x1x8x9; the network was exported for ?x1x8x8"),
        ((torch.zeros(8, 8),), "input 1 has the shape 8x8"),
        ((3,), "input 1 must be a tensor, got int"),
        ((), "takes 1 inputs, not 0"),
        ((torch.zeros(2, 1, 8, 8, dtype=torch.int64),), "cannot run on inputs of shape 2x1x8x8"),
    ]:
        with pytest.raises(BadInput) as error:
            network(*inputs)
        assert words in str(error.value)


class Mixed(nn.Module):
    """In place on what it made, by operations with and without a place in the list; a constant and a nested input."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.register_buffer("table", torch.arange(4.0).expand(3, 4))

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], times: int) -> dict[str, Any]:
        pair[1].relu_()
        with torch.no_grad():
            y = pair[0] * times + self.table
        y[:, 0] = 0
        y[:, 1:].add_(1).exp_()
        torch.nn.functional.relu6(y, inplace=True).pow_(2)
        out, (h, _) = self.rnn(y)
        first, *rest = out.tensor_split([1], 1)
        return {
            "a": first + h.sum(0)[:, None],
            "b": [rest[0] + torch.tensor(2.0), pair[1] + torch.fft.fft(y).real.sum()],
        }


def test_what_networks_really_do_comes_back_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, pair = Mixed().eval(), (torch.randn(2, 3, 4), torch.randn(5))
    network = load_pt2(export_pt2(model, (pair, 3), tmp_path / "net.pt2", dynamic_batch=False))
    given, kept = network(pair, 3), pair[1].clone()
    assert (kept < 0).any()
    expected = model(pair, 3)
    torch.testing.assert_close(given, expected)
    assert network.state_dict().keys() >= {f"network.{name}" for name in model.state_dict()}
    assert network.network.table.untyped_storage().nbytes() == 16
    with pytest.raises(BadInput, match="input 3 is 4; the network was exported for 3"):
        network(pair, 4)


def test_every_operation_of_the_list_gives_new_tensors_or_says_what_it_shares_and_can_be_foreseen() -> None:
    for name in sorted(ALLOWED):
        function = function_of(name)
        if name.startswith("py."):
            continue
        assert isinstance(function, torch._ops.OpOverload), name
        shares = any(value.alias_info is not None for value in function._schema.returns)
        assert function._schema.is_mutable == (name in WRITES), name
        assert not shares or name in VIEWS | WRITES, name
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(function.name(), "Meta"), name


@pytest.mark.parametrize(("kind", "count"), [("gsr", 60), ("pt2", 40), ("onnx", 100), ("yaml", 40), ("image", 200)])
@pytest.mark.slow
def test_changed_files_are_refused_or_taken_and_leave_everything_as_it_was(
    kind: str, count: int, tmp_path: Path
) -> None:
    assert _worker.watched(fuzz_inputs.attempts(kind, tmp_path), 0, count) == []


def test_the_fuzzer_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path) -> None:
        (path.parent / "victim").write_bytes(b"changed")

    def foreign(path: Path) -> None:
        raise KeyError("x")

    def long(path: Path) -> None:
        raise GossamerError("two\nlines")

    def taken(take: Callable[[Path], None]) -> str | None:
        monkeypatch.setitem(fuzz_inputs.KINDS, "yaml", replace(fuzz_inputs.KINDS["yaml"], take=take))
        (tmp_path / "victim").unlink(missing_ok=True)
        return fuzz_inputs.fault("yaml", b"", tmp_path)

    assert taken(wrong) == "wrote into a file"
    assert "KeyError" in str(taken(foreign))
    assert "a message of 9" in str(taken(long))
