"""docs/format.md is enough to read a file: a reader written from it gives what gossamer stored."""

import base64
import copy
import hashlib
import zlib
from pathlib import Path

import pytest
import second_reader as second
import torch
from test_gsr_corrupt import GOLDEN
from test_gsr_values import CASES, noise, on_grid, stored_bytes
from torch import Tensor, nn

import gossamer
from benchmarks.robustness import fuzz_gsr
from gossamer.gsr.format.dictionary import DICTIONARY
from gossamer.gsr.format.graph import DTYPES
from gossamer.models import build


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check(data: bytes, tensors: list[Tensor]) -> second.File:
    """Everything that the second reader finds is what was stored, bit by bit."""
    file = second.File(data)
    for found, tensor in zip(file.tensors[: file.states], tensors, strict=True):
        assert (found.dtype, found.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert found.data == raw(tensor)
    return file


def states_of(file: second.File) -> list[Tensor]:
    return [
        torch.frombuffer(bytearray(one.data), dtype=getattr(torch, one.dtype)).reshape(one.shape)
        if one.data
        else torch.empty(one.shape, dtype=getattr(torch, one.dtype))
        for one in file.tensors[: file.states]
    ]


def test_the_page_holds_the_dictionary() -> None:
    assert second.DICTIONARY == DICTIONARY


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.slow
def test_every_coding(effort: str) -> None:
    tensors = [*CASES.values(), CASES[next(iter(CASES))].clone()]
    file = check(stored_bytes(tensors, effort), tensors)
    wanted = {0, 1, 2, 3, 4, 5, 6, 9, 10} | ({7} if effort == "default" else set())
    assert {entry.coding for entry in file.entries} == wanted


@pytest.mark.slow
def test_large_networks_are_in_many_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.gsr.format.file.SECTION_WEIGHTS", 500)
    monkeypatch.setattr("gossamer.gsr.format.header.SECTION_WEIGHTS", 500)
    tensors = [on_grid((100, 30), 0.5), noise(70, 240), *CASES.values(), noise(130, 130)]
    tensors[0][50:] = 0
    file = check(stored_bytes(tensors), tensors)
    assert [s.kind for s in file.sections[:3]] == [second.VALUES, second.RAW, second.RAW]
    assert file.entries[0].part and len(file.sections) > 6


def test_every_dtype() -> None:
    whole = torch.arange(-6, 6).reshape(3, 4)
    tensors = [whole.to(dtype) if dtype != torch.bool else whole > 0 for dtype in DTYPES]
    tensors += [torch.randn(3, 7).to(d) for d in DTYPES[:4]] + [torch.tensor(3.0), torch.zeros(0, 4, dtype=torch.int8)]
    check(stored_bytes(tensors), tensors)


def test_the_structure_of_a_compressed_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    small = copy.deepcopy(original)
    small[1] = nn.Identity()
    path, x = tmp_path / "net.gsr", torch.randn(1, 1, 8, 8)
    gossamer.save(small, path, (x,), original=original)
    file = check(path.read_bytes(), list(small.state_dict().values()))
    lines = sorted(f"{name} {list(t.shape)}" for name, t in original.state_dict().items())
    assert file.structure == {
        "of": "Sequential",
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        "root": {"children": {"1": {"made": "nn.Identity"}}},
    }
    assert path.read_bytes()[3] == 2


@pytest.mark.parametrize("which", range(5))
@pytest.mark.slow
def test_files_of_every_mode_and_rule(which: int, tmp_path: Path) -> None:
    data = fuzz_gsr.sample_files()[which]
    (tmp_path / "net.gsr").write_bytes(data)
    network = gossamer.load(tmp_path / "net.gsr")
    file = check(data, list(network.state_dict().values()))
    assert file.names[: file.named] == list(network.state_dict())
    assert file.buffers == {name for name, _ in network.named_buffers()}
    assert file.graph is not None
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(file.graph.run(states_of(file), x), network(x))


class Structured(nn.Module):
    """Names, shared and constant tensors, several inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.first[1].weight = self.first[0].weight
        self.a = nn.ModuleDict({"b": nn.Sequential(nn.BatchNorm1d(6)), "longer": nn.Linear(6, 2)})
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("hidden", torch.randn(6), persistent=False)
        self.register_buffer("steps", torch.tensor(70000))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        z = self.a["b"](self.first[1](self.first[0](x) + self.hidden)) * self.scale + y * 1.5e-3
        return {"z": self.a["longer"](z.clamp(-0.37)), "parts": z.chunk(2, dim=1)}


def test_names_shared_tensors_constants_and_structured_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Structured().eval(), (torch.randn(3, 6), torch.randn(3, 6))
    data = gossamer.save(model, tmp_path / "net.gsr", inputs).read_bytes()
    file = second.File(data)
    states = states_of(file)
    assert file.names[: file.named] == list(model.state_dict())
    assert file.buffers == set(model.state_dict()) - set(dict(model.named_parameters(remove_duplicate=False)))
    assert all(torch.equal(a, b) for a, b in zip(states, model.state_dict().values()))
    assert torch.equal(states[-1], model.hidden)
    assert file.graph is not None
    found, expected = file.graph.run(states, *inputs), model(*inputs)
    assert torch.equal(found["z"], expected["z"])
    assert all(torch.equal(a, b) for a, b in zip(found["parts"], expected["parts"], strict=True))


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (2, 1, 28, 28)), ("resnet14", (2, 3, 32, 32))])
@pytest.mark.slow
def test_graphs_of_the_zoo(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build(name).eval(), torch.randn(shape)
    data = gossamer.save(model, tmp_path / "net.gsr", (x,), effort="fast").read_bytes()  # weights stay raw
    file = check(data, list(model.state_dict().values()))
    assert file.graph is not None
    with torch.no_grad():
        assert torch.equal(file.graph.run(states_of(file), x), model(x))


def test_the_first_file_that_was_ever_written() -> None:
    file = second.File(base64.b64decode(GOLDEN))
    assert file.graph is not None
    x = torch.arange(72.0).reshape(2, 1, 6, 6) / 72
    expected = torch.tensor([[6.22416, -0.776488, -5.118089], [6.366894, -1.26282, -5.519461]])
    torch.testing.assert_close(file.graph.run(states_of(file), x), expected, rtol=1e-5, atol=1e-5)


def test_damage_is_noticed() -> None:
    data = stored_bytes([CASES[k] for k in list(CASES)[2:5]])
    for at in (3, 9, len(data) // 2, len(data) - 1):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises((ValueError, zlib.error, IndexError)):
            second.File(bytes(bad))
