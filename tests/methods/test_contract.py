"""What every method keeps. Methods are found by themselves, with the `example` that each one declares."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from nets import task
from nets import tiny as tiny_of
from torch import nn

from gossamer.constraints.apply import constraints, materialize
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.constraints.mask import Mask
from gossamer.constraints.serialization import constraint_spec, restore_constraints
from gossamer.constraints.weights import effective_weight
from gossamer.core.context import Context
from gossamer.core.record import Edit, EditKind
from gossamer.core.task import PartialTask, task_of
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.jobs.recipe import Recipe, parse
from gossamer.methods import catalogue
from gossamer.methods._base import Method, Needs
from gossamer.modules.cost import layer_costs
from gossamer.modules.replay import restore, structure_of
from gossamer.modules.structure import Structure
from gossamer.runtime.onnx_export import export_onnx


def tiny() -> nn.Module:
    """With two blocks, one that a method takes away and one that stays: most of these tests' time is theirs."""
    return tiny_of(blocks=2)


def method(name: str) -> Method:
    return catalogue()[name](**catalogue()[name].example)


def subject(*names: str) -> nn.Module:
    """The network that methods of these names are tried on: with a hidden layer in its head where one needs it."""
    model = tiny()
    if not {"prune.merge", "prune.less_is_more"}.isdisjoint(names):
        model.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    if "restructure.global_pool" in names:
        layers = (nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        model.head = nn.Sequential(*layers)
    if "restructure.pool" in names:
        model.stem = nn.Conv2d(1, 8, 3, 2, 1)
    if "restructure.stride" in names:
        model.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
    return model.eval()


def apply(name: str, model: nn.Module) -> tuple[nn.Module, tuple[Edit, ...]]:
    """The result of a method, with no more data than it declares to need, and its edits."""
    one = method(name)
    result = one(model, given(one.needed()), teacher=tiny())
    return result.model, result.edits


@cache
def source_and_result(name: str) -> tuple[nn.Module, nn.Module, tuple[Edit, ...]]:
    source = subject(name)
    return source, *apply(name, source)


def applied(name: str) -> tuple[nn.Module, tuple[Edit, ...]]:
    """The result of a method on its network, for tests that look at it: worked out once, a copy for each."""
    _, result, edits = source_and_result(name)
    return copy.deepcopy(result), edits


Structured = list[tuple[str, str, tuple[int, ...]]]  # modules with their kinds, tensors with their shapes

# One for each way to change a network. Every method meets each of them after it, and before it all but the removal of
# blocks, because what a method meets there is as plain as after a cut of channels.
REPRESENTATIVES = ("distill.recover", "prune.channels", "prune.magnitude", "restructure.blocks")
FIRST = REPRESENTATIVES[:-1]
METHODS = sorted(catalogue())
each = pytest.mark.parametrize("name", METHODS)
EXPORTS = 8  # into which the results of all methods go


def test_every_method_declares_its_own_example() -> None:
    assert [name for name, cls in catalogue().items() if "example" not in vars(cls)] == []


@each
@pytest.mark.slow
def test_the_source_model_is_untouched(name: str) -> None:
    source, result, _ = source_and_result(name)
    untouched = subject(name)
    assert result is not source
    assert structure(source) == structure(untouched)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in untouched.state_dict().items())


@each
@pytest.mark.slow
def test_same_seed_same_bits(name: str) -> None:
    first, second = applied(name)[0].state_dict(), apply(name, subject(name))[0].state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@each
def test_history_names_what_changed(name: str) -> None:
    _, edits = applied(name)
    assert edits
    for edit in edits:
        assert edit.method == name
        assert edit.kind in EditKind
        assert edit.target and edit.before and edit.after


@each
def test_yaml_round_trip(name: str) -> None:
    recipe = Recipe(name="r", steps=(method(name),))
    assert parse(recipe.to_yaml()) == recipe


def outside() -> Iterator[tuple[str, str, float]]:
    """For every field with a range, values just outside it."""
    for name, cls in ((name, catalogue()[name]) for name in METHODS):
        for field, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is not Annotated or field not in {f.name for f in fields(cls)}:
                continue
            for rule in get_args(hint)[1:]:
                if isinstance(rule, Range):
                    low = rule.low if "low" in rule.open_ else rule.low - 1
                    high = rule.high if "high" in rule.open_ else rule.high + 1
                    yield from ((name, field, value) for value in (low, high, float("nan")))


@pytest.mark.parametrize(("name", "field", "value"), list(outside()))
@pytest.mark.slow
def test_ranges_refuse_their_neighbours(name: str, field: str, value: float) -> None:
    with pytest.raises(BadInput) as error:
        catalogue()[name](**{**catalogue()[name].example, field: value})
    rule = "must be in" in str(error.value) or (math.isnan(value) and "must be an integer" in str(error.value))
    assert rule and all(word in str(error.value) for word in (name, field, str(value)))


def choices() -> Iterator[tuple[str, str]]:
    """Every field with a list of admitted names."""
    for name in METHODS:
        for field, hint in get_type_hints(catalogue()[name]).items():
            if get_origin(hint) is Literal:
                yield name, field


@pytest.mark.parametrize(("name", "field"), list(choices()))
def test_choices_refuse_other_names(name: str, field: str) -> None:
    with pytest.raises(BadInput, match=f"unknown {name} {field} 'none of them'"):
        catalogue()[name](**{**catalogue()[name].example, field: "none of them"})


def selectors() -> Iterator[tuple[str, str, Any]]:
    """Every field that selects layers by name or pattern, with a value that matches none."""
    values: dict[Any, Any] = {str: "body.0", int: 2, float: 0.5}
    for name, cls in catalogue().items():
        for field, hint in get_type_hints(cls).items():
            kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) in (tuple, Mapping)]
            if field not in {f.name for f in fields(cls)} or not kinds or get_args(kinds[0])[0] is not str:
                continue
            if get_origin(kinds[0]) is tuple:
                yield name, field, ("no.such.layer",)
            else:
                kind, *_ = (k for k in (get_args(kinds[0])[1], *get_args(get_args(kinds[0])[1])) if k in values)
                pairs = {"stem": "stem"} if kind is str else {}  # some need two pairs of layers
                yield name, field, {**pairs, "no.such.layer": values[kind]}


def selecting(name: str, field: str, value: Any) -> Method:
    """The example with this selection; without what it sets beside the required fields, where that excludes it."""
    cls = catalogue()[name]
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    try:
        return cls(**{**cls.example, field: value})
    except BadInput:
        return cls(**{key: cls.example[key] for key in required if key != field}, **{field: value})


@pytest.mark.parametrize(("name", "field", "value"), list(selectors()))
def test_nothing_matched_is_an_error(name: str, field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=r"no\.such"):
        selecting(name, field, value)(subject(name), task(), teacher=tiny())


def given(needs: str) -> Any:
    """What a method with such needs is called with, and no more."""
    data = task()
    if needs == "samples":
        samples: Any = PartialTask("samples", data.example_inputs)
        samples.train = samples.calibration = data.calibration
        return samples
    return {"weights": None, "inputs": data.example_inputs, "labels": data}[needs]


NEEDS = get_args(Needs)


@each
@pytest.mark.slow
def test_it_works_with_no_more_than_it_declares_to_need(name: str) -> None:
    one = method(name)
    assert one.needed() in NEEDS and one.needs in NEEDS
    _, edits = applied(name)  # which gives it no more
    assert edits


@each
@pytest.mark.slow
def test_it_declares_no_more_than_it_needs(name: str) -> None:
    """With less a call is refused with the reason, and the method itself would fail."""
    one = method(name)
    for less in NEEDS[: NEEDS.index(one.needed())]:
        with pytest.raises(BadInput, match=r"needs|runs the network|inputs alone"):
            one(subject(name), given(less), teacher=tiny())
        with pytest.raises((BadInput, AttributeError, TypeError)):
            one.apply(subject(name), task_of(given(less), name), Context(teacher=tiny()))


def one_step(model: nn.Module) -> nn.Module:
    """Trained for one step, back in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    F.cross_entropy(model.train()(task().example_inputs[0]), torch.arange(8) % 3).backward()
    optimizer.step()
    return model.eval()


@each
@pytest.mark.slow
def test_the_result_is_an_ordinary_module(name: str) -> None:
    """It deep-copies and trains; materialized, it has nothing of gossamer left."""
    model, _ = applied(name)
    images = task().example_inputs[0]
    before = {p: p.detach().clone() for p in model.parameters()}
    one_step(model)
    # Biases between two norms have gradients of rounding alone.
    assert all(not torch.equal(p, old) for p, old in before.items() if p.grad is not None and p.grad.abs().max() > 1e-6)
    assert any(p.grad is not None and p.grad.any() for p in before)
    plain = materialize(model)
    assert torch.equal(plain(images), model(images))
    assert not constraints(plain) and not any(isinstance(module, Constraint) for module in plain.modules())
    assert not any("parametrizations" in key for key in plain.state_dict())


class SideBySide(nn.Module):
    """Networks of the same input as one, because most of what a small export takes is the same for a large one."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [network(images) for network in self.networks]


def modules_of(model: nn.Module) -> tuple[str, ...]:
    return tuple(type(module).__name__ for module in materialize(model).modules())


@cache
def exported() -> list[str]:
    """Methods whose results have modules in an order of their own: the others export as one of these does."""
    first: dict[tuple[str, ...], str] = {}
    for name in METHODS:
        first.setdefault(modules_of(source_and_result(name)[1]), name)
    return sorted({*first.values(), *REPRESENTATIVES})


@pytest.mark.parametrize("part", range(EXPORTS))
@pytest.mark.slow
def test_a_trained_result_exports_with_equal_outputs(part: int, tmp_path: Path) -> None:
    images = task().example_inputs[0]
    models = {name: one_step(applied(name)[0]) for name in exported()[part::EXPORTS]}
    path = export_onnx(SideBySide(models.values()), (images,), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for (name, model), got in zip(models.items(), outputs, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(got),
            model(images).detach(),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@each
def test_what_holds_the_weights_comes_back_from_the_journal(name: str) -> None:
    after, _ = applied(name)
    spec = json.loads(json.dumps(constraint_spec(after)))
    again = restore_constraints(
        materialize(after), spec, {key: tensor.clone() for key, tensor in after.state_dict().items()}
    )
    assert list(constraints(again)) == list(constraints(after))
    for weight in constraints(after):
        assert torch.equal(effective_weight(again, weight), effective_weight(after, weight))
    assert list(again.state_dict()) == list(after.state_dict())


@each
@pytest.mark.slow
def test_the_result_comes_back_into_the_class_of_the_original(name: str) -> None:
    """Weights and structure, as they are stored, into a network as it was before."""
    result = materialize(applied(name)[0]).eval()
    images = task().example_inputs
    changes = structure_of(subject(name), result, images)
    again = subject(name)
    restore(again, result.state_dict(), changes and Structure.parse(changes.text()), "a file")
    assert structure(again) == structure(result)
    assert torch.equal(again.eval()(*images), result(*images))


def structure(model: nn.Module) -> Structured:
    kinds = [(name, type(module).__name__, ()) for name, module in model.named_modules()]
    return kinds + [(name, str(t.dtype), tuple(t.shape)) for name, t in model.state_dict().items()]


@each
@pytest.mark.slow
def test_what_it_declares_to_save_goes_down(name: str) -> None:
    def cost(model: nn.Module) -> dict[str, int]:
        rows, weights = layer_costs(model, task().example_inputs), list(materialize(model).parameters())
        return {
            "macs": sum(row.macs for row in rows),
            "params": sum(p.numel() for p in weights),
            "nonzeros": sum(int(p.count_nonzero()) for p in weights),
            "distinct": sum(len(p.unique()) for p in weights),  # values
        }

    before, after = cost(subject(name)), cost(applied(name)[0])
    for what in catalogue()[name].saves:
        assert after[what] < before[what]


PAIRS = sorted(
    {(m, r) for m in METHODS for r in REPRESENTATIVES if m != r} | {(r, m) for m in METHODS for r in FIRST if m != r}
)


def middles(first: str, second: str) -> tuple[nn.Module, tuple[Edit, ...]]:
    """What the first of two methods makes of their network, and its edits."""
    if repr(subject(first, second)) != repr(subject(first)):
        context = Context(original=tiny())
        return method(first).apply(subject(first, second), task(), context), tuple(context.log.edits)
    return applied(first)


def nothing_new(middle: nn.Module, first: str, second: str) -> bool:
    """Whether the second method meets a network like the original, or like what a representative makes of it.

    That it works on these is tried already. Like is what has the same modules, constraints among them, and tensors.
    """
    tried = [applied_structure(one) for one in REPRESENTATIVES if one not in (first, second)]
    return structure(middle) in [structure(subject(first, second)), *tried]


@cache
def applied_structure(name: str) -> Structured:
    return structure(source_and_result(name)[1])


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.slow
def test_runs_before_and_after_every_other_or_is_refused_with_the_reason(first: str, second: str) -> None:
    """And what the first one holds stays held: zeros stay zero, codebooks and grids stay as small."""
    steps = (method(first), method(second))
    try:
        Recipe(name="r", steps=steps)
    except BadInput as error:
        assert f"put {second} first" in str(error)
        return
    middle, edits = middles(first, second)
    if nothing_new(middle, first, second):
        return
    context = Context(original=tiny())
    try:
        model = steps[1].apply(middle, task(), context)
    except BadInput as error:
        assert "first" in str(error)
        return
    assert model(task().example_inputs[0]).shape == (8, 3)
    assert {edit.method for edit in [*edits, *context.log.edits]} == {first, second}
    now = dict(materialize(model).named_parameters())
    for name, stack in constraints(middle).items():
        if name in now and now[name].shape == effective_weight(middle, name).shape:
            assert_still_held(now[name], stack)


def assert_still_held(weight: torch.Tensor, stack: tuple[Constraint, ...]) -> None:
    for constraint in stack:
        match constraint:
            case Mask():
                assert not weight[~constraint.mask].any()
            case Codebook():
                vectors = weight.reshape(constraint.indices.numel(), -1)
                assert len(vectors.unique(dim=0)) <= len(constraint.codebook)
            case Grid():
                per_channel = weight.movedim(constraint.dim, 0).reshape(constraint.scale.numel(), -1)
                assert all(len(row.unique()) <= constraint.qmax - constraint.qmin + 1 for row in per_channel)
