"""A changed network as data: found, stored, replayed on the original's class; hostile data is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import task, tiny
from torch import nn

from gossamer.core.context import Context
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, CorruptFile
from gossamer.methods.prune.channels import prune_channels
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.methods.restructure.shortcut import ShortcutConnections
from gossamer.models import load_weights, save_weights
from gossamer.modules.replay import restore, structure_of
from gossamer.modules.structure import Structure, Unreplayable, difference

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


def described(original: nn.Module, changed: nn.Module) -> dict[str, Any]:
    found = difference(original, changed)
    assert found is not None
    return json.loads(found.text())["root"]  # type: ignore[no-any-return]


def test_equal_structures_have_no_difference() -> None:
    other = net()
    nn.init.ones_(other[0].weight)
    assert difference(net(), other) is None


def test_what_differs_is_told_by_value() -> None:
    changed = net()
    changed[0] = nn.Conv2d(1, 2, 3, bias=False)
    changed[3] = nn.Linear(2 * 36, 2)
    changed[1] = nn.Identity()
    assert described(net(), changed) == {
        "children": {
            "0": {"attributes": {"out_channels": 2}, "parameters": {"weight": [2, 1, 3, 3], "bias": None}},
            "1": {"made": "nn.Identity"},
            "3": {"attributes": {"in_features": 72}, "parameters": {"weight": [2, 72]}},
        }
    }


def back(original: nn.Module, changed: nn.Module) -> nn.Module:
    """Stored and restored into a copy of the original."""
    found = structure_of(original, changed, (X,))
    again = copy.deepcopy(original)
    restore(again, changed.state_dict(), found and Structure.parse(found.text()), "a file")
    return again


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_module_put_in_or_taken_out_keeps_the_order_of_the_others(where: str) -> None:
    layers = list(net())
    extra = nn.Conv2d(1, 1, 1) if where == "first" else nn.Softmax(1)
    names = dict(zip(("0", "1", "2", "3"), layers))
    changed = net()
    changed._modules = {"new": extra, **names} if where == "first" else {**names, "new": extra}
    assert torch.equal(back(net(), changed)(X), changed(X))
    without = nn.Sequential(*layers[:3])
    assert [type(m).__name__ for m in back(net(), without)] == ["Conv2d", "ReLU", "Flatten"]


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 6, bias=False), nn.Linear(64, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> Any:
            return self.a(x.flatten(1)) + self.b(x.flatten(1))

    original = Tied().eval()
    small = copy.deepcopy(original)
    small.a.weight = small.b.weight = nn.Parameter(original.a.weight[:4].detach().clone())
    for layer in (small.a, small.b):
        layer.out_features = 4
    again = back(original, small)
    assert torch.equal(again(X), small(X)) and again.a.weight is again.b.weight


def test_a_module_of_the_users_class_that_was_wrapped_is_found_again() -> None:
    changed = ShortcutConnections(names=("body.2",))(tiny(), task(), Context()).model.eval()
    found = difference(tiny(), changed)
    assert found is not None and '"moved":"body.2"' in found.text()
    image = task().example_inputs[0]
    again = tiny()
    restore(again, changed.state_dict(), found, "a file")
    assert torch.equal(again(image), changed(image))


def test_widths_inside_of_a_users_own_attributes_follow() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes, self.options = (8, 8), {"width": 16}
            self.a, self.b = nn.Linear(64, 16), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> Any:
            one, other = self.a(x.flatten(1)).split(self.sizes, 1)
            return self.b(one + other)

    original = Split().eval()
    small = prune_channels(original, (X,), sparsity=0.5).model
    assert tuple(small.sizes) == (4, 4)  # type: ignore[arg-type]
    again = back(original, small)
    assert torch.equal(again(X), small(X)) and again.sizes == (4, 4)


def test_a_class_that_cannot_be_made_from_data_is_said() -> None:
    class Own(nn.ReLU):
        pass

    with pytest.raises(Unreplayable, match=r"1 is a Own, which is neither of torch\.nn nor in the original"):
        difference(net(), swap(net(), {"1": Own()}))
    with pytest.raises(Unreplayable, match="was a Sequential and is a ReLU"):
        difference(net(), nn.ReLU())


def test_a_rebuilt_network_that_computes_something_else_is_not_stored() -> None:
    changed = swap(net(), {"1": nn.ReLU()})
    changed.get_submodule("1").forward = lambda x: x  # type: ignore[method-assign]
    changed[3] = nn.Linear(144, 2, bias=False)
    with pytest.raises(Unreplayable, match="computes something else"):
        structure_of(net(), changed, (X,))


# --- into networks and files


def compressed() -> nn.Module:
    small = BlockRemoval(names=("body.1",))(tiny(), task(), Context()).model
    return prune_channels(small, task().example_inputs, sparsity=0.5).model.eval()


def test_weights_of_a_compressed_network_load_into_its_class_and_into_itself(tmp_path: Path) -> None:
    small, path, images = compressed(), tmp_path / "w.safetensors", task().example_inputs[0]
    save_weights(small, path, {}, structure=structure_of(tiny(), small, (images,)))
    again = load_weights(tiny(), path).eval()
    assert type(again) is type(tiny()) and torch.equal(again(images), small(images))
    same = load_weights(copy.deepcopy(small), path).eval()  # it has the structure already
    assert torch.equal(same(images), small(images))


def test_another_network_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    small, path = compressed(), tmp_path / "w.safetensors"
    save_weights(small, path, {}, structure=structure_of(tiny(), small, None))
    other = net()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(BadInput, match="they are of a Tiny that was changed: give the Tiny as it was before"):
        load_weights(other, path)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def hostile(**changes: Any) -> str:
    """A structure of `net` whose root has other fields."""
    found = difference(net(), swap(net(), {"1": nn.Identity()}))
    assert found is not None
    raw = json.loads(found.text())
    raw["root"] |= changes
    return json.dumps(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"children": {"1": {"made": "os.system"}}},
        {"children": {"1": {"made": "nn.init"}}},
        {"children": {"1": {"made": "nn.modules.Linear"}}},
        {"children": {"1": {"made": "nn.Upsample", "attributes": {"size": [1 << 20, 1 << 20]}}}},
        {"children": {"1": {"made": "nn.ZeroPad2d", "attributes": {"padding": 100_000}}}},
        {"children": {"1": {"made": "nn.Linear", "parameters": {"weight": [1 << 39, 1 << 39]}}}},
        {"children": {"1": {"moved": "7"}}},
        {"children": {"9": {"attributes": {"inplace": True}}}},
        {"children": {"0": {"attributes": {"forward": 3}}}},
        {"children": {"0": {"attributes": {"__class__": 3}}}},
        {"children": {"0": {"attributes": {"padding.__class__": 3}}}},
        {"children": {"0": {"attributes": {"_modules": []}}}},
        {"children": {"0": {"attributes": {"stride": "far"}}}},
        {"children": {"0": {"parameters": {"weight": ["load", 3]}}}},
        {"children": {"0": {"parameters": {"weight": [-1]}}}},
        {"children": {"0": {"parameters": {"a.b": [1]}}}},
        {"children": {"0": {"parameters": [1]}}},
        {"children": {"": {}}},
        {"children": [1]},
        {"order": ["1", "2"]},
        {"order": [1]},
        {"unknown": 1},
        {"made": 3},
    ],
)
def test_hostile_structures_are_refused_and_change_nothing(changes: dict[str, Any]) -> None:
    model, tensors = net(), net().state_dict()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(CorruptFile, match="its structure"):
        restore(model, tensors, Structure.parse(hostile(**changes)), "a file")
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_deep_and_long_structures_are_refused() -> None:
    deep = '{"of":"a","digest":"b","root":' + '{"children":{"a":' * 50_000 + "{}" + "}}" * 50_000 + "}"
    wide = json.dumps({"of": "a", "digest": "b", "root": {"children": {str(i): {} for i in range(70_000)}}})
    for text in (deep, wide, " " * (1 << 23), "", "[]", "null", '{"root":{}}'):
        with pytest.raises(CorruptFile, match="its structure"):
            Structure.parse(text)
