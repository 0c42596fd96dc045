"""Every way in which channels get coupled: cut at any sparsity, the result is the original with silenced channels."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patterns import IMAGE, PATTERNS, Function, conv, pattern, randomized
from torch import Tensor, nn

from gossamer.core.arguments import arguments
from gossamer.graph.channel_index import CouplingGraph
from gossamer.graph.groups import find_groups
from gossamer.graph.proof import names_in_words
from gossamer.graph.pruner import PruningResult
from gossamer.graph.slicing import PruningPlan
from gossamer.graph.tracer import output_tensors
from gossamer.methods.prune.channels import prune_channels

# parameters left at sparsity 0.5; more would mean that channels are pinned that need not be
LEFT = {
    "squeeze_excite": 0.47, "concat": 0.34, "concat_split": 0.51, "shuffle": 0.33, "module_shuffle": 0.34,
    "grouped": 0.36, "depthwise": 0.49, "depthwise_multiplier": 0.48, "dense": 0.32, "packed_qkv": 0.29,
    "torch_attention": 0.29, "group_norm": 0.35, "layer_norm": 0.48, "shared": 0.34, "tied_embedding": 0.38,
    "loose": 0.51, "two_inputs": 0.52, "dictionaries": 0.53, "pixel_shuffle": 0.66, "padded": 0.28, "in_place": 0.66,
    "auxiliary": 0.33, "baked": 0.54, "transposed": 0.34, "normalized": 0.52, "recurrent": 0.31,
}  # fmt: skip
HEADS = ("packed_qkv", "torch_attention")
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        return output_tensors(model(*args, **kwargs))


def silence(model: nn.Module, cut: PruningPlan) -> nn.Module:
    """The original with every removed row and column zero: the slow and obvious way."""
    silent = copy.deepcopy(model)
    tensors = dict([*silent.named_parameters(), *silent.named_buffers()])
    with torch.no_grad():
        for name, dims in cut.kept.items():
            for d, kept in dims.items():
                columns = tensors[name].movedim(d, 1) if d == 1 else tensors[name][None]
                for row in range(len(columns)):
                    mine = kept[row * len(kept) // len(columns)] if kept and isinstance(kept[0], list) else kept
                    columns[row][sorted(set(range(columns.shape[1])).difference(mine))] = 0
                    if not (kept and isinstance(kept[0], list)) and d == 1:
                        columns[:, sorted(set(range(columns.shape[1])).difference(mine))] = 0
                        break
    return silent


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    assert [t.shape for t in a] == [t.shape for t in b]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-12)) for x, y in zip(a, b))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check(model: nn.Module, inputs: Any, result: PruningResult) -> None:
    assert result.proof is not None
    exact = EXACT[next(model.parameters()).dtype]
    assert result.proof.max_relative < exact
    assert type(result.model) is type(model)
    small = outputs(result.model, inputs)
    assert [t.shape for t in small] == [t.shape for t in outputs(model, inputs)]
    if not result.proof.statistics:
        assert difference(small, outputs(silence(model, result.plan), inputs)) < exact


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.slow
def test_half_of_the_channels_go_everywhere(name: str, dtype: torch.dtype) -> None:
    model, inputs = pattern(name, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    result = prune_channels(model, inputs, 0.5)
    check(model, inputs, result)
    assert count(result.model) <= LEFT[name] * count(model)
    assert not result.skipped
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sparsity", [0.3, 0.37, 0.8])
@pytest.mark.slow
def test_inconvenient_sparsities(name: str, sparsity: float) -> None:
    model, inputs = pattern(name, seed=1, dtype=torch.float32 if sparsity == 0.37 else torch.float64)
    result = prune_channels(model, inputs, sparsity)
    check(model, inputs, result)
    assert count(result.model) < count(model)
    assert not result.skipped


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.6])
@pytest.mark.slow
def test_whole_heads(name: str, sparsity: float) -> None:
    model, inputs = pattern(name, dtype=torch.float32 if sparsity == 0.5 else torch.float64)
    result = prune_channels(model, inputs, sparsity, heads=True)
    check(model, inputs, result)
    assert not result.skipped
    heads = [m.num_heads for m in result.model.modules() if isinstance(getattr(m, "num_heads", None), int)]
    assert set(heads) == {max(1, math.floor(4 * (1 - sparsity) + 0.5))}


def test_the_scale_of_attention_and_layer_norm_are_named() -> None:
    model, inputs = pattern("packed_qkv")
    proof = prune_channels(model, inputs, 0.5).proof
    assert proof is not None
    assert any("native_layer_norm in norm1.0" in s for s in proof.statistics)
    assert any("0.353553 is 0.5 " in s and "attention.0" in s for s in proof.scalars)


def test_a_long_list_is_cut_short_and_says_so() -> None:
    assert names_in_words(["a", "b"]) == "a, b"
    assert names_in_words(list("abcdef")) == "a, b, c, d and 2 more"


def test_a_head_that_only_training_uses_follows() -> None:
    model, inputs = pattern("auxiliary")
    small = prune_channels(model, inputs, 0.5).model
    small.train()
    main, aux = small(inputs)
    assert main.shape == aux.shape == (2, 4)
    assert small.get_submodule("aux.1.0").weight.shape == (3, 4, 1, 1)


def test_a_training_head_that_refuses_a_batch_of_one_follows() -> None:
    model, inputs = pattern("auxiliary")
    result = prune_channels(model, inputs[:1], 0.5)
    assert result.model.get_submodule("aux.1.0").weight.shape == (3, 4, 1, 1)


@pytest.mark.parametrize(("name", "most"), [("packed_qkv", 5), ("torch_attention", 17)])
@pytest.mark.slow
def test_what_one_layer_needs_is_taken_over_by_its_siblings(name: str, most: int) -> None:
    model, inputs = pattern(name)
    channels = find_groups(model, inputs, heads=True)
    first = prune_channels(model, inputs, 0.3, channels=channels)
    assert channels.solver.tries <= most
    assert any("attention.0" in fact and "attention.1" in fact for fact in channels.solver.learned())
    again = prune_channels(model, inputs, 0.3, channels=channels)
    assert channels.solver.tries == 1
    assert again.widths == first.widths


def test_reasons_are_given() -> None:
    model, inputs = pattern("recurrent")
    reasons = {group.name: group.reason for group in find_groups(model, inputs).groups if group.reason}
    assert reasons["head"] == "output of the network"


def test_an_unknown_operation_pins_by_name() -> None:
    net = Function(lambda m, x: m.b(torch.linalg.qr(m.a(x))[0]), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    model, inputs = randomized(net), torch.randn(6, 6, dtype=torch.float64)
    groups = find_groups(model, inputs).groups
    assert [(g.reason, g.size) for g in groups if g.name == "a"] == [("no rule for aten.linalg_qr in the network", 6)]


def test_groups_say_what_is_cut_together() -> None:
    model, inputs = pattern("grouped")
    groups = {group.name: group for group in find_groups(model, inputs).groups}
    a = groups["a.0"]
    assert (a.size, a.step) == (16, 4)
    assert ("a.0.weight", 0) in a.members
    assert ("b.0.weight", 1) in a.members
    assert a.layers == ("a.0", "a.1", "b.0")


@pytest.mark.parametrize("name", ["shuffle", "concat_split", "packed_qkv", "grouped", "padded", "dense", "depthwise"])
@pytest.mark.slow
def test_a_missing_tie_never_gives_a_wrong_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: forget one tie, and the proof, or the predicted shapes, must see it."""
    model, inputs = pattern(name)
    couple, caught = CouplingGraph.couple, 0
    n = len(find_groups(model, inputs).graph.couplings)
    for missing in range(0, n, max(1, n // 8)):
        calls = [0]

        def forgetful(self: CouplingGraph, a: Any, b: Any, calls: list[int] = calls, missing: int = missing) -> None:
            if a is not b:
                calls[0] += 1
                if calls[0] - 1 == missing:
                    return
            couple(self, a, b)

        monkeypatch.setattr(CouplingGraph, "couple", forgetful)
        result = prune_channels(model, inputs, 0.4)
        monkeypatch.undo()
        check(model, inputs, result)
        assert torch.is_grad_enabled()
        caught += bool(result.skipped)
    assert caught > 0


def random_network(seed: int) -> nn.Module:
    """Layers with random operands, joined at random by sums, products, concatenations, chunks and gates."""
    generator = torch.Generator().manual_seed(seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    plan: list[tuple[str, int, int]] = []
    widths, modules = [3], {}
    for i in range(4 + pick(5)):
        kind = ("conv", "conv", "grouped", "depthwise", "add", "cat", "chunk", "gate", "norm")[pick(9) if i else 0]
        a, b = pick(len(widths)), pick(len(widths))
        if kind == "grouped" and widths[a] % 2 == 0:
            modules[f"l{i}"], width = conv(widths[a], 8, groups=2), 8
        elif kind == "depthwise":
            modules[f"l{i}"], width = conv(widths[a], widths[a] * 2, groups=widths[a]), widths[a] * 2
        elif kind in ("add", "gate") and widths[a] == widths[b]:
            width = widths[a]
        elif kind == "cat":
            width = widths[a] + widths[b]
        elif kind == "chunk" and widths[a] % 2 == 0:
            width = widths[a] // 2
        elif kind == "norm" and widths[a] % 2 == 0:
            modules[f"l{i}"], width = nn.GroupNorm(2, widths[a]), widths[a]
        else:
            kind, width = "conv", 4 + 2 * pick(4)
            modules[f"l{i}"] = conv(widths[a], width)
        plan.append((kind, a, b))
        widths.append(width)
    modules["head"] = nn.Linear(sum(widths), 3)

    def forward(m: Any, x: Tensor) -> Tensor:
        values = [x]
        for i, (kind, a, b) in enumerate(plan):
            if kind == "add":
                values.append(values[a] + values[b])
            elif kind == "gate":
                values.append(values[a] * torch.sigmoid(values[b]))
            elif kind == "cat":
                values.append(torch.cat([values[a], values[b]], 1))
            elif kind == "chunk":
                values.append(values[a].chunk(2, 1)[b % 2])
            else:
                values.append(torch.relu(getattr(m, f"l{i}")(values[a])))
        return m.head(torch.cat([v.mean((2, 3)) for v in values], 1))

    torch.manual_seed(seed)
    return randomized(Function(forward, **modules), seed)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), sparsity=st.floats(0.05, 0.9))
@pytest.mark.slow
def test_random_networks(seed: int, sparsity: float) -> None:
    model, inputs = random_network(seed), IMAGE.double()
    result = prune_channels(model, inputs, sparsity)
    check(model, inputs, result)
    assert not result.skipped
