"""What other people's networks hold and do: nothing of it ends in an exception that is not ours, and no wrong cut."""

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patterns import PATTERNS, Function, pattern, randomized
from test_channels import check
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.errors import BadInput, GossamerError, NoEffect
from gossamer.graph.channel_index import IndexedValue
from gossamer.graph.groups import find_groups
from gossamer.graph.propagation import Propagation
from gossamer.graph.pruner import PruningResult
from gossamer.graph.rules import RULES
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.methods.prune.channels import prune_channels
from gossamer.modules.cost import analyze
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))


@functools.cache
def rules_of_patterns() -> dict[str, list[str]]:
    """Operations that have a rule, each at the first pattern that uses it."""
    found: dict[str, list[str]] = {}
    for name in PATTERNS:
        ops = find_groups(*pattern(name)).propagations.eval.trace.ops
        known = {op for ops_ in found.values() for op in ops_}
        found[name] = sorted({op.name for op in ops if op.name in RULES} - known)
    return found


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("wrong", ["raises", "lies"])
@pytest.mark.slow
def test_a_rule_that_fails_fixes_its_operation_by_name(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(w: Propagation, op: Any) -> IndexedValue:
        if wrong == "raises":
            raise ZeroDivisionError("no such luck")
        return IndexedValue({7: np.ones(1, dtype=np.int64)})

    for op in rules_of_patterns()[name]:
        model, inputs = pattern(name)
        monkeypatch.setitem(RULES, op, rule)
        channels = find_groups(model, inputs)
        try:
            check(model, inputs, prune_channels(model, inputs, 0.5, channels=channels))
        except NoEffect as error:
            assert f"the rule for {op}" in str(error)
        own = [o for o in channels.propagations.eval.trace.ops if o.name == op]
        touched = any(channels.propagations.eval.value(ref).axes for o in own for ref in o.refs())
        assert not touched or any(f"the rule for {op}" in why for _, why in channels.graph.fixed)
        monkeypatch.undo()


@pytest.mark.parametrize(
    "part",
    [
        "shape_run.kept_indices",
        "patches.counted_indices",
        "shape_run.set_attribute",
        "proof.masked_original",
        "proof.compact",
    ],
)
@pytest.mark.slow
def test_what_fitting_or_proving_raises_leaves_groups_whole_by_name(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pattern("packed_qkv")
    channels = find_groups(model, inputs)
    prune_channels(model, inputs, 0.1, channels=channels)
    channels.solver = None
    calls = [0]

    def fails(*_: Any, **__: Any) -> Any:
        calls[0] += 1
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(f"gossamer.graph.{part}", fails)
    try:
        result: PruningResult | None = prune_channels(model, inputs, 0.3, channels=channels)
    except GossamerError as error:
        assert "no such luck" in str(error)
    else:
        assert result is not None
        assert all("no such luck" in why or "aten." in why for why in result.skipped.values())
    assert calls[0] > 0


class Holder(nn.Module):
    def __init__(self, **things: Any) -> None:
        super().__init__()
        self.net = plain()
        for name, thing in things.items():
            setattr(self, name, thing)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("thing", ["lock", "file", "generator", "nested", "not a leaf"])
def test_what_cannot_be_copied_is_shared(thing: str, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:  # noqa: PTH123
        things: dict[str, Any] = {
            "lock": threading.Lock(),
            "file": file,
            "generator": (i for i in range(3)),
            "nested": {"a": [threading.RLock(), 3]},
            "not a leaf": torch.ones(2, requires_grad=True) * 2,
        }
        model = Holder(thing=things[thing]).eval()
        result = prune_channels(model, X)
        assert result.model.net[0].out_channels == 8
        assert (result.model.thing is model.thing) == (thing in ("lock", "file", "generator"))
        if thing == "nested":
            assert result.model.thing["a"] == model.thing["a"]
            assert result.model.thing["a"] is not model.thing["a"]
        assert materialize(model).net[0].weight is not model.net[0].weight
        export_onnx(model, (X,), tmp_path / "net.onnx")


def test_a_network_that_refuses_to_be_copied_is_refused_by_name() -> None:
    class Single(Holder):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise RuntimeError("there can be only one")

    with pytest.raises(BadInput, match="Single cannot be copied: RuntimeError: there can be only one"):
        prune_channels(Single().eval(), X)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own doings there
@pytest.mark.parametrize("make", ["traced", "scripted"])
def test_torchscript_is_refused_by_name(make: str, tmp_path: Path) -> None:
    model = torch.jit.trace(plain().eval(), X) if make == "traced" else torch.jit.script(plain().eval())
    with pytest.raises(NoEffect, match="0 is compiled by TorchScript: prune the module that it was made from"):
        prune_channels(model, X)
    assert analyze(model, X).params > 0
    for export, name in ((export_onnx, "net.onnx"), (export_pt2, "net.pt2")):
        with pytest.raises(BadInput, match="compiled by TorchScript; export the module"):
            export(model, (X,), tmp_path / name)
    around = nn.Sequential(model, nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    result = prune_channels(around, X)
    assert dict(result.widths) == {"1": (8, 4)}
    assert analyze(around, X).params > 0


@pytest.mark.parametrize("what", ["weights", "inputs", "forward"])
def test_inference_mode(what: str) -> None:
    class Inside(Holder):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

    with torch.inference_mode(what == "weights"):
        model = Inside() if what == "forward" else Holder()
        model.net.insert(1, nn.BatchNorm2d(16))
    with torch.inference_mode(what == "inputs"):
        x = X + 1
    result = prune_channels(model.eval(), x)
    assert result.model.net[0].out_channels == 8
    assert not result.skipped


def test_hooks_that_a_forward_registers_once_are_not_there_twice() -> None:
    """A flag says that they are there. It was put back after every run, and the hooks were not (transformers)."""

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.seen = nn.Linear(8, 16), nn.Linear(16, 2), list[Tensor]()

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "recorded"):
                self.first.register_forward_hook(lambda layer, given, made: self.seen.append(made))
                self.recorded = True
            self.seen.clear()
            self.first(x)
            (hidden,) = self.seen  # ValueError where the hook is there twice
            return self.second(hidden.relu())  # type: ignore[no-any-return]

    network = Recording()
    assert find_groups(network, torch.ones(1, 8)).prunable()
    assert not network.first._forward_hooks and not hasattr(network, "recorded")


def test_hooks_run_and_stay() -> None:
    model = randomized(plain())
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    result = prune_channels(model, X.double())
    check(model, X.double(), result)
    assert len(result.model[0]._forward_hooks) == 1


GRIDS: dict[Any, Tensor] = {}


@functools.lru_cache
def numbered(h: int, w: int) -> Tensor:
    return torch.arange(h * w, dtype=torch.float32).view(h, w)


class Anchors:
    shape: Any = None

    def grid(self, h: int, w: int) -> Tensor:
        if self.shape != (h, w):
            self.shape, self.kept = (h, w), numbered.__wrapped__(h, w)
        return self.kept


class Cached(nn.Module):
    """Its grid is made once for each shape."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net, self.where, self.own, self.anchors = plain(), where, {}, Anchors()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        h, w = x.shape[-2:]
        if self.where == "lru_cache":
            return x + numbered(h, w)
        if self.where == "object":
            return x + self.anchors.grid(h, w)
        kept = GRIDS if self.where == "global" else self.own
        if (h, w) not in kept:
            kept[h, w] = numbered.__wrapped__(h, w)
        return x + kept[h, w]


@pytest.mark.parametrize("where", ["lru_cache", "object", "global", "module"])
@pytest.mark.parametrize("first", [prune_channels, analyze])
@pytest.mark.slow
def test_what_a_forward_keeps_by_shape_is_left_real(where: str, first: Callable[..., Any], tmp_path: Path) -> None:
    GRIDS.clear()
    numbered.cache_clear()
    model = Cached(where).eval()
    first(model, X)
    before = model(X)
    assert type(before) is Tensor
    result = prune_channels(model, X)
    assert result.model.net[0].out_channels == 8
    export_onnx(result.model, (X,), tmp_path / "net.onnx")
    assert torch.equal(model(X), before)


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 16


@dataclasses.dataclass
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)


class Baked(nn.Module):
    """It knows its own width, from one of many places."""

    of_class = 16

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.width, self.cfg = where, 16, {"width": 16, "a.b": [3, {"x": 16}]}
        self.sizes, self.frozen, self.nested = [[1, 16], 2], Inner(), Outer()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        places: dict[str, Callable[[], int]] = {
            "attribute": lambda: self.width,
            "dict": lambda: self.cfg["width"],
            "deep": lambda: self.cfg["a.b"][1]["x"],
            "list": lambda: self.sizes[0][1],
            "frozen": lambda: self.frozen.width,
            "nested": lambda: self.nested.inner.width,
            "class": lambda: self.of_class,
            "literal": lambda: 16,
        }
        w = places[self.where]()
        x = self.a(x).relu()
        return self.b(x.view(len(x), w, 36).mean(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["attribute", "dict", "deep", "list", "frozen", "nested", "class"])
def test_widths_that_a_forward_knows_follow(where: str) -> None:
    model = randomized(Baked(where))
    result = prune_channels(model, X.double())
    check(model, X.double(), result)
    assert result.model.a.out_channels == 8
    assert model.cfg == {"width": 16, "a.b": [3, {"x": 16}]}
    again = resize(model, X.double(), PruningPlan.from_json(result.plan.to_json()))
    assert torch.equal(again(X.double()), result.model(X.double()))


def test_a_literal_in_the_way_is_named_with_its_line() -> None:
    result = prune_channels(Baked("literal").eval(), X)
    assert "test_foreign_networks.py:" in result.skipped["a"]
    assert '"return self.b(x.view(len(x), w, 36).mean(2))' in result.skipped["a"]


def test_a_run_that_goes_on_otherwise_is_named_with_its_line() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        for _ in range(y.shape[1]):
            y = y.sin()
        return m.b(y).flatten(1).mean(1)  # type: ignore[no-any-return]

    result = prune_channels(Function(forward, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 4, 3)).eval(), X)
    assert "test_foreign_networks.py:" in result.skipped["a"] and "m.b(y)" in result.skipped["a"]


def constant(value: float) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model[4].parameters():
                p.fill_(value)

    return fill


@pytest.mark.parametrize(
    ("spoil", "x", "why"),
    [
        (lambda m: None, X * torch.nan, "no output has a finite number, and neither have the example inputs"),
        (lambda m: None, X[:0], "all outputs are empty"),
        (constant(torch.inf), X, "no output has a finite number; "),
        (constant(0.0), X, "the outputs are 0 everywhere"),
    ],
)
def test_a_proof_with_nothing_to_look_at_is_refused(spoil: Callable[[nn.Module], None], x: Tensor, why: str) -> None:
    model = plain().eval()
    spoil(model)
    with pytest.raises(BadInput, match=f"the proof of the pruning has nothing to look at: {why}"):
        prune_channels(model, x)
    assert prune_channels(model, x, prove=False).model[0].out_channels == 8


def test_one_number_is_something_to_look_at() -> None:
    model = Function(lambda m, x: m.net(x).sum(), net=plain()).eval()
    assert not prune_channels(model, X).skipped


def test_a_forward_that_draws_numbers_is_proven() -> None:
    model = randomized(
        Function(lambda m, x: m.b(m.a(x)) + torch.randn(2, 4, 8, 8), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    )
    assert not prune_channels(model, X.double()).skipped
