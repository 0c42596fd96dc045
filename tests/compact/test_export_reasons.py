"""What no file can hold is refused in words about the network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gossamer


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(6, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        lengths = (x.abs().sum(-1) > 0).sum(1) if lengths is None else lengths
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


class Giving(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        if self.kind == "decision" and y.sum() > 0:
            y = y * 2
        given: dict[str, Any] = {"generator": (one for one in [y]), "str": {"y": y, "name": "a"}, "int": (y, 3)}
        return given.get(self.kind, y)


SEQUENCES, ROWS = torch.randn(2, 5, 6), torch.randn(2, 6)


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (Packing(), (SEQUENCES,), "it packs sequences by their lengths"),
        (Packing(), (SEQUENCES, torch.tensor([5, 3])), "it packs sequences by their lengths"),
        (Giving("generator"), (ROWS,), "it gives a generator; files give tensors"),
        (Giving("decision"), (ROWS,), "its forward decides by numbers that it computes"),
    ],
)
@pytest.mark.slow
def test_the_reason_is_in_our_words(model: nn.Module, inputs: tuple[Tensor, ...], said: str, tmp_path: Path) -> None:
    for write in (
        lambda: gossamer.export_onnx(model, inputs, tmp_path / "net.onnx"),
        lambda: gossamer.save(model, tmp_path / "net.gsr", inputs),
        lambda: gossamer.export_pt2(model, inputs, tmp_path / "net.pt2"),
    ):
        with pytest.raises(gossamer.BadInput) as error:
            write()
        assert f"{type(model).__name__} cannot be exported to" in str(error.value) and said in str(error.value)
        assert "pytree" not in str(error.value) and "Guard" not in str(error.value)


@pytest.mark.parametrize(("kind", "said"), [("str", "gives a str"), ("int", "gives a int")])
def test_what_an_onnx_file_cannot_give_is_named(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(gossamer.BadInput, match=said):
        gossamer.export_onnx(Giving(kind), (ROWS,), tmp_path / "net.onnx")


def test_a_mode_inside_of_a_forward_is_named(tmp_path: Path) -> None:
    class Mixed(Giving):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x)

    with pytest.raises(gossamer.BadInput, match=r"Mixed computes a part in a mode of its own \(autocast"):
        gossamer.save(Mixed(""), tmp_path / "net.gsr", (ROWS,))


def test_a_network_that_gives_no_tensor_is_said_to() -> None:
    with pytest.raises(gossamer.BadInput, match="Giving gives no tensor"):
        gossamer.prune_channels(Giving("generator"), (ROWS,))


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.gsr"])
def test_inputs_without_a_sample_prove_nothing(name: str, tmp_path: Path) -> None:
    """A file is compared with the network on them: with none, anything would pass."""
    write = {"net.onnx": gossamer.export_onnx, "net.pt2": gossamer.export_pt2}.get(name)
    with pytest.raises(gossamer.BadInput, match=r"hold no sample \(shape \(0, 6\)\)"):
        if write is not None:
            write(nn.Linear(6, 4), torch.zeros(0, 6), tmp_path / name)
        else:
            gossamer.save(nn.Linear(6, 4), tmp_path / name, torch.zeros(0, 6))
    assert not list(tmp_path.iterdir())
