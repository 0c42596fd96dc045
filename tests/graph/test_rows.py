"""Operations over rows, memory that is filled, recurrent layers, held weights, attention with few keys: channels go
through all of them, in single and double precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patterns import Function, doubled, randomized
from test_channels import EXACT, check, count
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gossamer.graph.groups import find_groups
from gossamer.methods.prune.channels import prune_channels

PLACES = torch.tensor([2, 0, 2, 1])


def through(operation: Callable[[Tensor], Tensor], width: int = 12) -> nn.Module:
    """Two layers with an operation between them, on five rows of six numbers."""
    return Function(lambda m, x: m.head(operation(m.a(x))), a=nn.Linear(6, 12), head=nn.Linear(width, 3))


def wide(index: Tensor, x: Tensor) -> Tensor:
    """An index for every channel of x."""
    return index.view(1, -1, 1).expand(len(x), -1, x.shape[-1])


def filled(x: Tensor) -> Tensor:
    """Written step by step into memory that the forward makes."""
    out = torch.zeros(x.shape[0], x.shape[1], x.shape[2] + 1, dtype=x.dtype)
    for t in range(x.shape[1]):
        out[:, t, : x.shape[2]] = x[:, t].sin()
    return out[..., : x.shape[2]]


class Cell(nn.Module):
    """A recurrent layer by hand, whose state begins as zeros of a width that it knows."""

    def __init__(self, result: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.result, self.hidden = result, 12
        self.step, self.head = nn.Linear(6 + 12, 4 * 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(len(x), self.hidden)]
        memory = torch.zeros_like(states[0])
        for t in range(x.shape[1]):
            i, f, o, g = self.step(torch.cat([x[:, t], states[-1]], 1)).chunk(4, 1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            states.append(o.sigmoid() * memory.tanh())
        return self.head(self.result(states))


def detector(rows: Callable[[Tensor], Tensor]) -> nn.Module:
    """Boxes, of which it gives those that it is sure of."""
    body = nn.Sequential(nn.Conv1d(6, 12, 1), nn.ReLU(), nn.Conv1d(12, 10, 1), nn.ReLU(), nn.Conv1d(10, 4, 1))
    return Function(lambda m, x: rows(m.body(x.transpose(1, 2))[0].T), body=body)


def best(rows: Tensor) -> Tensor:
    """The two best, then those above a score, as many as there are."""
    rows = rows[rows[:, 0].topk(4).indices]
    if bool((rows[:, 1] > 100).any()):
        return rows[:0]
    keep = torch.nonzero(rows[:, 2] > rows[:, 2].median()).flatten()
    return rows[keep[: int(keep.numel())]]


class FewKeys(nn.Module):
    """Each head of the keys serves several of the queries."""

    def __init__(self, how: str, keys: int) -> None:
        super().__init__()
        self.how, self.num_heads, self.num_key_value_heads = how, 4, keys
        self.i, self.q, self.o = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 3)
        self.k, self.v = nn.Linear(16, 8 * keys), nn.Linear(16, 8 * keys)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, t, _ = x.shape
        h, g = self.num_heads, self.num_key_value_heads
        q, k, v = (m(x).view(b, t, n, -1).transpose(1, 2) for m, n in ((self.q, h), (self.k, g), (self.v, g)))
        if self.how == "expand":
            k, v = (z[:, :, None].expand(b, g, h // g, t, z.shape[-1]).reshape(b, h, t, -1) for z in (k, v))
        elif self.how == "interleave":
            k, v = (z.repeat_interleave(h // g, 1) for z in (k, v))
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.how == "native")
        return self.o(x.transpose(1, 2).reshape(b, t, -1))


def recurrent(kind: Callable[..., nn.Module], *, packed: bool = False, **options: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        if packed:
            x = pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
        x = m.rnn(x)[0]
        return m.head(F.relu(m.b(pad_packed_sequence(x, batch_first=True)[0] if packed else x)))

    rnn = kind(10, 8, batch_first=True, **options)
    width = (options.get("proj_size") or 8) * (2 if options.get("bidirectional") else 1)
    return Function(forward, a=nn.Linear(6, 10), rnn=rnn, b=nn.Linear(width, 12), head=nn.Linear(12, 3))


def cells(kind: Callable[[int, int], nn.Module]) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(3):
            state = m.cell(m.a(x[:, t]), state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return Function(forward, a=nn.Linear(6, 10), cell=kind(10, 8), head=nn.Linear(8, 3))


def held(norm: Callable[[nn.Module], nn.Module], **options: Any) -> nn.Module:
    layers = nn.Conv1d(5, 16, 3, padding=1), nn.Conv1d(16, 16, 3, padding=1, **options)
    return nn.Sequential(norm(layers[0]), nn.ReLU(), norm(layers[1]), nn.ReLU(), nn.Conv1d(16, 2, 3))


def half_masked(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.5)  # type: ignore[no-any-return, no-untyped-call]


# a network and the share of its parameters that is left at sparsity 0.5; more would mean needless pins
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "index_add": (lambda: through(lambda x: x.index_add(1, PLACES, x[:, :4].sin())), 0.54),
    "index_copy": (lambda: through(lambda x: x.index_copy(1, PLACES[1:], x[:, :3].sin())), 0.54),
    "index_fill": (lambda: through(lambda x: x.index_fill(1, PLACES, 0.5)), 0.54),
    "scatter": (lambda: through(lambda x: x.scatter(1, wide(PLACES[1:], x), x[:, :3].sin())), 0.54),
    "scatter_add": (lambda: through(lambda x: x.scatter_add(1, wide(PLACES, x), x[:, :4].sin())), 0.54),
    "scatter_reduce": (lambda: through(lambda x: x.scatter_reduce(1, wide(PLACES, x), x[:, :4].sin(), "amax")), 0.54),
    "gather": (lambda: through(lambda x: x.gather(1, wide(PLACES, x))), 0.54),
    "index_put": (lambda: through(lambda x: x.index_put((torch.tensor([0, 1]), PLACES[:2]), x[:, 0])), 0.54),
    "masked_scatter": (lambda: through(lambda x: x.masked_scatter(torch.ones(5, 1) > 0, x.sin().flatten(0, 1))), 0.54),
    "topk": (lambda: through(lambda x: x.topk(3, 1).values), 0.54),
    "sort": (lambda: through(lambda x: x.sort(1, descending=True).values), 0.54),
    "kthvalue": (lambda: through(lambda x: x.kthvalue(2, 1).values), 0.54),
    "unfold": (lambda: through(lambda x: x.unfold(1, 2, 1).mean(-1)), 0.54),
    "slice_scatter": (lambda: through(lambda x: x.slice_scatter(x[:, :2].sin(), 1, 1, 3)), 0.54),
    "select_scatter": (lambda: through(lambda x: x.select_scatter(x[:, 0].sin(), 1, 3)), 0.54),
    "cdist": (lambda: through(lambda x: torch.cdist(x, x[:, :4].sin()), width=4), 0.59),
    "fft": (lambda: through(lambda x: torch.fft.rfft(x, dim=1).abs()), 0.54),
    "glu": (lambda: through(lambda x: F.glu(x, -1), width=6), 0.56),
    "filled": (lambda: through(filled), 0.54),
    "rows above a score": (lambda: detector(lambda rows: rows[rows[:, 0] > 0]), 0.49),
    "masked_select": (lambda: detector(lambda rows: rows.masked_select(rows > 0)), 0.49),
    "chosen by a forward": (lambda: detector(best), 0.49),
    "grouped-query, native": (lambda: FewKeys("native", 2), 0.36),
    "grouped-query, expand": (lambda: FewKeys("expand", 2), 0.36),
    "multi-query, interleave": (lambda: FewKeys("interleave", 1), 0.36),
    "lstm": (lambda: recurrent(nn.LSTM), 0.31),
    "lstm, both ways, two layers": (lambda: recurrent(nn.LSTM, bidirectional=True, num_layers=2), 0.29),
    "lstm, projected": (lambda: recurrent(nn.LSTM, proj_size=4), 0.33),
    "lstm, packed": (lambda: recurrent(nn.LSTM, packed=True, bidirectional=True), 0.30),
    "gru, packed": (lambda: recurrent(nn.GRU, packed=True), 0.32),
    "rnn": (lambda: recurrent(nn.RNN, bidirectional=True), 0.33),
    "lstm cell": (lambda: cells(nn.LSTMCell), 0.33),
    "gru cell": (lambda: cells(nn.GRUCell), 0.33),
    "weight norm": (lambda: held(parametrizations.weight_norm), 0.39),
    "weight norm, depthwise": (lambda: held(parametrizations.weight_norm, groups=16), 0.52),
    "spectral norm": (lambda: held(parametrizations.spectral_norm), 0.38),
    "weight norm by a hook": (lambda: held(old_weight_norm), 0.39),
    "spectral norm by a hook": (lambda: held(nn.utils.spectral_norm), 0.38),
    "masks": (lambda: held(half_masked), 0.38),
    "masks, grouped": (lambda: held(half_masked, groups=4), 0.45),
}  # fmt: skip


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomized(NETWORKS[name][0](), 0, dtype)
    return model, doubled(torch.randn(2, 5, 6), dtype)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.slow
def test_channels_go_through(name: str, dtype: torch.dtype) -> None:
    model, x = build(name, dtype)
    result = prune_channels(model, x, 0.5)
    assert not result.skipped
    assert count(result.model) <= NETWORKS[name][1] * count(model)
    if isinstance(model, Function) and hasattr(model, "body"):  # how many rows come out depends on the weights
        assert result.proof is not None
        assert result.proof.max_relative < EXACT[dtype]
    else:
        check(model, x, result)


@pytest.mark.parametrize("name", ["weight norm", "spectral norm by a hook", "lstm", "masks", "filled"])
def test_what_is_left_trains(name: str) -> None:
    model, x = build(name, torch.float32)
    small = prune_channels(model, x, 0.5).model.train()
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("result", [lambda states: states[-1], torch.stack], ids=["last", "all"])
def test_states_that_begin_as_zeros_are_cut(result: Callable[[list[Tensor]], Tensor]) -> None:
    model, x = randomized(Cell(result)), torch.randn(2, 3, 6, dtype=torch.float64)
    pruned = prune_channels(model, x, 0.5)
    check(model, x, pruned)
    assert not pruned.skipped
    assert (pruned.model.hidden, pruned.model.step.weight.shape) == (6, (24, 12))


@pytest.mark.parametrize("how", ["native", "expand", "interleave"])
def test_heads_that_share_keys_go_together(how: str) -> None:
    model = randomized(FewKeys(how, 2))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    result = prune_channels(model, x, 0.5, heads=True)
    check(model, x, result)
    assert not result.skipped
    assert (result.model.q.out_features, result.model.k.out_features) == (16, 8)


def test_what_follows_the_channels_by_number_stays() -> None:
    model = randomized(through(lambda x: x.gather(2, torch.arange(12).expand(2, 5, 12))))
    reasons = [g.reason for g in find_groups(model, torch.randn(2, 5, 6, dtype=torch.float64)).groups]
    assert any("aten.gather" in str(reason) for reason in reasons)


def test_a_detector_that_is_cut_wrongly_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that come out are compared, and what they were chosen by."""
    from gossamer.graph import proof

    model, x = build("rows above a score", torch.float64)
    honest = proof.masked_original
    monkeypatch.setattr(proof, "masked_original", lambda t, kept: honest(t, kept) * (1.01 if t.ndim == 3 else 1))
    assert set(prune_channels(model, x, 0.5).skipped) == {"body.0", "body.2"}


class Spectral(nn.Module):
    """A layer of a Fourier neural operator between two convolutions: its weights are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 8, 1)
        self.weight = nn.Parameter(torch.randn(8, 6, 4, 3, dtype=torch.cdouble))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.einsum("bihw,iohw->bohw", torch.fft.rfft2(self.lift(x)), self.weight)
        return self.head(F.relu(self.project(torch.fft.irfft2(waves, s=(4, 4)))).mean((2, 3)))


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
def test_complex_weights_are_cut(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = Spectral().double(), torch.randn(2, 3, 4, 4, dtype=torch.double)
    result = prune_channels(model, x, 0.5, criterion=criterion)
    assert dict(result.widths) == {"lift": (8, 4), "weight": (6, 3), "project": (8, 4)}
    assert result.proof is not None and result.proof.max_relative < 1e-12
    assert result.model.weight.shape == (4, 3, 4, 3)


class Triangle(nn.Module):
    def __init__(self, held: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.held, self.first, self.head = held, nn.Linear(6, 16), nn.Linear(16, 2)
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x) @ self.held(self.weight)))


@pytest.mark.parametrize(
    "held", [torch.triu, torch.tril, lambda w: w.triu(1), lambda w: w.tril(-1), lambda w: w.triu() - w.triu(1).mT]
)
def test_a_triangle_of_weights_loses_rows_and_columns_together(held: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Triangle(held).double(), torch.randn(4, 6, dtype=torch.double)
    result = prune_channels(model, x, 0.5)
    assert dict(result.widths) == {"first": (16, 8)} and result.model.weight.shape == (8, 8)
    assert result.proof is not None and result.proof.max_relative < 1e-12


@pytest.mark.parametrize(
    ("held", "cause"),
    [
        (lambda w: w.triu(2), "aten.triu in the network works along this dimension"),
        (lambda w: torch.linalg.inv(w + 9 * torch.eye(16)), "aten.add in the network"),
        (torch.linalg.matrix_exp, "no rule for aten.linalg_matrix_exp in the network"),
    ],
)
def test_what_made_a_weight_of_fixed_size_is_named(held: Callable[[Tensor], Tensor], cause: str) -> None:
    model, x = Triangle(held), torch.randn(4, 6)
    reasons = {group.name: group.reason or "" for group in find_groups(model, x).groups}
    assert cause in reasons["first"]


def test_weights_that_are_integers_are_named() -> None:
    model, x = Triangle(lambda w: w.float()), torch.randn(4, 6)
    model.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    reasons = {group.name: group.reason or "" for group in find_groups(model, x).groups}
    assert reasons["first"] == "meets something of fixed size at aten.mm in the network (weight holds int8)"
