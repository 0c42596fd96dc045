"""Copies of networks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.copies import copy_network, parameter_count
from gossamer.models.weights import save_weights


def test_parameters_without_data_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to("meta")
    with pytest.raises(gossamer.BadInput, match=r"0\.weight has no data \(device meta\)"):
        copy_network(model)
    with pytest.raises(gossamer.BadInput, match="no data"):
        gossamer.prune_channels(model, torch.rand(2, 3))


def test_lazy_layers_without_a_shape_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    for use in (
        lambda: gossamer.prune_channels(model, torch.rand(2, 3)),
        lambda: gossamer.save(model, tmp_path / "net.gsr"),
        lambda: gossamer.export_onnx(model, torch.rand(2, 3), tmp_path / "net.onnx"),
        lambda: gossamer.analyze(model, torch.rand(2, 3)),
    ):
        with pytest.raises(
            gossamer.BadInput, match=r"0\.weight of a lazy layer has no shape yet; run the network once"
        ):
            use()
        assert isinstance(model[0], nn.LazyLinear)
    model(torch.rand(2, 3))
    assert gossamer.prune_channels(model, torch.rand(2, 3)).model[0].out_features == 2


class Rebuilt(nn.Module):
    """Copies itself by its constructor, as many networks of users do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        copied = type(self)()
        copied.load_state_dict(self.state_dict())
        return copied


class Itself(Rebuilt):
    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        return self


class Refusing(Rebuilt):
    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        raise RuntimeError("no copies")


class Wrapper(nn.Module):
    """Hands everything on, the copying as well."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Rebuilt()

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("kind", [Rebuilt, Itself, Refusing, Wrapper])
@pytest.mark.parametrize("inside", [False, True])
def test_networks_that_copy_themselves_are_cut_and_stay_as_they_are(kind: type[nn.Module], inside: bool) -> None:
    model = nn.Sequential(kind(), nn.ReLU()) if inside else kind()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = gossamer.prune_channels(model, torch.rand(3, 4), sparsity=0.5)
    assert not found.skipped and list(found.widths.values()) == [(8, 4)]
    assert type(found.model) is type(model) and found.model is not model
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_copy_keeps_what_is_tied_and_takes_tensors_from_the_memo() -> None:
    model = Rebuilt()
    model.again = model.last  # its constructor does not know of it
    copied = copy_network(model)
    assert copied.again is copied.last and copied.last is not model.last
    copied = copy_network(model, {id(model.first.weight): (mine := nn.Parameter(torch.zeros(8, 4)))})
    assert copied.first.weight is mine and copied.last.weight is not model.last.weight


class Hiding(nn.Module):
    """Gives its optimizer the last layer alone, and has a state of its own besides tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.note = "new"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.last.parameters(recurse)

    def get_extra_state(self) -> dict[str, str]:
        return {"note": self.note}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self.note = state["note"]


def test_a_network_whose_parameters_are_hidden_is_cut_and_counted_as_a_whole() -> None:
    found = gossamer.prune_channels(Hiding(), torch.rand(3, 4), sparsity=0.5)
    assert dict(found.widths) == {"first": (8, 4)}
    assert parameter_count(Hiding()) == 4 * 8 + 8 + 8 * 2 + 2
    assert [row.params for row in gossamer.analyze(Hiding(), torch.rand(3, 4)).layers] == [40, 18]


def test_a_state_that_is_no_tensor_stays_with_the_class(tmp_path: Path) -> None:
    model, x = Hiding().eval(), torch.rand(3, 4)
    model.note = "trained"
    gossamer.export_onnx(model, (x,), tmp_path / "net.onnx")
    gossamer.save(model, tmp_path / "net.gsr", (x,))
    save_weights(model, tmp_path / "net.safetensors", {})
    for load in (
        lambda into: gossamer.load(tmp_path / "net.gsr", into=into),
        lambda into: gossamer.load_weights(into, tmp_path / "net.safetensors"),
    ):
        other = load(Hiding())
        assert torch.equal(other(x), model(x)) and other.note == "new"
    small = gossamer.prune_channels(model, x, sparsity=0.5).model
    gossamer.save(small, tmp_path / "small.gsr", (x,), original=model)
    again = gossamer.load(tmp_path / "small.gsr", into=Hiding())
    assert again.first.out_features == 4 and small.note == "trained"
