"""What every method keeps. Methods are found by themselves; each needs one example below."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import task, tiny
from torch import nn

from gossamer.deploy import export_onnx
from gossamer.errors import BadInput
from gossamer.methods import catalogue
from gossamer.methods.base import Method
from gossamer.network import layer_costs
from gossamer.ranges import Range
from gossamer.recipe import Recipe, parse
from gossamer.run import Run

EXAMPLES: dict[str, dict[str, Any]] = {
    "distill.recover": {"epochs": 1, "lr": 0.01},
    "prune.channels": {"sparsity": 0.5},
    "reset.blocks": {"names": ("body.1",)},
}
NOTHING_MATCHES: dict[str, dict[str, Any]] = {
    "prune.channels": {"widths": {"no.such.layer": 3}},
    "reset.blocks": {"names": ("no.such.block",)},
}


def method(name: str) -> Method:
    return catalogue()[name](**EXAMPLES[name])


def apply(name: str, model: nn.Module, seed: int = 0) -> tuple[nn.Module, Run]:
    run = Run(seed=seed, original=tiny())
    return method(name)(model, task(), run), run


METHODS = sorted(catalogue())
each = pytest.mark.parametrize("name", METHODS)


def test_every_method_has_an_example() -> None:
    assert sorted(EXAMPLES) == METHODS


@each
def test_the_source_model_is_untouched(name: str) -> None:
    model = tiny()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    result, _ = apply(name, model)
    assert result is not model
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each
def test_same_seed_same_bits(name: str) -> None:
    first, second = (apply(name, tiny(), seed=5)[0].state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@each
def test_history_names_what_changed(name: str) -> None:
    _, run = apply(name, tiny())
    assert run.history
    for edit in run.history:
        assert edit.method == name
        assert edit.kind in ("resize", "swap", "constrain", "teach")
        assert edit.target and edit.before and edit.after


@each
def test_yaml_round_trip(name: str) -> None:
    recipe = Recipe(name="r", steps=(method(name),))
    assert parse(recipe.to_yaml()) == recipe


def outside() -> Iterator[tuple[str, str, float]]:
    """For every field with a range, values just outside it."""
    for name, cls in catalogue().items():
        for field, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is not Annotated or field not in {f.name for f in fields(cls)}:
                continue
            for rule in get_args(hint)[1:]:
                if isinstance(rule, Range):
                    low = rule.low if "low" in rule.open_ else rule.low - 1
                    high = rule.high if "high" in rule.open_ else rule.high + 1
                    yield from ((name, field, value) for value in (low, high, float("nan")))


@pytest.mark.parametrize(("name", "field", "value"), list(outside()))
def test_ranges_refuse_their_neighbours(name: str, field: str, value: float) -> None:
    with pytest.raises(BadInput) as error:
        catalogue()[name](**{**EXAMPLES[name], field: value})
    assert all(word in str(error.value) for word in (name, field, str(value), "must be in"))


@pytest.mark.parametrize("name", sorted(NOTHING_MATCHES))
def test_nothing_matched_is_an_error(name: str) -> None:
    with pytest.raises(BadInput, match=r"no\.such"):
        catalogue()[name](**NOTHING_MATCHES[name])(tiny(), task(), Run())


@each
def test_the_result_is_an_ordinary_module(name: str, tmp_path: Path) -> None:
    """It deep-copies, trains, and exports to ONNX with equal outputs."""
    model = copy.deepcopy(apply(name, tiny())[0])
    images = task().example_inputs[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model.train()(images), torch.arange(8) % 3).backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before))
    path = export_onnx(model.eval(), (images,), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(images).detach(), rtol=1e-4, atol=1e-5)


@each
def test_what_it_declares_to_save_goes_down(name: str) -> None:
    def cost(model: nn.Module) -> dict[str, int]:
        rows = layer_costs(model, task().example_inputs)
        return {"macs": sum(row.macs for row in rows), "params": sum(p.numel() for p in model.parameters())}

    before, after = cost(tiny()), cost(apply(name, tiny())[0])
    for what in catalogue()[name].saves:
        assert after[what] < before[what]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(METHODS, 2)))
def test_runs_before_and_after_every_other_or_is_refused_with_the_reason(first: str, second: str) -> None:
    steps = (method(first), method(second))
    try:
        Recipe(name="r", steps=steps)
    except BadInput as error:
        assert f"put {second} first" in str(error)
        return
    model, run = tiny(), Run(original=tiny())
    for step in steps:
        model = step(model, task(), run)
    assert model(task().example_inputs[0]).shape == (8, 3)
    assert {edit.method for edit in run.history} == {first, second}
