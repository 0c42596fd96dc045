"""A cut network stays usable: copies, weights in and out, training, compilation, export, a second cut."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from patterns import IMAGE, PATTERNS, Attention, Function, Transformer, pattern, randomized
from test_channels import check, count, outputs
from torch import Tensor, nn

from gossamer.errors import BadInput, NoEffect
from gossamer.graph.groups import find_groups
from gossamer.graph.pruner import prove
from gossamer.graph.slicing import PruningPlan, resize
from gossamer.graph.tracer import trace
from gossamer.graph.widths import Widths
from gossamer.methods.prune.channels import prune_channels
from gossamer.models import build

USABLE = (
    "squeeze_excite",
    "shuffle",
    "grouped",
    "dense",
    "packed_qkv",
    "padded",
    "baked",
    "auxiliary",
    "tied_embedding",
)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.slow
def test_a_cut_replays_from_json_on_other_weights(name: str) -> None:
    model, inputs = pattern(name)
    result = prune_channels(model, inputs, 0.4)
    cut = PruningPlan.from_json(result.plan.to_json())
    other, _ = pattern(name, seed=5)
    small = resize(other, inputs, cut)
    small.load_state_dict(result.model.state_dict())
    for a, b in zip(outputs(small, inputs), outputs(result.model, inputs)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.slow
def test_a_second_cut(name: str) -> None:
    model, inputs = pattern(name)
    once = prune_channels(model, inputs, 0.3).model
    twice = prune_channels(once, inputs, 0.4)
    check(once, inputs, twice)
    assert count(twice.model) < count(once) < count(model)


@pytest.mark.parametrize("name", USABLE)
def test_it_copies_and_trains(name: str) -> None:
    model, inputs = pattern(name)
    small = copy.deepcopy(prune_channels(model, inputs, 0.5).model).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.detach().clone() for p in small.parameters()]
    result = small(inputs)
    loss = sum(t.square().sum() for t in (result if isinstance(result, tuple) else (result,)))
    loss.backward()
    optimizer.step()
    assert all(p.is_leaf and p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters()))


def test_frozen_stays_frozen_and_channels_last_stays_so() -> None:
    model, inputs = pattern("squeeze_excite")
    model = model.to(memory_format=torch.channels_last)
    model.get_parameter("a.0.weight").requires_grad_(False)
    result = prune_channels(model, inputs, 0.5)
    small, weight = result.model, result.model.get_parameter("a.0.weight")
    assert not result.skipped
    assert weight.shape == (6, 3, 3, 3)
    assert not weight.requires_grad
    assert small.get_parameter("down.weight").requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_shared_weights_stay_shared() -> None:
    model, inputs = pattern("tied_embedding")
    small: Any = prune_channels(model, inputs, 0.5).model
    assert small.head.weight is small.embedding.weight


@pytest.mark.parametrize("name", ["squeeze_excite", "packed_qkv"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_it_exports_to_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = pattern(name)
    small = prune_channels(model.float(), inputs.float(), 0.5).model
    torch.onnx.export(small, (inputs.float(),), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: inputs.float().numpy()})
    reference = outputs(small, inputs.float())[0]
    assert (torch.from_numpy(result) - reference).abs().max() < 1e-4 * reference.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_it_compiles() -> None:
    model, inputs = pattern("grouped")
    small = prune_channels(model, inputs, 0.5).model
    with torch.no_grad():
        result = torch.compile(small, backend="aot_eager")(inputs)
    assert torch.allclose(result, outputs(small, inputs)[0])


class Remembers(nn.Module):
    """Keeps what it saw, and counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.cache: dict[str, Any] = {}
        self.last: Any = None
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.cache["hidden"] = self.a(x)
        self.runs += 1
        return self.b(torch.relu(self.last) + torch.rand(()) * 0)


def test_looking_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Remembers().train()
    model.b.eval()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_groups(model, torch.randn(2, 6, generator=torch.Generator()))
    trace(model, torch.randn(2, 6, generator=torch.Generator()), training=True)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.cache == {}
    assert model.last is None
    assert model.training
    assert not model.b.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_inputs_that_a_forward_writes_into_stay() -> None:
    model = randomized(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8), nn.Linear(8, 3)))
    inputs = torch.randn(2, 6, dtype=torch.float64)
    before = inputs.clone()
    prune_channels(model, inputs, 0.5)
    assert torch.equal(inputs, before)


class Decides(nn.Module):
    """Its way depends on the data: fake tensors cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden) if hidden.sum().item() > 0 else self.c(hidden)


def test_control_flow_that_depends_on_data() -> None:
    model, inputs = randomized(Decides()), torch.ones(2, 6, dtype=torch.float64)
    result = prune_channels(model, inputs, 0.5)
    check(model, inputs, result)
    assert count(result.model) < count(model)
    assert any("no run uses c." in note for note in result.notes)


def test_widths_by_group_are_exact_and_share_one_trace() -> None:
    model, inputs = pattern("dense")
    channels = find_groups(model, inputs)
    for width in (1, 3, 7):
        result = prune_channels(model, inputs, widths={"stem.0": width}, channels=channels)
        check(model, inputs, result)
        assert result.widths == {"stem.0": (8, width)}
        assert result.model.get_submodule("stem.0").weight.shape[0] == width


def test_sparsity_by_layer_ignored_layers_and_multiples() -> None:
    model = randomized(build("resnet8"))
    inputs = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = prune_channels(model, inputs, {"stage1.0.conv1": 0.5, "stage2.0.bn2": 0.25})
    assert result.widths == {"stage1.0.conv1": (16, 8), "stage2.0.conv2": (32, 24)}
    result = prune_channels(model, inputs, 0.4, ignore=["stage3", "*.shortcut.*"], round_to=4)
    assert result.widths == {"conv1": (16, 8), "stage1.0.conv1": (16, 8), "stage2.0.conv1": (32, 20)} or all(
        kept % 4 == 0 for _, kept in result.widths.values()
    )
    assert not any(name.startswith("stage3") for name in result.plan.kept)
    assert not any("shortcut" in name for name in result.plan.kept)


def test_the_weakest_channels_go() -> None:
    model, inputs = pattern("grouped")
    with torch.no_grad():
        for name in ("a.0.weight", "a.1.weight"):
            model.get_parameter(name)[[1, 6, 11, 12]] *= 1e-6
        model.get_parameter("b.0.weight")[0:6, 1] = 0
        model.get_parameter("b.0.weight")[6:12, 2] = 0
        model.get_parameter("b.0.weight")[12:18, 3] = 0
        model.get_parameter("b.0.weight")[18:24, 0] = 0
    cut = prune_channels(model, inputs, {"a.0": 0.25}).plan
    assert cut.kept["a.0.weight"][0] == [i for i in range(16) if i not in (1, 6, 11, 12)]
    assert cut.kept["b.0.weight"][1] == [[0, 2, 3], [0, 1, 3], [0, 1, 2], [1, 2, 3]]


def test_scores_by_parameter_replace_the_criterion() -> None:
    model, inputs = pattern("two_inputs")
    scores = {"a.weight": torch.arange(10.0)[:, None].expand(10, 6)}
    cut = prune_channels(model, inputs, 0.5, scores=scores).plan
    assert cut.kept["a.weight"][0] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": {"stage1.0.cnov1": 0.5}}, BadInput, "did you mean 'stage1.0.conv1'"),
        ({"ignore": ["stage9.conv"]}, BadInput, "unknown layer"),
        ({"ignore": ["*.nothing"]}, NoEffect, "matches no layer"),
        ({"ignore": ["*"]}, NoEffect, "leaves no group"),
        ({"sparsity": 1.0}, BadInput, r"sparsity = 1.0: must be in \[0, 1\)"),
        ({"sparsity": {"fc": 0.5}}, NoEffect, "output of the network"),
        ({"widths": {"conv1": 17}}, BadInput, "between 1 and its 16"),
        ({"widths": {"fc": 3}}, BadInput, "cannot be pruned: output of the network"),
        ({"round_to": 0}, BadInput, "round_to = 0"),
        ({"criterion": "l3"}, BadInput, "did you mean 'l"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune_channels(build("resnet8"), torch.zeros(1, 3, 32, 32), **arguments)


def test_inputs_that_the_model_rejects() -> None:
    with pytest.raises(
        BadInput, match=r"ResNet cannot run on the example inputs \(\[1, 4, 32, 32\] float32\): RuntimeError"
    ):
        find_groups(build("resnet8"), torch.zeros(1, 4, 32, 32))


def test_a_cut_of_another_network() -> None:
    model, inputs = pattern("dense")
    cut = prune_channels(model, inputs, 0.5).plan
    with pytest.raises(BadInput, match="the plan is of another network"):
        resize(build("resnet8"), None, cut)
    with pytest.raises(BadInput, match="not the JSON text of a pruning plan"):
        PruningPlan.from_json('{"kept": 3}')


@pytest.mark.parametrize("name", ["grouped", "packed_qkv", "padded"])
@pytest.mark.slow
def test_a_proof_of_two_networks_and_a_cut(name: str) -> None:
    model, inputs = pattern(name)
    result = prune_channels(model, inputs, 0.4)
    proof = prove(model, result.model, result.plan, inputs)
    assert proof.max_relative < 1e-12
    assert result.proof is not None
    assert proof.statistics == result.proof.statistics
    with torch.no_grad():
        next(p for p in result.model.parameters() if p.ndim > 1).flatten()[0] += 0.1
    assert prove(model, result.model, result.plan, inputs).max_relative > 1e-6
    with pytest.raises(BadInput, match="is not what the plan makes"):
        prove(model, model, result.plan, inputs)


def test_attention_with_linked_widths_survives_a_state_dict_round_trip() -> None:
    torch.manual_seed(0)
    model = randomized(Transformer(lambda dim: Attention(dim, 2, 5), dim=24))
    result = prune_channels(model, IMAGE.double(), 0.37)
    check(model, IMAGE.double(), result)
    fresh = resize(Transformer(lambda dim: Attention(dim, 2, 5), dim=24).double(), None, result.plan)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(outputs(fresh.eval(), IMAGE.double())[0], outputs(result.model, IMAGE.double())[0])


def test_a_group_that_is_left_whole_lets_go_of_those_it_was_linked_with() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    widths = Widths(find_groups(model, torch.zeros(1, 8)))
    widths.link({"0", "1", "2"})
    assert widths.fractions({"0": 0.5, "1": 0.5, "2": 0.5}) == {"0": 0.5, "1": 0.5, "2": 0.5}
    widths.skip("0", "a reason")
    assert widths.linked == [{"1", "2"}]
    assert widths.fractions({"0": 0.5, "1": 0.5, "2": 0.5}) == {"1": 0.5, "2": 0.5}
    widths.skip("1", "a reason")
    assert widths.linked == []


class Frequencies(nn.Module):
    """A table that a method gives, not a forward; it checks its size first."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 16
        self.register_buffer("table", torch.linspace(0.1, 1, 8))

    def waves(self, x: Tensor) -> Tensor:
        if self.table.numel() != self.size // 2:  # before any operation that could fail
            raise ValueError("another size")
        angles = x.mean(-1, keepdim=True) * self.table
        return torch.cat([angles.sin(), angles.cos()], -1)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frequencies, self.a, self.b = Frequencies(), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = self.frequencies.waves(x)
        out: Tensor = self.b(self.a(x) * waves)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_size_that_a_method_of_a_module_checks_follows(dtype: torch.dtype) -> None:
    model, x = randomized(Waves(), dtype=dtype), torch.randn(2, 6, dtype=dtype)
    result = prune_channels(model, x, 0.5)
    check(model, x, result)
    assert (result.model.frequencies.size, result.model.a.out_features) == (8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_a_layer_norm_normalizes_one_by_one_are_cut(dtype: torch.dtype) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        memory = m.norm(m.rows)
        out: Tensor = m.head((x @ memory.T).softmax(-1) @ memory)
        return out

    model: Any = Function(forward, norm=nn.LayerNorm(6), head=nn.Linear(6, 2))
    model.rows = nn.Parameter(torch.zeros(8, 6))
    model, x = randomized(model, dtype=dtype), torch.randn(2, 6, dtype=dtype)
    result = prune_channels(model, x, 0.5)
    check(model, x, result)
    assert result.model.rows.shape == (4, 6)
