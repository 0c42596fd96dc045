"""Weights that are stored as a rule and fewer numbers: every bit comes back, and nothing impossible is believed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import task, tiny
from torch import Tensor, nn

import gossamer
from gossamer.compact.inspection import inspect_file
from gossamer.compact.reading import read_tensor
from gossamer.compact.writing import describe_file
from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight
from gossamer.core.context import Context
from gossamer.errors import CorruptFile
from gossamer.gsr.format.file import GsrFile, build_file
from gossamer.gsr.format.generated import GeneratedWeight, Rule, misfit
from gossamer.gsr.format.header import FileHeader, entry_of
from gossamer.gsr.format.stored_values import Coding, Stored
from gossamer.jobs.recipe import Recipe
from gossamer.methods.share.hashed import HashedNet
from gossamer.methods.share.product import ProductQuantization
from gossamer.methods.share.residual import ResidualQuantization

METHODS = {
    "hashed": HashedNet(share=0.05),
    "product": ProductQuantization(width=4, entries=8),
    "residual": ResidualQuantization(entries=4, stages=3),
}


def wide(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 300), nn.Linear(300, 10))


def generated(model: nn.Module, name: str) -> GeneratedWeight:
    made = constraints(model)[name][-1].generated()
    assert made is not None
    return made


@pytest.mark.parametrize("name", METHODS)
def test_a_rule_gives_the_held_value_bit_by_bit(name: str) -> None:
    model = METHODS[name](wide(), task(), Context()).model
    for weight in constraints(model):
        assert torch.equal(generated(model, weight).weight(), effective_weight(model, weight))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_a_held_network_is_stored_as_its_numbers(name: str, masked: bool, tmp_path: Path) -> None:
    model = wide()
    if masked:
        keep = torch.rand(300, 320, generator=torch.Generator().manual_seed(1)) < 0.5
        model = constrain(model, {"3.weight": Mask(keep)})
    model = METHODS[name](model, task(), Context()).model.eval()
    inputs = (torch.randn(2, 3, 6, 6),)
    path = gossamer.save(model, tmp_path / "held.gsr", inputs)
    plain = gossamer.save(materialize(model), tmp_path / "plain.gsr", inputs)
    shown = {tensor.name: tensor for tensor in inspect_file(path).tensors}
    assert shown["3.weight"].coding == name
    assert len(shown) == len(inspect_file(plain).tensors)
    assert path.stat().st_size < plain.stat().st_size
    spent = sum(tensor.bytes for tensor in shown.values()) + inspect_file(path).header_bytes
    assert spent == pytest.approx(path.stat().st_size, abs=1)
    loaded = gossamer.load(path)
    for key, tensor in materialize(model).state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
        assert torch.equal(read_tensor(path, key), tensor)
    assert list(loaded.state_dict()) == list(gossamer.load(plain).state_dict())
    assert torch.equal(loaded(*inputs), model(*inputs))
    again = gossamer.load(path, into=wide())
    assert torch.equal(again.state_dict()["3.weight"], effective_weight(model, "3.weight"))


def test_hashed_layers_cost_k_numbers(tmp_path: Path) -> None:
    model = HashedNet(share=1 / 8)(wide(), task(), Context()).model
    path = gossamer.save(model, tmp_path / "hashed.gsr")
    values = sum(generated(model, name).numbers.numel() for name in constraints(model))
    biases = sum(p.numel() for name, p in materialize(model).named_parameters() if name.endswith("bias"))
    assert path.stat().st_size < 4 * (values + biases) + 200


def test_values_that_are_shorter_than_the_rule_are_stored_as_values() -> None:
    made = GeneratedWeight(rule=Rule.HASHED, shape=(2, 3), numbers=torch.rand(6), seed=3)
    assert describe_file([made.weight()], "default", {0: made})[0].coding == Coding.RAW


def test_a_rule_that_does_not_give_the_tensor_is_not_used() -> None:
    made = GeneratedWeight(rule=Rule.HASHED, shape=(60, 50), numbers=torch.rand(6), seed=3)
    changed = made.weight().clone()
    changed[3, 3] += 1e-7
    assert describe_file([made.weight()], "default", {0: made})[0].coding == Coding.GENERATED
    assert describe_file([changed], "default", {0: made})[0].coding != Coding.GENERATED


def product() -> tuple[Tensor, list[Stored]]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 8, (5, 400), generator=generator).int()
    made = GeneratedWeight(
        rule=Rule.PRODUCT, shape=(400, 10), numbers=torch.rand(5, 8, 2, generator=generator), indices=indices
    )
    return made.weight(), describe_file([made.weight()], "default", {0: made})


def file_of(stored: list[Stored], named: int = 1) -> bytes:
    names = [f"w{number}" for number in range(named)]
    names += [f"_constants.{number}" for number in range(named, len(stored))]
    entries = [entry_of(s) for s in stored]
    return build_file(
        FileHeader(names=names, named=named, buffers=set(), entries=entries, graph=None), stored, "default"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"numbers": 0}, "none of its parts"),
        ({"numbers": 9}, "none of its parts"),
        ({"numbers": 2}, "no float32 numbers"),
        ({"indices": 1}, "its indices are torch.float32"),
        ({"keep": 2}, "its mask does not fit"),
        ({"rule": Rule.RESIDUAL}, "its codebooks do not fit"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, int], why: str) -> None:
    _, stored = product()
    assert stored[0].generated is not None
    stored[0].generated = replace(stored[0].generated, **changes)  # type: ignore[arg-type]
    with pytest.raises(CorruptFile, match=why):
        GsrFile(file_of(stored))


def test_indices_outside_their_codebook_are_damage(tmp_path: Path) -> None:
    _, stored = product()
    assert stored[2].q is not None
    stored[2].q = stored[2].q.copy()
    stored[2].q[3, 7] = 8
    (tmp_path / "x.gsr").write_bytes(file_of(stored))
    with pytest.raises(CorruptFile, match="too short for its indices"):
        read_tensor(tmp_path / "x.gsr", "w0")


def test_one_tensor_twice_is_made_once(tmp_path: Path) -> None:
    weight, _ = product()
    made = GeneratedWeight(rule=Rule.HASHED, shape=(400, 10), numbers=torch.rand(40), seed=3)
    stored = describe_file([made.weight(), weight, made.weight()], "default", {0: made, 2: made})
    (tmp_path / "x.gsr").write_bytes(file_of(stored, named=3))
    assert stored[2].coding == Coding.SAME
    assert torch.equal(read_tensor(tmp_path / "x.gsr", "w2"), made.weight())


def test_faults_of_shapes() -> None:
    assert not misfit(Rule.HASHED, (3, 4), (5,), None)
    assert misfit(Rule.HASHED, (3, 4), (5, 1), None)
    assert misfit(Rule.PRODUCT, (12,), (2, 3, 2), (2, 3))
    assert not misfit(Rule.PRODUCT, (3, 5), (3, 7, 2), (3, 3))
    assert misfit(Rule.PRODUCT, (3, 5), (2, 7, 2), (2, 3))
    assert not misfit(Rule.RESIDUAL, (3, 5, 2, 2), (4, 7, 5), (4, 12))
    assert misfit(Rule.RESIDUAL, (3, 5, 2, 2), (4, 7, 4), (4, 12))


def test_a_network_without_rules_has_no_parts(tmp_path: Path) -> None:
    path = gossamer.save(tiny(), tmp_path / "x.gsr")
    assert all(tensor.coding not in METHODS for tensor in inspect_file(path).tensors)


@pytest.mark.slow
def test_the_main_job_delivers_the_numbers(tmp_path: Path) -> None:
    recipe = Recipe(name="hashed", steps=(HashedNet(share=0.02, layers=("3",)),), int8=False)
    gossamer.compress(wide(channels=1), task(), recipe=recipe, out=tmp_path / "out")
    assert {t.name: t.coding for t in inspect_file(tmp_path / "out" / "model.gsr").tensors}["3.weight"] == "hashed"
