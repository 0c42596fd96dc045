"""Saving and loading whole networks: without the class, into the class, part of them, in half precision."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import gossamer
from gossamer.cli.app import app
from gossamer.compact.batch_norm import fold_batch_norm
from gossamer.compact.inspection import inspect_file
from gossamer.constraints.apply import constrain
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.errors import BadInput, CorruptFile
from gossamer.gsr.format.file import OWN_SECTION
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.models import build
from gossamer.onnx_import import import_onnx

X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
ZOO = {
    "lenet300": (1, 28), "lenet5": (1, 28), "resnet8": (3, 32), "resnet20a": (3, 32), "vgg16_small": (3, 32),
    "wrn16_1": (3, 32), "mobilenet_v1_025": (3, 32),
}  # fmt: skip


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.gsr"


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.slow
def test_networks_of_the_zoo_come_back_without_their_class(name: str, path: Path) -> None:
    channels, size = ZOO[name]
    torch.manual_seed(0)
    model = build(name).eval()
    gossamer.save(model, path, (torch.randn(2, channels, size, size),), effort="fast")
    loaded = gossamer.load(path)
    x = torch.randn(5, channels, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert equal_states(model, loaded)
    assert inspect_file(path).header_bytes < (250 if name.startswith("lenet") else 900)


def test_the_model_is_not_touched_and_comes_back_into_its_class(path: Path) -> None:
    model = nets.tiny().train()
    before = copy.deepcopy(model)
    assert gossamer.save(model, path, (X,)) == path
    assert equal_states(model, before) and model.training and model.body.training
    fresh = nets.Tiny()
    assert gossamer.load(path, into=fresh) is fresh
    assert equal_states(fresh, before)


def test_weights_alone_need_the_class(path: Path) -> None:
    model = nets.tiny()
    gossamer.save(model, path)
    assert equal_states(gossamer.load(path, into=nets.Tiny()), model)
    with pytest.raises(BadInput, match="into=model"):
        gossamer.load(path)


def test_one_tensor_can_be_read_alone(path: Path) -> None:
    model = nets.tiny()
    gossamer.save(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(gossamer.read_tensor(path, name), tensor)
    with pytest.raises(BadInput, match=r"did you mean 'head\.weight'"):
        gossamer.read_tensor(path, "head.weigth")


def test_one_tensor_is_read_although_another_section_is_damaged(path: Path) -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 200))
    gossamer.save(model, path, effort="fast")  # each weight in a section of its own
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert torch.equal(gossamer.read_tensor(path, "0.weight"), model[0].weight)
    with pytest.raises(CorruptFile, match=r"net\.gsr: section 'raw at byte \d+' is damaged: its checksum"):
        gossamer.read_tensor(path, "1.weight")


def test_half_precision(path: Path) -> None:
    model = nets.tiny()
    gossamer.save(model, path, (X,))
    half = gossamer.load(path, dtype=torch.float16)
    assert half.state_dict()["head.weight"].dtype == torch.float16
    assert half.state_dict()["body.0.bn1.num_batches_tracked"].dtype == torch.int64
    with torch.no_grad():
        assert torch.allclose(half(X.half()).float(), model(X), rtol=1e-2, atol=1e-2)
    with pytest.raises(BadInput, match="floating-point dtype"):
        gossamer.load(path, dtype=torch.int8)
    with pytest.raises(BadInput, match="without its class"):
        gossamer.load(path, into=model, dtype=torch.float16)


def test_a_saved_half_network_stays_half(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).half()
    gossamer.save(model, path, (torch.randn(2, 4).half(),))
    assert equal_states(gossamer.load(path), model)


def test_large_raw_tensors_are_read_once_and_the_file_stays_as_it_is(path: Path) -> None:
    model = nn.Linear(OWN_SECTION // 4 // 16, 16, bias=False)
    gossamer.save(model, path)
    data = path.read_bytes()
    weight = gossamer.read_tensor(path, "weight")
    assert weight.data_ptr() % 64 == 0
    assert not any(line.endswith("net.gsr") for line in Path("/proc/self/maps").read_text().splitlines())
    weight.zero_()
    assert path.read_bytes() == data


SHORTENED_LATER = """
import os, sys, torch, gossamer
weight = gossamer.read_tensor(sys.argv[1], "weight")
whole = gossamer.load(sys.argv[1], into=torch.nn.Linear(20000, 16, bias=False))
os.truncate(sys.argv[1], 100)
print("equal", torch.equal(weight, whole.weight))
"""

SHORTENED_MEANWHILE = """
import os, sys, gossamer
from gossamer.compact.reading import opened, read_tensors
try:
    with opened(__import__("pathlib").Path(sys.argv[1])) as file:
        os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)
        read_tensors(file)
except gossamer.errors.CorruptFile as error:
    print("refused", error)
"""


@pytest.mark.parametrize(
    ("script", "answer"), [(SHORTENED_LATER, "equal True"), (SHORTENED_MEANWHILE, "cut off while it was read")]
)
@pytest.mark.slow
def test_a_file_that_is_shortened_in_place_does_not_end_the_process(script: str, answer: str, path: Path) -> None:
    gossamer.save(nn.Linear(20_000, 16, bias=False), path, effort="fast")
    ended = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert answer in ended.stdout


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(30, 30)
        self.decode = nn.Linear(30, 30)
        self.decode.weight = self.encode.weight
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("hidden", torch.randn(30), persistent=False)
        self.register_buffer("empty", torch.empty(0, 4))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        y = self.decode(F.gelu(self.encode(x))) + self.hidden
        return {"y": y * scale, "parts": tuple(y.chunk(2, dim=1))}


def test_tied_weights_buffers_constants_and_structured_outputs(path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    gossamer.save(model, path, (torch.randn(3, 30), torch.tensor(2.0)))
    assert path.stat().st_size < 30 * 30 * 4 + 3 * 30 * 4 + 700
    loaded = gossamer.load(path)
    x, scale = torch.randn(4, 30), torch.tensor(0.5)
    with torch.no_grad():
        found, wanted = loaded(x, scale), model(x, scale)
    assert torch.equal(found["y"], wanted["y"])
    assert isinstance(found["parts"], tuple)
    assert all(torch.equal(a, b) for a, b in zip(found["parts"], wanted["parts"], strict=True))
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert equal_states(gossamer.load(path, into=Tied()), model)


def test_constraints_are_baked_first(path: Path) -> None:
    model = nets.tiny()
    held = constrain(model, {"head.weight": Mask(torch.rand(3, 8) < 0.5)})
    gossamer.save(held, path, (X,))
    assert list(gossamer.load(path).state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(gossamer.load(path)(X), held.eval()(X))


@pytest.mark.slow
def test_folding_keeps_outputs_and_names_and_saves_half_of_the_batch_norms(path: Path) -> None:
    model = nets.tiny()
    gossamer.save(model, path, (X,), fold=True, effort="fast")  # vectors stay raw
    loaded, back = gossamer.load(path), gossamer.load(path, into=nets.Tiny()).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(X), model(X), rtol=1e-5, atol=1e-6)
        assert torch.allclose(back(X), model(X), rtol=1e-5, atol=1e-6)
    unfolded = gossamer.save(model, path.with_name("unfolded.gsr"), (X,), effort="fast")
    assert path.stat().st_size < unfolded.stat().st_size - 6 * 8 * 2 * 4 + 60
    assert equal_states(fold_batch_norm(nn.BatchNorm2d(3, affine=False)), nn.BatchNorm2d(3, affine=False))


@pytest.mark.slow
def test_a_loaded_network_can_be_saved_and_copied(path: Path) -> None:
    gossamer.save(nets.tiny(), path, (X,))
    loaded = gossamer.load(path)
    again = path.with_name("again.gsr")
    gossamer.save(loaded, again, (X,))
    with torch.no_grad():
        assert torch.equal(gossamer.load(again)(X), loaded(X))
        assert torch.equal(copy.deepcopy(loaded)(X), loaded(X))
    assert loaded.eval() is loaded
    with pytest.raises(BadInput, match="takes 1 inputs, not 2"):
        loaded(X, X)


@pytest.mark.slow
def test_a_compressed_network_comes_back_into_the_class_of_the_original(path: Path) -> None:
    """One file: it runs without the class, fills a network like the original, and one that is compressed already."""
    original = nets.tiny()
    small = BlockRemoval(names=("body.1",))(original, nets.task(), Context()).model
    small = gossamer.prune_channels(small, (X,), sparsity=0.5).model.eval()
    gossamer.save(small, path, (X,), original=original)
    for network in (gossamer.load(path), gossamer.load(path, into=nets.Tiny()), gossamer.load(path, into=small)):
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(X), small(X))
    trained = gossamer.load(path, into=nets.Tiny()).train()
    assert all(p.requires_grad for p in trained.parameters())
    gossamer.save(small, path, (X,))
    with pytest.raises(BadInput, match="build the model with the numbers of channels"):
        gossamer.load(path, into=nets.Tiny())
    with pytest.raises(BadInput, match="was a Sequential and is a Tiny"):
        gossamer.save(small, path, (X,), original=nn.Sequential())


@pytest.mark.slow
def test_a_loaded_network_can_be_trained_and_saved_again(path: Path) -> None:
    """Its gradients are those of the network in eval mode."""
    model = nets.tiny()
    gossamer.save(model, path, (X,))
    loaded = gossamer.load(path).train()
    for one in (model, loaded):
        one(X).square().sum().backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    for name, p in loaded.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-5)
    before = loaded(X).square().sum().item()
    optimizer = torch.optim.SGD(loaded.parameters(), 1e-4)
    optimizer.step()
    assert loaded(X).square().sum().item() < before
    gossamer.save(loaded, path.with_name("trained.gsr"), (X,))
    assert torch.equal(gossamer.load(path.with_name("trained.gsr"))(X), loaded(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2)), r"0\.weight is missing"),
        (lambda: build("resnet8"), "and 91 more"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(change, message: str, path: Path) -> None:  # type: ignore[no-untyped-def]
    gossamer.save(nets.tiny(), path)
    model = change()
    before = copy.deepcopy(model)
    with pytest.raises(BadInput, match=message):
        gossamer.load(path, into=model)
    assert equal_states(model, before)


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Sorts(), r"Sorts calls aten\.\w*svd"),
        (Draws(), r"Draws calls aten\.rand_like"),
        (Counts(), "Counts changes calls while it runs"),
    ],
)
def test_what_cannot_be_in_a_graph_is_named_with_the_way_out(model: nn.Module, message: str, path: Path) -> None:
    with pytest.raises(BadInput, match=f"{message}.*example_inputs=None"):
        gossamer.save(model, path, (torch.randn(3, 3),))
    assert not path.exists()
    gossamer.save(model, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effort": "maximum"}, "did you mean 'max'"),
        ({"example_inputs": ("text",)}, "tuple of tensors"),
        ({"path": Path("/nowhere/net.gsr")}, "does not exist"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str, path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        gossamer.save(nets.tiny(), **{"path": path, **arguments})  # type: ignore[arg-type]


class Writes(nn.Module):
    """In-place operations on views, as in the masks of shifted windows."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.relu()
        y[:, :2] = 3.0
        y[:, 2:].mul_(2)
        F.relu(y, inplace=True)
        return y.add_(x).t().contiguous().t()


def test_in_place_operations_compute_what_they_did(path: Path) -> None:
    gossamer.save(Writes(), path, (torch.randn(3, 5),))
    x = torch.randn(4, 5)
    before = x.clone()
    assert torch.equal(gossamer.load(path)(x), Writes()(x))
    assert torch.equal(x, before)


def test_inspection_adds_up_and_knows_the_entropy(path: Path) -> None:
    model = nets.tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 20).round() / 16 + 0.0)
        model.head.weight.copy_(model.head.weight.sign() * 0.3)
    gossamer.save(model, path, (X,))
    found = gossamer.inspect_file(path)
    assert sum(t.bytes for t in found.tensors) + found.header_bytes == pytest.approx(found.file_bytes)
    head = next(t for t in found.tensors if t.name == "head.weight")
    assert head.density == 1 - (model.head.weight == 0).float().mean()
    assert (head.coding == "signs") == (head.density == 1)
    assert found.dense_bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_the_command_line_inspects_a_file(path: Path) -> None:
    gossamer.save(nets.tiny(), path, (X,))
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "names, shapes and graph" in shown.stdout
    found = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert found["file_bytes"] == path.stat().st_size
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {
        name: tuple(tensor.shape) for name, tensor in nets.tiny().state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "reader"), [("net.onnx", "import_onnx"), ("net.PT2", "load_pt2"), ("w.pth", "load_weights")]
)
def test_a_file_of_another_kind_is_answered_with_what_reads_it(tmp_path: Path, name: str, reader: str) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(CorruptFile, match=rf"does not begin like a .gsr file; .* files are read by gossamer.*{reader}"):
        gossamer.load(tmp_path / name)


@pytest.mark.parametrize("kind", [".gsr", ".onnx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_out_of_a_file_trains_in_bfloat16(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """As training does where the processor computes in it: autocast, and images that were cast before."""
    net, path = nets.Tiny().eval(), tmp_path / f"net{kind}"
    if kind == ".gsr":
        gossamer.save(net, path, example_inputs=(X,))
    else:
        gossamer.export_onnx(net, (X,), path)
    opened = (gossamer.load(path) if kind == ".gsr" else import_onnx(path)).requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        y = opened(X.to(dtype))
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), net(X), atol=0.05, rtol=0.05)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in opened.parameters())
